"""Converts TensorFlow's errors to embedserve's: the canonical code, and a message without TensorFlow's Python noise.

The module knows no model.
"""

from __future__ import annotations

import re

import tensorflow as tf

from embedserve.errors import Code, DeadlineExceededError, InferenceError, ServingError
from embedserve.tfs.constants import TIMED_OUT

__all__ = ["RUN_ERRORS", "clean", "code_of", "inference_error"]


RUN_ERRORS = (tf.errors.OpError, UnicodeDecodeError)
"""Errors of a run. A kernel may quote bytes of a request, and TensorFlow's Python binding decodes all text as UTF-8."""

_NOISE = (
    # The eager runtime, `Session.run` and function calls put these texts around a kernel's message.
    (re.compile(r"^Graph execution error:\s*"), ""),
    (re.compile(r"Detected at node [^\n]*\n(?:(?:<stack traces unavailable>|[ \t][^\n]*)?\n)*"), ""),
    (re.compile(r"\{\{function_node [^{}]*\}\}\s*"), ""),
    (re.compile(r"\s*\[Op:[^\[\]]*\](?: name: \S*)?\s*$"), ""),
    (re.compile(r"\n+Original stack trace for .*", re.DOTALL), ""),
    (re.compile(r"\n+Errors may have originated from an input operation\..*", re.DOTALL), ""),
)


def clean(message: str) -> str:
    """The kernel's message and the node of its origin: `<msg>⏎⇥ [[{{node <name>}}]]`."""
    for pattern, replacement in _NOISE:
        message = pattern.sub(replacement, message)
    return message.strip()


def code_of(error: BaseException) -> Code:
    """The canonical code of a TensorFlow error; INTERNAL for any further error."""
    if isinstance(error, tf.errors.OpError):
        try:
            return Code(error.error_code)
        except (ValueError, TypeError):
            return Code.UNKNOWN
    return Code.INTERNAL


def inference_error(error: Exception, *, timed_out: bool = False) -> ServingError:
    """The error of a request for a run that failed with `error` of `RUN_ERRORS`.

    Bytes of the text outside UTF-8 are replaced. Such a text quotes a request, so the code is INVALID_ARGUMENT:
    TensorFlow's binding loses the original code.
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
