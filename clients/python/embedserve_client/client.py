"""`Client` and `AsyncClient`: the calls on servers or on a registry, by blocking and by awaiting.

A target's protocol decides which flows and connections a client has; the flows decide everything else.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypedDict, TypeVar, Unpack

from embedserve_client.address import Address, address_of
from embedserve_client.calls import Call, CallOptions, Calls, GrpcCalls, RegistryCalls, RestCalls, call_of
from embedserve_client.dtypes import Array
from embedserve_client.errors import Code, InvalidInputError, RegistryStateError, ServingError
from embedserve_client.exchange import (
    Addresses,
    Exchange,
    Failure,
    Flow,
    Pause,
    Reply,
    Retry,
    attempts,
)
from embedserve_client.messages import examples_bytes
from embedserve_client.model import Classifications, ModelMetadata, VersionStatus

__all__ = ["AsyncClient", "Client", "ClientOptions", "Registry"]

T = TypeVar("T")


class Registry(Protocol):
    """An entered `embedserve.ModelRegistry`."""

    def predict_sync(self, name: str, inputs: Any) -> dict[str, Array]:
        """Answer a request."""

    async def predict(self, name: str, inputs: Any) -> dict[str, Array]:
        """Answer a request."""


class ClientOptions(TypedDict, total=False):
    """Keyword options of `Client` and `AsyncClient`.

    Attributes:
        timeout: Seconds for each call that names no timeout of its own; 60 by default, None for no bound.
        retry: When a failed call is sent again.
        headers: Sent with each call, as headers or metadata.
        compression: `gzip` compresses the bodies of requests; compressed answers are read in any case.
        ssl_context: For `https://` and `grpcs://`; the system's certificates without it. The context must belong to the
            client alone, because the protocols of the connection are set on the context.
        connect_timeout: Seconds for making a connection, 5 by default.
    """

    timeout: float | None
    retry: Retry
    headers: Mapping[str, str]
    compression: Literal["none", "gzip"]
    ssl_context: ssl.SSLContext | None
    connect_timeout: float


class _Blocking(Protocol):
    def exchange(self, exchange: Exchange) -> Reply: ...
    def close(self) -> None: ...


class _Awaited(Protocol):
    async def exchange(self, exchange: Exchange) -> Reply: ...
    async def aclose(self) -> None: ...


class _Common:
    """Target, options and flows of a client; the subclasses perform steps."""

    def __init__(self, target: str | Sequence[str] | Registry, **options: Unpack[ClientOptions]) -> None:
        unknown = options.keys() - ClientOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"unknown option of a client: {', '.join(sorted(unknown))}")
        self.timeout = options.get("timeout", 60.0)
        self.headers = dict(options.get("headers") or {})
        self.connect_timeout = options.get("connect_timeout", 5.0)
        self.ssl_context = options.get("ssl_context")
        self.compress = options.get("compression", "none") == "gzip"
        self._closed = False
        self._target = target
        self._addresses: list[Address] = []
        self._calls: Calls
        if not isinstance(target, str) and hasattr(target, "predict_sync"):
            self._calls = RegistryCalls(target)
            return
        urls = [target] if isinstance(target, str) else list(target)
        self._addresses = [address_of(url) for url in urls]
        protocols = {address.protocol for address in self._addresses}
        if len(protocols) != 1:
            raise InvalidInputError("expects one URL or more, all grpc:// or all http://")
        balance = Addresses(len(urls))
        retry = options.get("retry") or Retry()
        count = len(urls)
        self._calls = (GrpcCalls if protocols == {"grpc"} else RestCalls)(
            lambda request, deadline: attempts(balance, count, retry, deadline, request)
        )

    def __repr__(self) -> str:
        where = ", ".join(map(str, self._addresses)) or repr(self._target)
        return f"<{type(self).__name__} {where}{' (closed)' if self._closed else ''}>"

    def _call(self, name: str, options: CallOptions) -> Call:
        if self._closed:
            raise RegistryStateError(f"{self!r} is closed")
        return call_of(name, options, self.timeout, self.headers)

    def _predict(
        self, name: str, inputs: Any, output_filter: Sequence[str] | None, options: CallOptions
    ) -> Flow[dict[str, Array]]:
        return self._calls.predict(self._call(name, options), inputs, output_filter or ())

    def _classify(
        self, name: str, examples: Sequence[Any], context: Any, options: CallOptions
    ) -> Flow[Classifications]:
        return self._calls.classify(self._call(name, options), examples_bytes(examples), _context(context))

    def _regress(self, name: str, examples: Sequence[Any], context: Any, options: CallOptions) -> Flow[Array]:
        return self._calls.regress(self._call(name, options), examples_bytes(examples), _context(context))

    def _health(self, name: str | None, timeout: float | None) -> Flow[bool]:
        call = self._call(name or "any", {"timeout": timeout})
        try:
            return (yield from self._calls.health(call if name else None, call.deadline))
        except ServingError as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                return False
            raise


def _context(context: Any) -> bytes:
    return b"" if context is None else examples_bytes([context])[0]


class Client(_Common):
    """Calls models by blocking; for any number of threads at a time.

    Args:
        target: The URL of a server (`grpc://host:8500`, `grpcs://`, `http://host:8501`, `https://`,
            `grpc+unix:///path`), several URLs of one protocol that take turns, or an entered `ModelRegistry`, whose
            calls stay in the process.
        options: See `ClientOptions`.

    Raises:
        InvalidInputError: A URL that is none of these.

    Connections are made at the first call. Close the client, or use it by `with`.
    """

    def __init__(self, target: str | Sequence[str] | Registry, **options: Unpack[ClientOptions]) -> None:
        super().__init__(target, **options)
        self._connections = [self._connections_to(address) for address in self._addresses]

    def _connections_to(self, address: Address) -> _Blocking:
        if address.protocol == "grpc":
            from embedserve_client.grpc_connections import GrpcConnections

            return GrpcConnections(address, self)
        from embedserve_client.rest_connections import RestConnections

        return RestConnections(address, self)

    def _run(self, flow: Flow[T]) -> T:
        send: Callable[[Any], Any] = flow.send
        result: Any = None
        while True:
            try:
                step = send(result)
            except StopIteration as stop:
                found: T = stop.value
                return found
            send = flow.send
            try:
                if isinstance(step, Exchange):
                    result = self._connections[step.address].exchange(step)
                elif isinstance(step, Pause):
                    time.sleep(step.seconds)
                    result = None
                else:
                    result = step.blocking()
            except (Failure, ServingError) as error:
                send, result = flow.throw, error

    def predict(
        self,
        name: str,
        inputs: Any,
        *,
        output_filter: Sequence[str] | None = None,
        **options: Unpack[CallOptions],
    ) -> dict[str, Array]:
        """Answer a request.

        Args:
            name: The model.
            inputs: Values by input name, or the bare value of a signature with a single input. Arrays are sent as they
                are; lists and numbers take the declared dtypes, for which the client asks the server once.
            output_filter: Names of the outputs to return; None or empty returns all.
            options: See `CallOptions`.

        Returns:
            Outputs by name; string outputs are object arrays of `bytes`.

        Raises:
            ServableNotFoundError: The model or version is not available.
            InvalidModelSpecError: An unknown label, or a name, version or label of a wrong type.
            SignatureNotFoundError: The name of the signature is unknown.
            InvalidInputError: Names, dtypes, shapes or values do not fit.
            DeadlineExceededError: The timeout passed.
            ServingError: Any other error, with its code; UNAVAILABLE if no server could be reached.
        """
        return self._run(self._predict(name, inputs, output_filter, options))

    def classify(
        self, name: str, examples: Sequence[Any], *, context: Any = None, **options: Unpack[CallOptions]
    ) -> Classifications:
        """Classify `tf.Example`s: a list of (label, score) pairs for each example.

        Args:
            name: The model.
            examples: Serialized Examples, messages, or dictionaries of feature values.
            context: An Example whose features belong to all examples.
            options: See `CallOptions`.

        Raises:
            ServingError: As `predict`.
        """
        return self._run(self._classify(name, examples, context, options))

    def regress(
        self, name: str, examples: Sequence[Any], *, context: Any = None, **options: Unpack[CallOptions]
    ) -> Array:
        """Regress `tf.Example`s: float32 of shape `[examples]`; arguments and errors as `classify`."""
        return self._run(self._regress(name, examples, context, options))

    def metadata(self, name: str, **options: Unpack[CallOptions]) -> ModelMetadata:
        """The version that would answer, with its signatures.

        Raises:
            ServingError: As `predict`.
        """
        return self._run(self._calls.metadata(self._call(name, options)))

    def status(self, name: str, **options: Unpack[CallOptions]) -> tuple[VersionStatus, ...]:
        """The states of a model's versions, descending; with `version`, of that version alone.

        Raises:
            ServableNotFoundError: The server knows no such model or version.
            ServingError: As `predict`.
        """
        return self._run(self._calls.status(self._call(name, options)))

    def health(self, name: str | None = None, *, timeout: float | None = 5.0) -> bool:
        """Whether a model, or the server as a whole, can be reached and answers requests now."""
        return self._run(self._health(name, timeout))

    def close(self) -> None:
        """Close the connections; a closed client refuses calls. A registry stays entered."""
        self._closed = True
        for connections in self._connections:
            connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Common):
    """Calls models by awaiting; the tasks of an event loop share connections.

    A cancelled call is cancelled at the server.

    Target, options and errors as for `Client`.
    """

    def __init__(self, target: str | Sequence[str] | Registry, **options: Unpack[ClientOptions]) -> None:
        super().__init__(target, **options)
        self._connections = [self._connections_to(address) for address in self._addresses]

    def _connections_to(self, address: Address) -> _Awaited:
        if address.protocol == "grpc":
            from embedserve_client.grpc_connections import GrpcTasks

            return GrpcTasks(address, self)
        from embedserve_client.rest_connections import RestTasks

        return RestTasks(address, self)

    async def _run(self, flow: Flow[T]) -> T:
        send: Callable[[Any], Any] = flow.send
        result: Any = None
        while True:
            try:
                step = send(result)
            except StopIteration as stop:
                found: T = stop.value
                return found
            send = flow.send
            try:
                if isinstance(step, Exchange):
                    result = await self._connections[step.address].exchange(step)
                elif isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    result = None
                else:
                    result = await step.awaitable()
            except (Failure, ServingError) as error:
                send, result = flow.throw, error

    async def predict(
        self,
        name: str,
        inputs: Any,
        *,
        output_filter: Sequence[str] | None = None,
        **options: Unpack[CallOptions],
    ) -> dict[str, Array]:
        """Answer a request; as `Client.predict`."""
        return await self._run(self._predict(name, inputs, output_filter, options))

    async def classify(
        self, name: str, examples: Sequence[Any], *, context: Any = None, **options: Unpack[CallOptions]
    ) -> Classifications:
        """Classify `tf.Example`s; as `Client.classify`."""
        return await self._run(self._classify(name, examples, context, options))

    async def regress(
        self, name: str, examples: Sequence[Any], *, context: Any = None, **options: Unpack[CallOptions]
    ) -> Array:
        """Regress `tf.Example`s; as `Client.regress`."""
        return await self._run(self._regress(name, examples, context, options))

    async def metadata(self, name: str, **options: Unpack[CallOptions]) -> ModelMetadata:
        """The version that would answer, with its signatures; as `Client.metadata`."""
        return await self._run(self._calls.metadata(self._call(name, options)))

    async def status(self, name: str, **options: Unpack[CallOptions]) -> tuple[VersionStatus, ...]:
        """The states of a model's versions; as `Client.status`."""
        return await self._run(self._calls.status(self._call(name, options)))

    async def health(self, name: str | None = None, *, timeout: float | None = 5.0) -> bool:
        """Whether a model, or the server as a whole, can be reached and answers requests now."""
        return await self._run(self._health(name, timeout))

    async def aclose(self) -> None:
        """Close the connections; a closed client refuses calls. A registry stays entered."""
        self._closed = True
        for connections in self._connections:
            await connections.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
