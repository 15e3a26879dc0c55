"""A replica's registry: entered by the first configuration, changed by later ones, queried over REST and gRPC.

All code runs on the loop of Serve's user code. The module knows no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from embedserve.call_record import CallHeaders
from embedserve.concurrency.inflight import Reservation
from embedserve.config import Access, ModelConfig, SpecificVersions
from embedserve.errors import Code, NotReadyError, RegistryStateError, UnsupportedError
from embedserve.ray.rpcs import REPLICA_KEY, Metadata, RpcAnswer
from embedserve.ray.settings import ReplicaSettings
from embedserve.registry import ModelRegistry
from embedserve.server import tensorflow_setup

if TYPE_CHECKING:
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    from embedserve.asgi.calls import Receive, Scope, Send
    from embedserve.grpc.calls import Methods
    from embedserve.rest.app import RestApp

__all__ = ["Replica", "RestAnswer", "RestRequest"]

logger = logging.getLogger("embedserve")


class RestRequest(NamedTuple):
    """An HTTP request between deployments; `target` is the raw target below the mount point."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


class RestAnswer(NamedTuple):
    """The whole answer to a `RestRequest`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Replica:
    """A registry and its adapters in a single process of a cluster.

    Args:
        settings: Models and options to serve with.
        name: The replica's name, sent with every answer.
        cpus: CPUs for run threads and TensorFlow; None leaves both at their defaults.
    """

    def __init__(self, settings: ReplicaSettings, name: str, cpus: float | None = None) -> None:
        self.name = name
        self._settings = settings
        self._threads = None if not cpus else math.ceil(cpus)
        self._configured: tuple[ModelConfig, ...] | None = None
        self._changing = asyncio.Lock()
        self._registry: ModelRegistry | None = None
        self._rest: RestApp | None = None
        self._rpcs: Methods = {}

    def __repr__(self) -> str:
        return f"<Replica {self.name} of {self._registry!r}>"

    # Life.

    async def configure(self, user_config: Mapping[str, object] | None) -> None:
        """Enter the registry, or change the served versions; return when all wanted versions are available.

        A version added by a `specific` policy is available before dropped versions go, so there is no gap.

        Raises:
            StartError: A model did not become available during the entry.
            ConfigError: The value is no `UserConfig`, or names unknown models.
            ServingError: A wanted version is not in the store (NOT_FOUND) or cannot be loaded, or a label is for an
                unavailable version. The replica should be replaced: other replicas may have succeeded.
        """
        configured = self._settings.configured(user_config)
        async with self._changing:
            if self._registry is None:
                await self._enter(configured)
            elif configured != self._configured:
                await self._change(self._registry, configured)
            self._configured = configured

    async def _enter(self, configured: tuple[ModelConfig, ...]) -> None:
        options = dict(self._settings.options)
        if self._threads is not None:
            options.setdefault("num_batch_threads", self._threads)
        # Replicas with different models would give different answers.
        options.setdefault("start_requires", "all")
        registry = ModelRegistry(self._settings.root, models=configured, **options)
        await asyncio.to_thread(_prepare_process, self._threads)
        await registry.start()
        self._rest, self._rpcs = self._adapters(registry)
        self._registry = registry

    def _adapters(self, registry: ModelRegistry) -> tuple[RestApp, Methods]:
        from embedserve.grpc.services.table import Services
        from embedserve.rest import create_app

        # A change of models by a client would reach a single replica.
        rest = create_app(
            registry, cors=self._settings.cors, timeout=self._settings.timeout, access=Access(reload="none")
        )
        # The proxies answer health and reflection, and a profile would come from an arbitrary replica.
        services = Services(
            registry,
            health=False,
            reflection=False,
            access=Access(reload="all", session_run="all" if self._settings.session_run else "none"),
            tensor_content=self._settings.tensor_content,
            reload=_refuse_reload,
            metric=None,
        )
        return rest, services.methods

    async def _change(self, registry: ModelRegistry, configured: tuple[ModelConfig, ...]) -> None:
        before = {model.name: model.version_policy for model in self._configured or ()}
        for model in configured:
            policy = model.version_policy
            # A policy alone would drop the old versions even where the new versions are missing.
            if isinstance(policy, SpecificVersions) and policy.versions and policy != before.get(model.name):
                await registry.pin(model.name, *policy.versions)
        await registry.reconfigure(configured)
        logger.info("replica %s serves %r", self.name, registry)

    def check_health(self) -> None:
        """Raise unless the replica should live on; Serve replaces an unhealthy replica.

        A single broken model is no reason, since a replacement would find the same store. A replica takes its first
        request only after every model is available.

        Raises:
            NotReadyError: The registry was not entered, or no model is available.
        """
        if self._registry is None or not self._registry.started:
            raise NotReadyError("the registry has not been entered: `user_config` must be a mapping, {} at least")
        reasons = self._registry.readiness()
        if None not in reasons.values():
            listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise NotReadyError(f"no model is available: {listed or 'none has been found yet'}")

    async def aclose(self) -> None:
        """Leave: finish requests in flight, and unload every version."""
        async with self._changing:
            if self._registry is not None:
                await self._registry.aclose()

    # Requests.

    async def answer_rpc(self, path: str, body: bytes, metadata: Metadata) -> RpcAnswer:
        """Answer a gRPC call; raises nothing but cancellation."""
        from embedserve.grpc.calls import Unary
        from embedserve.grpc.errors import StatusError, status_of

        method = self._rpcs.get(path)
        if not isinstance(method, Unary):
            return RpcAnswer(Code.UNIMPLEMENTED, "Method not found!", b"", self.name)
        assert self._registry is not None
        try:
            # The proxy accounts for Serve's copy of the answer.
            with Reservation(self._registry.inflight) as held:
                return RpcAnswer(Code.OK, "", await method.answer(body, _Context(metadata, held, path)), self.name)
        except StatusError as error:
            return RpcAnswer(error.code, error.message, b"", self.name)
        except RegistryStateError as error:  # The registry was left meanwhile, together with the account.
            return RpcAnswer(*status_of(error), b"", self.name)

    async def answer_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request, as an ASGI application; a response header names the replica."""
        header = (REPLICA_KEY.encode(), self.name.encode())

        async def send_named(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], header]}
            await send(message)

        if self._rest is None:
            raise NotReadyError(f"{self!r} has not been configured")
        await self._rest(scope, receive, send_named)

    async def answer_rest(self, request: RestRequest) -> RestAnswer:
        """Answer an HTTP request received by another deployment."""
        path, _, query = request.target.partition("?")
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "path": unquote(path),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "headers": request.headers,
        }
        unread = [{"type": "http.request", "body": request.body, "more_body": False}]
        sent: list[dict[str, Any]] = []
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if unread:
                return unread.pop()
            await gone.wait()  # Serve cancels the call when the client goes.
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.answer_http(scope, receive, send)
        start, *bodies = sent
        return RestAnswer(start["status"], start["headers"], b"".join(body["body"] for body in bodies))


def _prepare_process(threads: int | None) -> None:
    """Import slow modules, and limit TensorFlow to the replica's share of the machine."""
    from tensorflow_serving.apis import prediction_service_pb2  # noqa: F401

    if threads is not None:
        from tensorflow.core.protobuf.config_pb2 import ConfigProto

        session: Any = ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)
        tensorflow_setup.apply(session.SerializeToString())


async def _refuse_reload(config: ModelServerConfig) -> None:
    raise UnsupportedError(
        "a reload would reach one replica only: change the deployment's user_config, which reaches all of them"
    )


class _Context:
    """The context of a call. The deadline stays in Serve's proxy, which cancels the call after the deadline."""

    peer = ""  # The address seen here is the proxy's.

    def __init__(self, metadata: Metadata, held: Reservation, path: str) -> None:
        self._metadata = metadata
        self.held = held
        self.path = path

    def metadata_value(self, key: str) -> str | bytes | None:
        return next((value for name, value in self._metadata if name == key), None)

    def time_remaining(self) -> None:
        return None

    def headers(self) -> CallHeaders:
        return CallHeaders([(name.encode(), _bytes(value)) for name, value in self._metadata])

    def add_trailing(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Leave the metadata out: a replica has no way to Serve's answer."""

    def is_local(self) -> bool:
        return False


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
