"""`tensorflow.ProfilerService`: trace this process for TensorBoard's profiler clients.

Drives TensorFlow's public profiler for as long as the client asks and puts the trace where the client reads it. The
package has no classes for the service's messages; they are built here (field numbers: profiler_service.proto).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from embedserve.errors import Code, InvalidInputError, ServingError, UnsupportedError
from embedserve.grpc.calls import unary

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["SERVICE", "handlers"]

SERVICE = "tensorflow.ProfilerService"

_Field = descriptor_pb2.FieldDescriptorProto

_MESSAGES: dict[str, dict[str, tuple[int, int | str]]] = {
    "ProfileOptions": {
        "host_tracer_level": (2, _Field.TYPE_UINT32),
        "device_tracer_level": (3, _Field.TYPE_UINT32),
        "python_tracer_level": (4, _Field.TYPE_UINT32),
    },
    "ProfileRequest": {
        "duration_ms": (1, _Field.TYPE_UINT64),
        "opts": (4, "ProfileOptions"),
        "repository_root": (5, _Field.TYPE_STRING),
        "session_id": (6, _Field.TYPE_STRING),
        "host_name": (7, _Field.TYPE_STRING),
        "emit_xspace": (9, _Field.TYPE_BOOL),
    },
    # An XSpace travels as its bytes: on the wire a message field and a bytes field are the same.
    "ProfileResponse": {"empty_trace": (7, _Field.TYPE_BOOL), "xspace": (8, _Field.TYPE_BYTES)},
    "TerminateRequest": {"session_id": (1, _Field.TYPE_STRING)},
    "MonitorRequest": {"duration_ms": (1, _Field.TYPE_UINT64)},
}


@cache
def message_class(name: str) -> Any:
    """The class of one of the service's messages, from a descriptor pool of our own."""
    file = descriptor_pb2.FileDescriptorProto(
        name="embedserve/profiler_service.proto", package="tensorflow", syntax="proto3"
    )
    for message, fields in _MESSAGES.items():
        added = file.message_type.add(name=message)
        for field, (number, kind) in fields.items():
            if isinstance(kind, str):
                added.field.add(
                    name=field,
                    number=number,
                    type=_Field.TYPE_MESSAGE,
                    type_name=f".tensorflow.{kind}",
                    label=_Field.LABEL_OPTIONAL,
                )
            else:
                added.field.add(name=field, number=number, type=kind, label=_Field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.{name}"))


def handlers(registry: ModelRegistry) -> grpc.GenericRpcHandler:
    """The service's handlers; TensorFlow has one profiler per process, so one session runs at a time."""
    profiler = _Profiler(registry)
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Profile": unary(registry, message_class("ProfileRequest"), profiler.profile),
            "Terminate": unary(registry, message_class("TerminateRequest"), profiler.terminate),
            "Monitor": unary(registry, message_class("MonitorRequest"), profiler.monitor),
        },
    )


class _Profiler:
    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._session_id = ""
        self._ended: asyncio.Event | None = None  # Set while a session runs.

    async def profile(self, request: Any, context: Any, large: bool) -> bytes:
        if not request.duration_ms:
            raise InvalidInputError("duration_ms must be greater than zero.")
        if self._ended is not None:
            raise ServingError("Another profiler session is running.", code=Code.ALREADY_EXISTS)
        self._ended, self._session_id = asyncio.Event(), request.session_id
        # The trace is stopped and the session given back even when the client has gone.
        work = asyncio.ensure_future(self._session(request, self._ended))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if self._ended is not None:
                self._ended.set()
            work.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    async def _session(self, request: Any, ended: asyncio.Event) -> bytes:
        run = self._registry.run_in_thread
        directory = await run(tempfile.mkdtemp, "", "embedserve-profile-")
        try:
            await run(_start, directory, request.opts if request.HasField("opts") else None)
            try:
                async with asyncio.timeout(request.duration_ms / 1000):
                    await ended.wait()
            except TimeoutError:
                pass
            finally:
                await run(_stop)
            return await run(_answer, request, directory)
        finally:
            self._ended = None
            await run(shutil.rmtree, directory, True)

    async def terminate(self, request: Any, context: Any, large: bool) -> bytes:
        if self._ended is None or request.session_id not in ("", self._session_id):
            raise ServingError(f"no profiler session {request.session_id!r} is running", code=Code.NOT_FOUND)
        self._ended.set()
        return b""

    async def monitor(self, request: Any, context: Any, large: bool) -> bytes:
        raise UnsupportedError("Monitor is for Cloud TPUs; use Profile")


def _start(directory: str, options: Any) -> None:
    import tensorflow as tf

    chosen = None
    if options is not None:
        chosen = tf.profiler.experimental.ProfilerOptions(
            host_tracer_level=options.host_tracer_level,
            python_tracer_level=options.python_tracer_level,
            device_tracer_level=options.device_tracer_level,
        )
    try:
        tf.profiler.experimental.start(directory, options=chosen)
    except tf.errors.AlreadyExistsError as error:
        raise ServingError(error.message, code=Code.ALREADY_EXISTS) from error


def _stop() -> None:
    import tensorflow as tf

    tf.profiler.experimental.stop()


def _answer(request: Any, directory: str) -> bytes:
    """Bring the trace from where TensorFlow wrote it to where the client wants it."""
    import tensorflow as tf

    traces = [
        os.path.join(where, name) for where, _, names in os.walk(directory) for name in names if name.endswith(".pb")
    ]
    response = message_class("ProfileResponse")(empty_trace=not traces)
    for trace in traces:
        if request.emit_xspace:
            with open(trace, "rb") as file:
                response.xspace = file.read()
        elif request.repository_root:
            wanted = f"{request.host_name.replace(':', '_') or 'localhost'}.xplane.pb"
            target = os.path.join(request.repository_root, request.session_id)
            if os.path.basename(wanted) != wanted:
                raise InvalidInputError(f"host_name {request.host_name!r} is not a host name")
            try:
                tf.io.gfile.makedirs(target)
                tf.io.gfile.copy(trace, os.path.join(target, wanted), overwrite=True)
            except tf.errors.OpError as error:
                raise ServingError(f"cannot write the profile: {error.message}", code=Code(error.error_code)) from error
    data: bytes = response.SerializeToString()
    return data
