"""TensorFlow Serving's messages and stubs without TensorFlow, under the names that `tensorflow_serving.apis` has.

    from embedserve_client.apis import make_ndarray, make_tensor_proto, predict_pb2, prediction_service_pb2_grpc

The modules `NAME_pb2` hold message classes, enums and constants, and `prediction_service_pb2_grpc` and
`model_service_pb2_grpc` hold a stub for any grpcio channel. `tensor_pb2`, `example_pb2`, ... stand for the modules of
`tensorflow.core`. The classes are in a descriptor pool of their own: TensorFlow may live in the same process, and its
messages come over by their bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from embedserve_client.descriptors import FILES, SERVICES, enums_of, message_class, messages_of
from embedserve_client.dtypes import Array, as_array, by_name, by_number, by_numpy, convert
from embedserve_client.errors import InvalidInputError
from embedserve_client.tensors import from_message, to_message

_SERVING = "tensorflow.serving"


def make_tensor_proto(values: Any, dtype: int | str | None = None, shape: Sequence[int] | None = None) -> Any:
    """A `TensorProto` of values, as `tf.make_tensor_proto` makes one.

    Args:
        values: An array or anything that numpy reads; Python floats are float32 and ints int32, as in TensorFlow.
        dtype: A `DataType` number or a short name (`float`, `DT_FLOAT`); the values' own dtype without it.
        shape: Another shape for the same number of elements; a single element fills any shape.

    Raises:
        InvalidInputError: The values do not fit the dtype or the shape.
        UnsupportedError: The dtype has no values for clients.
    """
    if dtype is None:
        array = as_array(values)
        if not hasattr(values, "__array__") and array.dtype in (np.float64, np.int64):
            array = convert(values, by_name("float" if array.dtype == np.float64 else "int32"), "values")
    else:
        row = by_name(dtype.removeprefix("DT_").lower()) if isinstance(dtype, str) else by_number(int(dtype))
        array = convert(values, row, "values")
    if shape is not None:
        try:
            array = np.full(shape, array.reshape(())) if array.size == 1 else array.reshape(shape)
        except ValueError as error:
            raise InvalidInputError(f"the values do not fit the shape {list(shape)}: {error}") from None
    return to_message(array, by_numpy(array.dtype))


def make_ndarray(tensor: Any) -> Array:
    """The array of a `TensorProto`, of this package or of TensorFlow; strings are objects of `bytes`.

    Raises:
        ValueError: No valid tensor.
        UnsupportedError: The dtype has no values for clients.
    """
    return from_message(tensor)


def _stub(service: str) -> type[Any]:
    methods = SERVICES[service]

    def connect(self: Any, channel: Any) -> None:
        for name, (_, response) in methods.items():
            call = channel.unary_unary(
                f"/{_SERVING}.{service}/{name}",
                request_serializer=_serializer(),
                response_deserializer=message_class(f"{_SERVING}.{response}").FromString,
            )
            setattr(self, name, call)

    doc = f"`{_SERVING}.{service}` on a channel of grpcio, blocking or asyncio: {', '.join(methods)}."
    return type(f"{service}Stub", (), {"__init__": connect, "__doc__": doc})


def _serializer() -> Callable[[Any], bytes]:
    return lambda message: bytes(message.SerializeToString())


def _module(name: str, doc: str) -> ModuleType:
    module = ModuleType(f"{__name__}.{name}", doc)
    sys.modules[module.__name__] = module
    globals()[name] = module
    _MODULES.append(name)
    return module


_MODULES: list[str] = []


def _publish() -> None:
    for file in FILES:
        short = file.rsplit("/", 1)[-1].removesuffix(".proto")
        module = _module(f"{short}_pb2", f"The messages of {file}.")
        for name, message in messages_of(file):
            setattr(module, name, message)
            module.DESCRIPTOR = message.DESCRIPTOR.file  # type: ignore[attr-defined]
        for name, values in enums_of(file):
            vars(module).update(values)
            setattr(module, name, dict(values))
    for service in SERVICES:
        short = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in service)[1:]
        module = _module(f"{short}_pb2_grpc", f"The stub of {_SERVING}.{service}.")
        setattr(module, f"{service}Stub", _stub(service))


_publish()

__all__ = ["make_ndarray", "make_tensor_proto", *_MODULES]


def __getattr__(name: str) -> Any:
    """The modules are made above, from tables; the function tells type checkers that they exist."""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
