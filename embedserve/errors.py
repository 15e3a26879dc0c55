"""Every error of requests, configurations and loads, with the canonical code.

Each adapter turns `ServingError.code` into the status of a wire with a single table. The module knows no wire.

ServingError                      INTERNAL
├── InvalidInputError             INVALID_ARGUMENT     names, dtypes, shapes, values of a request
├── InvalidModelSpecError         INVALID_ARGUMENT     a model spec that cannot name a version
├── SignatureNotFoundError        FAILED_PRECONDITION  the signature is absent in the version
├── ServableNotFoundError         NOT_FOUND            no available version answers the model spec
├── QueueFullError                UNAVAILABLE          a bounded queue is full
│   └── OverloadedError           RESOURCE_EXHAUSTED   the queue is too long for the request's deadline
├── RequestTooLargeError          RESOURCE_EXHAUSTED   a request over `max_request_bytes` or `max_inflight_bytes`
├── DeadlineExceededError         DEADLINE_EXCEEDED    the caller's time is over
├── InferenceError                the code of the TensorFlow error, else INTERNAL
├── UnsupportedError              UNIMPLEMENTED        no support in the model or build
├── ConfigError (a ValueError)    INVALID_ARGUMENT     an inapplicable configuration
├── LoadError                     the code of the cause, else UNKNOWN: a version's status, never a request's error
├── StartError                    UNKNOWN              the registry could not be entered
└── RegistryStateError            FAILED_PRECONDITION  not entered, closed, wrong loop, forked child
    └── NotReadyError             UNAVAILABLE          mounted without its lifespan, or still starting
"""

from __future__ import annotations

import enum
import re

__all__ = [
    "CUT_SHORT",
    "Code",
    "ConfigError",
    "DeadlineExceededError",
    "InferenceError",
    "InvalidInputError",
    "InvalidModelSpecError",
    "LoadError",
    "NotReadyError",
    "OverloadedError",
    "QueueFullError",
    "RegistryStateError",
    "RequestTooLargeError",
    "ServableNotFoundError",
    "ServingError",
    "SignatureNotFoundError",
    "StartError",
    "UnsupportedError",
    "one_line",
]

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


CUT_SHORT = "the server shuts down, and the time that a drain gives to requests in flight is over"
"""The message for a request in flight at the end of a drain."""


def one_line(text: str) -> str:
    """Escape line ends and other control characters, so that clients cannot forge log lines."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Code(enum.IntEnum):
    """Canonical status codes, with the numbers of gRPC and `absl::StatusCode`."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServingError(Exception):
    """Base of every error raised on purpose by embedserve.

    Args:
        message: The examined thing, the finding and the expectation; safe to show to a client.
        code: Overrides the class's canonical code, for errors with the code of another system.
    """

    code: Code = Code.INTERNAL

    def __init__(self, message: str, *, code: Code | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return self.message


class InvalidInputError(ServingError):
    """A request's names, dtypes, shapes or values do not fit the signature."""

    code = Code.INVALID_ARGUMENT


class InvalidModelSpecError(ServingError):
    """A model spec is missing, has no name, or names an unknown label."""

    code = Code.INVALID_ARGUMENT


class SignatureNotFoundError(ServingError):
    """The version has no signature with the requested name."""

    code = Code.FAILED_PRECONDITION


class ServableNotFoundError(ServingError):
    """No available version answers the model spec."""

    code = Code.NOT_FOUND


class QueueFullError(ServingError):
    """A bounded queue is full; the request was refused at once."""

    code = Code.UNAVAILABLE


class OverloadedError(QueueFullError):
    """The wait in the queue exceeds the request's timeout; the request was refused at once."""

    code = Code.RESOURCE_EXHAUSTED


class RequestTooLargeError(ServingError):
    """A request is over `max_request_bytes`, or the process is over `max_inflight_bytes`."""

    code = Code.RESOURCE_EXHAUSTED


class DeadlineExceededError(ServingError):
    """The caller's timeout or deadline passed before the answer."""

    code = Code.DEADLINE_EXCEEDED


class InferenceError(ServingError):
    """TensorFlow failed in the run of the request; the code is the TensorFlow error's."""


class UnsupportedError(ServingError):
    """The model, option or build does not support the request."""

    code = Code.UNIMPLEMENTED


class ConfigError(ServingError, ValueError):
    """A configuration was refused: an unknown option, a bad value, or a bad file or directory."""

    code = Code.INVALID_ARGUMENT


class LoadError(ServingError):
    """A version could not be loaded or warmed up. `status()` shows the error; no request ends with a LoadError."""

    code = Code.UNKNOWN


class HungError(LoadError):
    """A step of a load exceeded the time limit; the thread was left behind. Another attempt would hang as well."""

    code = Code.DEADLINE_EXCEEDED


class StartError(ServingError):
    """Entering the registry failed; the message has the reason for each model."""

    code = Code.UNKNOWN


class RegistryStateError(ServingError):
    """The registry cannot be used here: not entered, closed, called on the wrong loop, or in a forked child."""

    code = Code.FAILED_PRECONDITION


class NotReadyError(RegistryStateError):
    """The registry has not been started and cannot answer yet."""

    code = Code.UNAVAILABLE
