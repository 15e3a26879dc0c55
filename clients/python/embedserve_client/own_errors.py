"""The errors of an environment without embedserve: the names, codes and bases of `embedserve.errors`.

A test compares the two modules. Configuration, loads and starts belong to servers and have no class here.
"""

from __future__ import annotations

import enum

__all__ = [
    "Code",
    "DeadlineExceededError",
    "InferenceError",
    "InvalidInputError",
    "InvalidModelSpecError",
    "NotReadyError",
    "OverloadedError",
    "QueueFullError",
    "RegistryStateError",
    "RequestTooLargeError",
    "ServableNotFoundError",
    "ServingError",
    "SignatureNotFoundError",
    "UnsupportedError",
]


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
    """Base of every error that a call raises on purpose.

    Args:
        message: The examined thing, the finding and the expectation.
        code: Overrides the class's canonical code.
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
    """A request exceeds a limit of the server in bytes."""

    code = Code.RESOURCE_EXHAUSTED


class DeadlineExceededError(ServingError):
    """The caller's timeout or deadline passed before the answer."""

    code = Code.DEADLINE_EXCEEDED


class InferenceError(ServingError):
    """TensorFlow failed in the run of the request; the code is the TensorFlow error's."""


class UnsupportedError(ServingError):
    """The model, server or protocol does not support the request."""

    code = Code.UNIMPLEMENTED


class RegistryStateError(ServingError):
    """The registry or client cannot be used here: not entered, closed, or in a forked child."""

    code = Code.FAILED_PRECONDITION


class NotReadyError(RegistryStateError):
    """The server cannot answer yet."""

    code = Code.UNAVAILABLE
