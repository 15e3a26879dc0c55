"""TensorFlow's errors become codes and words that a client can use."""

from __future__ import annotations

import pytest
import tensorflow as tf

from embedserve.errors import Code, DeadlineExceededError, InferenceError
from embedserve.saved_model.status import clean, code_of, inference_error


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("In[0] is not a matrix", "In[0] is not a matrix"),
        (
            "{{function_node __wrapped__StatefulPartitionedCall_Tin_3_device_/job:localhost/device:CPU:0}} Matrix "
            "size-incompatible: In[0]: [1,5], In[1]: [4,3] [Op:StatefulPartitionedCall]",
            "Matrix size-incompatible: In[0]: [1,5], In[1]: [4,3]",
        ),
        (
            "{{function_node __wrapped__X}} assertion failed: [no]\n\t [[{{function_node __inference_f_35}}"
            "{{node a/Assert}}]] [Op:StatefulPartitionedCall]",
            "assertion failed: [no]\n\t [[{{node a/Assert}}]]",
        ),
        (
            "Graph execution error:\n\nDetected at node a/Assert defined at (most recent call last):\n"
            "<stack traces unavailable>\nassertion failed: [no]\n\t [[{{node a/Assert}}]] [Op:__inference_f_61]",
            "assertion failed: [no]\n\t [[{{node a/Assert}}]]",
        ),
        (
            "Graph execution error:\n\nDetected at node a defined at (most recent call last):\n"
            '  File "m.py", line 3\n\n  File "n.py", line 4, in <module>\n\n'
            "no such thing\n\t [[{{node a}}]] [Op:f] name: ",
            "no such thing\n\t [[{{node a}}]]",
        ),
        ("bad\n\nOriginal stack trace for 'x':\n  File ...", "bad"),
    ],
)
def test_messages_lose_what_says_nothing_to_a_client(given: str, cleaned: str) -> None:
    assert clean(given) == cleaned


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (tf.errors.InvalidArgumentError(None, None, "x"), Code.INVALID_ARGUMENT),
        (tf.errors.ResourceExhaustedError(None, None, "x"), Code.RESOURCE_EXHAUSTED),
        (tf.errors.UnimplementedError(None, None, "x"), Code.UNIMPLEMENTED),
        (tf.errors.CancelledError(None, None, "x"), Code.CANCELLED),
        (tf.errors.OpError(None, None, "x", 99), Code.UNKNOWN),
        (ValueError("x"), Code.INTERNAL),
    ],
)
def test_codes_are_the_canonical_ones(error: Exception, code: Code) -> None:
    assert code_of(error) is code


def test_an_error_of_a_run_keeps_code_and_message() -> None:
    error = inference_error(tf.errors.OutOfRangeError(None, None, "too far [Op:X]"))
    assert isinstance(error, InferenceError)
    assert (error.code, error.message) == (Code.OUT_OF_RANGE, "too far")


def test_an_error_whose_text_is_not_utf8_has_the_text_replaced() -> None:
    text = b"cannot read a\xffb [Op:X]"
    error = inference_error(UnicodeDecodeError("utf-8", text, 13, 14, "invalid start byte"))
    assert isinstance(error, InferenceError)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, "cannot read a\ufffdb")


def test_an_error_without_words_still_says_something() -> None:
    assert inference_error(tf.errors.InternalError(None, None, "")).message == "INTERNAL"
    assert inference_error(tf.errors.CancelledError(None, None, "")).message == "the run was cancelled"


def test_a_deadline_has_tensorflow_servings_words() -> None:
    error = inference_error(tf.errors.DeadlineExceededError(None, None, "anything"))
    assert isinstance(error, DeadlineExceededError)
    assert error.message == "Timed out waiting for notification"
