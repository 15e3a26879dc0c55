"""Server reflection, `grpc.reflection.v1` and `v1alpha`, over the default descriptor pool, for grpcurl and others.

The messages of both versions have the same fields, so that one function answers both. grpcio-reflection knows
`v1alpha` only; the description of `v1` is made from the description of `v1alpha`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

from embedserve.grpc.calls import Context, Methods, parse, paths, streaming
from embedserve.oip.messages import message_pool

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["SERVICES", "methods"]

ALPHA = reflection.SERVICE_NAME
SERVICES = (ALPHA.replace(".v1alpha.", ".v1."), ALPHA)


def methods(names: Sequence[str]) -> Methods:
    """The method of both versions; the reflection describes the services called `names`, and itself."""
    servicer = reflection.aio.ReflectionServicer((*names, *SERVICES), pool=_Descriptions())

    async def info(requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes, None]:
        parsed = (parse(reflection_pb2.ServerReflectionRequest, body) async for body in requests)
        response: Message
        async for response in servicer.ServerReflectionInfo(parsed, context):
            yield response.SerializeToString()

    served = {"ServerReflectionInfo": streaming(info)}
    return {path: method for service in SERVICES for path, method in paths(service, served).items()}


class _Descriptions:
    """The searches of a descriptor pool: in the default pool first, then in pools with files of other packages' names.

    The default pool belongs to the whole process. With the files in there, another package could no longer import its
    own `grpc/reflection/v1/reflection.proto`, or its own messages of the Open Inference Protocol.
    """

    def __init__(self) -> None:
        self._default = descriptor_pool.Default()
        self._own = descriptor_pool.DescriptorPool()
        self._own.AddSerializedFile(_v1_file().SerializeToString())

    def __getattr__(self, search: str) -> Callable[..., object]:
        def find(*key: object) -> object:
            for pool in (self._default, message_pool()):
                with suppress(KeyError):
                    return getattr(pool, search)(*key)
            return getattr(self._own, search)(*key)

        return find


def _v1_file() -> descriptor_pb2.FileDescriptorProto:
    """`grpc/reflection/v1/reflection.proto`, from the file of `v1alpha`."""
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    file = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    file.name = "grpc/reflection/v1/reflection.proto"
    file.options.ClearField("deprecated")
    return file
