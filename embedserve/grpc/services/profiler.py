"""`tensorflow.ProfilerService`: trace the process for TensorBoard's profiler clients.

The module drives TensorFlow's public profiler for the time of the request, and puts the trace in the client's place.
TensorFlow's package has no classes for the service's messages, so the classes are built here (field numbers:
profiler_service.proto).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from embedserve.errors import Code, InvalidInputError, ServingError, UnsupportedError, one_line
from embedserve.grpc.calls import Unary, paths, unary

if TYPE_CHECKING:
    from embedserve.grpc.calls import Context
    from embedserve.registry import ModelRegistry

__all__ = ["SERVICE", "Profiler"]

SERVICE = "tensorflow.ProfilerService"

MAX_DURATION_MS = 600_000
"""Milliseconds of the longest profile, ten minutes: TensorFlow keeps every event in memory until the end."""

_MAX_NAME_BYTES = 200
"""Bytes of the longest session id or host name: below the 255 of most file systems, with room for an ending."""
_SHOWN = 100  # Characters of a client's text in an error.

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
    # An XSpace travels as bytes: on the wire a message field and a bytes field are equal.
    "ProfileResponse": {"empty_trace": (7, _Field.TYPE_BOOL), "xspace": (8, _Field.TYPE_BYTES)},
    "TerminateRequest": {"session_id": (1, _Field.TYPE_STRING)},
    "MonitorRequest": {"duration_ms": (1, _Field.TYPE_UINT64)},
}


class _ProfileOptions(Protocol):
    host_tracer_level: int
    device_tracer_level: int
    python_tracer_level: int


class _ProfileRequest(Protocol):
    duration_ms: int
    opts: _ProfileOptions
    repository_root: str
    session_id: str
    host_name: str
    emit_xspace: bool

    def HasField(self, field_name: str, /) -> bool: ...  # noqa: N802


@cache
def message_class(name: str) -> Any:
    """The class of a message of the service, from a private descriptor pool."""
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


class Profiler:
    """Runs a single session at a time, as TensorFlow has one profiler per process; `aclose` ends the session early."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._session_id = ""
        self._ended = asyncio.Event()
        self._work: asyncio.Future[bytes] | None = None  # While a session runs.
        self._closed = False

    def __repr__(self) -> str:
        return f"<Profiler {'idle' if self._work is None else f'in session {self._session_id!r}'}>"

    def methods(self) -> dict[str, Unary]:
        """The service's methods."""
        return paths(
            SERVICE,
            {
                "Profile": unary(self._registry, message_class("ProfileRequest"), self._profile),
                "Terminate": unary(self._registry, message_class("TerminateRequest"), self._terminate),
                "Monitor": unary(self._registry, message_class("MonitorRequest"), self._monitor),
            },
        )

    async def aclose(self) -> None:
        """End the running session, and stop TensorFlow's profiler while threads are still available."""
        self._closed = True
        self._ended.set()
        if self._work is not None:
            await asyncio.wait([self._work])

    async def _profile(self, request: _ProfileRequest, context: Context, large: bool) -> bytes:
        if not request.duration_ms:
            raise InvalidInputError("duration_ms must be greater than zero.")
        if request.duration_ms > MAX_DURATION_MS:
            raise InvalidInputError(f"duration_ms is {request.duration_ms}; {MAX_DURATION_MS} is the limit")
        _check_place(request)
        if self._closed:
            raise ServingError("the server is stopping", code=Code.UNAVAILABLE)
        if self._work is not None:
            raise ServingError("Another profiler session is running.", code=Code.ALREADY_EXISTS)
        self._ended.clear()
        self._session_id = request.session_id
        self._work = asyncio.ensure_future(self._session(request))
        try:
            return await asyncio.shield(self._work)
        except asyncio.CancelledError:  # The client has gone, and the profiler must still be stopped.
            self._ended.set()
            self._work.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    async def _session(self, request: _ProfileRequest) -> bytes:
        try:
            return await self._trace(request)
        finally:
            self._work = None

    async def _trace(self, request: _ProfileRequest) -> bytes:
        run = self._registry.run_in_thread
        directory = await run(tempfile.mkdtemp, "", "embedserve-profile-")
        try:
            await run(_start, directory, request.opts if request.HasField("opts") else None)
            try:
                async with asyncio.timeout(request.duration_ms / 1000):
                    await self._ended.wait()
            except TimeoutError:
                pass
            finally:
                await run(_stop)
            return await run(_answer, request, directory)
        finally:
            await run(shutil.rmtree, directory, True)

    async def _terminate(self, request: _ProfileRequest, context: Context, large: bool) -> bytes:
        if self._work is None:
            raise ServingError("no profiler session is running", code=Code.NOT_FOUND)
        if request.session_id != self._session_id:
            raise ServingError(f"the profiler session that runs is not {request.session_id!r}", code=Code.NOT_FOUND)
        self._ended.set()
        return b""

    async def _monitor(self, request: _ProfileRequest, context: Context, large: bool) -> bytes:
        raise UnsupportedError("Monitor is for Cloud TPUs; use Profile")


def _check_place(request: _ProfileRequest) -> None:
    """Keep a profile below its `repository_root`: session id and host name must each be a single path component."""
    for field in ("session_id", "host_name"):
        name = getattr(request, field)
        if one_line(name) != name or name in (".", "..") or set(name) & set("/\\"):
            what = "a session's id" if field == "session_id" else "a host name"
            raise InvalidInputError(f"{field} {name[:_SHOWN]!r} is not {what}")
        if len(name.encode()) > _MAX_NAME_BYTES:
            raise InvalidInputError(f"{field} {name[:_SHOWN]!r}... is over {_MAX_NAME_BYTES} bytes")
    if one_line(request.repository_root) != request.repository_root:
        raise InvalidInputError(f"repository_root {request.repository_root[:_SHOWN]!r} holds control characters")


def _check_links(root: str, directory: str, target: str) -> None:
    """Refuse to write through links that lead out of a local `repository_root`; remote file systems have no links."""
    if "://" in root:
        return
    if os.path.realpath(directory) != os.path.normpath(
        os.path.join(os.path.realpath(root), os.path.relpath(directory, root))
    ):
        raise InvalidInputError(f"{directory!r} leads out of repository_root {root!r} by a link")
    if os.path.islink(target):
        raise InvalidInputError(f"{target!r} is a link, and profiles are not written through links")


def _start(directory: str, options: _ProfileOptions | None) -> None:
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


def _answer(request: _ProfileRequest, directory: str) -> bytes:
    """Move the trace from TensorFlow's directory to the client's place, or into the answer."""
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
            directory = os.path.join(request.repository_root, request.session_id)
            target = os.path.join(directory, wanted)
            try:
                tf.io.gfile.makedirs(directory)
                _check_links(request.repository_root, directory, target)
                tf.io.gfile.copy(trace, target, overwrite=True)
            except tf.errors.OpError as error:
                raise ServingError(f"cannot write the profile: {error.message}", code=Code(error.error_code)) from error
    data: bytes = response.SerializeToString()
    return data
