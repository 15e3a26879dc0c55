"""TensorFlow's errors as embedserve's: the canonical code, and a message without TensorFlow's Python noise.

Called wherever TensorFlow runs or loads something. Knows no model.
"""

from __future__ import annotations

import re

import tensorflow as tf

from embedserve.errors import Code, DeadlineExceededError, InferenceError, ServingError

__all__ = ["RUN_ERRORS", "TIMED_OUT", "clean", "code_of", "inference_error"]

TIMED_OUT = "Timed out waiting for notification"

RUN_ERRORS = (tf.errors.OpError, UnicodeDecodeError)
"""How a run fails. A kernel may quote bytes of a request, and TensorFlow's Python binding takes all text for UTF-8."""

_NOISE = (
    # What the eager runtime, `Session.run` and function calls put around a kernel's own words.
    (re.compile(r"^Graph execution error:\s*"), ""),
    (re.compile(r"Detected at node [^\n]*\n(?:(?:<stack traces unavailable>|[ \t][^\n]*)?\n)*"), ""),
    (re.compile(r"\{\{function_node [^{}]*\}\}\s*"), ""),
    (re.compile(r"\s*\[Op:[^\[\]]*\](?: name: \S*)?\s*$"), ""),
    (re.compile(r"\n+Original stack trace for .*", re.DOTALL), ""),
    (re.compile(r"\n+Errors may have originated from an input operation\..*", re.DOTALL), ""),
)


def clean(message: str) -> str:
    """The kernel's own words and the node they came from: `<msg>⏎⇥ [[{{node <name>}}]]`."""
    for pattern, replacement in _NOISE:
        message = pattern.sub(replacement, message)
    return message.strip()


def code_of(error: BaseException) -> Code:
    """The canonical code of a TensorFlow error; INTERNAL for anything else."""
    if isinstance(error, tf.errors.OpError):
        try:
            return Code(error.error_code)
        except (ValueError, TypeError):
            return Code.UNKNOWN
    return Code.INTERNAL


def inference_error(error: Exception, *, timed_out: bool = False) -> ServingError:
    """What a request ends with when TensorFlow failed while running it; `error` is one of `RUN_ERRORS`.

    Bytes of the text that are not UTF-8 are replaced. Such a text quotes a request, so the code is INVALID_ARGUMENT:
    TensorFlow's own is lost on the way.
    """
    if isinstance(error, UnicodeDecodeError):
        return InferenceError(clean(error.object.decode("utf-8", "replace")), code=Code.INVALID_ARGUMENT)
    assert isinstance(error, tf.errors.OpError)
    code = code_of(error)
    if timed_out or code is Code.DEADLINE_EXCEEDED:
        return DeadlineExceededError(TIMED_OUT)
    message = clean(error.message or "")
    if code is Code.CANCELLED:
        message = message or "the run was cancelled"
    return InferenceError(message or code.name, code=code)
