"""The errors of a call, and the error that the answer of a server stands for.

With embedserve installed, the classes are embedserve's own: an `except` for calls in process also catches the errors of
a server. The module knows no protocol.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedserve_client.own_errors import (
        Code,
        DeadlineExceededError,
        InferenceError,
        InvalidInputError,
        InvalidModelSpecError,
        NotReadyError,
        OverloadedError,
        QueueFullError,
        RegistryStateError,
        RequestTooLargeError,
        ServableNotFoundError,
        ServingError,
        SignatureNotFoundError,
        UnsupportedError,
    )
else:
    try:
        from embedserve import errors as _errors
    except ImportError:
        from embedserve_client import own_errors as _errors
    Code = _errors.Code
    DeadlineExceededError = _errors.DeadlineExceededError
    InferenceError = _errors.InferenceError
    InvalidInputError = _errors.InvalidInputError
    InvalidModelSpecError = _errors.InvalidModelSpecError
    NotReadyError = _errors.NotReadyError
    OverloadedError = _errors.OverloadedError
    QueueFullError = _errors.QueueFullError
    RegistryStateError = _errors.RegistryStateError
    RequestTooLargeError = _errors.RequestTooLargeError
    ServableNotFoundError = _errors.ServableNotFoundError
    ServingError = _errors.ServingError
    SignatureNotFoundError = _errors.SignatureNotFoundError
    UnsupportedError = _errors.UnsupportedError

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
    "of_http_status",
    "of_status",
]

_BY_CODE: dict[int, type[ServingError]] = {
    Code.INVALID_ARGUMENT: InvalidInputError,
    Code.NOT_FOUND: ServableNotFoundError,
    Code.RESOURCE_EXHAUSTED: RequestTooLargeError,
    Code.DEADLINE_EXCEEDED: DeadlineExceededError,
    Code.UNIMPLEMENTED: UnsupportedError,
    Code.UNKNOWN: InferenceError,
    Code.INTERNAL: InferenceError,
    Code.ABORTED: InferenceError,
    Code.OUT_OF_RANGE: InferenceError,
    Code.DATA_LOSS: InferenceError,
}

# Words of TensorFlow Serving and embedserve, where a code stands for several errors. The first match decides.
_BY_WORDS: tuple[tuple[int, str, type[ServingError]], ...] = (
    (Code.INVALID_ARGUMENT, "servable version label", InvalidModelSpecError),
    (Code.INVALID_ARGUMENT, "ModelSpec", InvalidModelSpecError),
    (Code.INVALID_ARGUMENT, "Serving signature", SignatureNotFoundError),
    (Code.FAILED_PRECONDITION, "Serving signature", SignatureNotFoundError),
    (Code.UNAVAILABLE, "batch scheduling queue", QueueFullError),
    (Code.UNAVAILABLE, "registry", NotReadyError),
    (Code.RESOURCE_EXHAUSTED, "requests wait already", OverloadedError),
)

# TensorFlow Serving's table from codes to statuses, backwards; several codes share 400, 409 and 500.
_BY_HTTP_STATUS = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    408: Code.DEADLINE_EXCEEDED,
    409: Code.ABORTED,
    413: Code.RESOURCE_EXHAUSTED,
    415: Code.UNIMPLEMENTED,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


def of_status(number: int, message: str) -> ServingError:
    """The error for a canonical code and a message: the class by code and words, the code as received."""
    code = Code(number) if number in Code._value2member_map_ else Code.UNKNOWN
    for expected, words, kind in _BY_WORDS:
        if code == expected and words in message:
            return kind(message, code=code)
    return _BY_CODE.get(code, ServingError)(message or code.name, code=code)


def of_http_status(status: int, message: str) -> ServingError:
    """The error for an HTTP status; statuses outside TensorFlow Serving's table are UNKNOWN."""
    return of_status(_BY_HTTP_STATUS.get(status, Code.UNKNOWN), message or f"HTTP status {status}")
