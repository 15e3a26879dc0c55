"""The Open Inference Protocol over REST: a request below `/v2` to an answer, through the registry's public API only.

Every error is the protocol's document. The module knows no ASGI.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import orjson

from embedserve.asgi.clients import is_loopback
from embedserve.concurrency import off_loop
from embedserve.config import Clients
from embedserve.errors import (
    Code,
    DeadlineExceededError,
    InvalidInputError,
    RegistryStateError,
    ServingError,
    UnsupportedError,
)
from embedserve.oip import documents
from embedserve.oip.repository import Repository, check_parameters
from embedserve.oip.requests import classified, shorter
from embedserve.oip.statistics import statistics_of
from embedserve.priority import PriorityName
from embedserve.request_log.records import predict_exchange
from embedserve.rest.errors import HTTP_STATUS, Response, json_response, wire_code
from embedserve.rest.oip.body import UnsupportedMediaError
from embedserve.rest.oip.payload import encode_infer, parse_infer
from embedserve.rest.oip.target import Operation, WrongMethodError
from embedserve.tensors import sizes

if TYPE_CHECKING:
    from embedserve.concurrency.inflight import Reservation
    from embedserve.handle import ModelHandle
    from embedserve.registry import ModelRegistry
    from embedserve.servable import Tensors

__all__ = ["OipApi", "Sender", "error_response"]

T = TypeVar("T")

JSON_SIZE = b"inference-header-content-length"
_JSON = ((b"content-type", b"application/json"),)
_BINARY = ((b"content-type", b"application/octet-stream"),)
_MIN_COUNTED = 1024
"""Bytes of a document up to which the memory for reading is not worth the counting."""
_MIN_ZIPPED = 256
"""Bytes of an answer below which compression saves nothing."""


class Sender(NamedTuple):
    """The client of a request, as far as the API asks.

    Attributes:
        headers: Names in lower case, and values.
        address: The client's address; None for Unix sockets' clients and on hosts that know none.
        priority: From the header of the REST API.
    """

    headers: Mapping[bytes, bytes]
    address: str | None
    priority: PriorityName


def error_response(error: ServingError) -> Response:
    """The protocol's document of an error, with a status for the kind of error."""
    status = HTTP_STATUS.get(wire_code(error), 500)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, WrongMethodError):
        status, headers = 405, ((b"allow", error.allowed.encode()),)
    elif isinstance(error, UnsupportedMediaError):
        status = 415
    # Lone surrogates of a client's text are no UTF-8.
    text = error.message.encode("utf-8", "replace").decode()
    response = json_response(orjson.dumps({"error": text}), status)
    return response._replace(headers=(*response.headers, *headers))


@dataclass(frozen=True)
class OipApi:
    """The operations of the protocol over a registry.

    Attributes:
        registry: The registry of the models.
        repository: Loads and unloads models.
        changed_by: The clients that may load and unload models.
        timeout: Seconds allowed for an inference; None sets no limit.
    """

    registry: ModelRegistry
    repository: Repository
    changed_by: Clients
    timeout: float | None

    async def read(self, operation: Operation) -> Response:
        """Answer a GET request."""
        registry = self.registry
        match operation.action:
            case "server":
                return _document(documents.server_metadata())
            case "live":
                return _health(lambda: _check_live(registry), "live")
            case "ready":
                return _health(lambda: documents.check_server_ready(registry), "ready")
            case "model_ready":
                name, version = operation.name, operation.version
                return _health(lambda: documents.check_model_ready(registry, name, version), "ready", name)
            case "stats":
                counted = statistics_of(registry)
                return _document(documents.model_statistics(registry, counted, operation.name, operation.version))
        with documents.acquire(registry, operation.name, operation.version) as handle:
            signature = handle.signature(operation.signature_name)
            if operation.action == "config":
                return _document(documents.model_config(handle, signature))
            return _document(documents.model_metadata(registry, handle, signature))

    async def post(self, operation: Operation, sender: Sender, body: bytes, held: Reservation) -> Response:
        """Answer a POST request; `held` holds the body, and then the answer."""
        if operation.action == "infer":
            return await self._infer(operation, sender, body, held)
        given = orjson_object(body)
        if operation.action == "index":
            return _document(documents.index_entries(self.registry, given.get("ready") is True))
        self._check_may_change(sender)
        parameters = given.get("parameters") or {}
        if operation.action == "load":
            check_parameters(parameters if isinstance(parameters, dict) else ())
            await self.repository.load(operation.name)
        else:
            await self.repository.unload(operation.name)
        return _document({})

    def _check_may_change(self, sender: Sender) -> None:
        if self.changed_by == "none":
            raise UnsupportedError("the change of models is off; --reload_clients=local or all turns it on")
        if self.changed_by == "all":
            return
        # A web page of another origin makes plain POST requests from its visitor's machine.
        origin, host = sender.headers.get(b"origin"), sender.headers.get(b"host", b"")
        foreign = origin is not None and origin.partition(b"://")[2] != host
        if foreign or sender.address is None or not is_loopback(sender.address):
            raise ServingError(
                "the change of models answers clients on its own machine only; see --reload_clients",
                code=Code.PERMISSION_DENIED,
            )

    async def _infer(self, operation: Operation, sender: Sender, body: bytes, held: Reservation) -> Response:
        registry, run = self.registry, self.registry.run_in_thread
        counted = statistics_of(registry)
        began, before = perf_counter(), held.size
        json_size = _json_size(sender.headers)
        text = body if json_size is None else body[:json_size]
        large = len(text) > off_loop.JSON_BODY_BYTES
        if len(text) > _MIN_COUNTED:  # A smaller one is read at once, and its tree is gone before the next is read.
            needed = await run(sizes.json_document_bytes, text) if large else sizes.json_document_bytes(text)
            held.grow(needed, "reading the JSON document")
        parse = parse_infer
        received = await self._in_time(run(parse, body, json_size)) if large else parse(body, json_size)
        asked = received.request
        with documents.acquire(registry, operation.name, operation.version) as handle:
            signature = handle.signature(asked.signature_name)
            if registry.options.enable_signature_method_name_check:
                signature.check_predict_method()
            made = received.declare(signature)
            if made:
                held.grow(made, "the inputs")
            slow = large or made > off_loop.MESSAGE_BYTES
            inputs = await self._in_time(run(received.decode)) if slow else received.decode()
            bound = signature.bind(inputs, cast=False)
            names = signature.pick(asked.output_names) if asked.outputs else None
            del received
            held.become(before + sum([sizes.array_bytes(array) for array in inputs.values()]))
            timeout = shorter(self.timeout, asked.timeout)
            read = perf_counter()
            outputs = await handle.run(signature, bound, names, timeout, asked.priority or sender.priority)
            ran = perf_counter()
            response = await self._answer(handle, asked, outputs, sender, held)
            log = handle.request_log()
            if log is not None:
                log.add(predict_exchange(handle.name, handle.version, signature, bound, outputs))
            counted.translated(handle.name, handle.version, read - began, perf_counter() - ran)
            return response

    async def _in_time(self, reading: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.timeout):
                return await reading
        except TimeoutError:
            raise DeadlineExceededError(f"the body was not read within {self.timeout:g} s") from None

    async def _answer(
        self, handle: ModelHandle, asked: Any, outputs: Tensors, sender: Sender, held: Reservation
    ) -> Response:
        run = self.registry.run_in_thread
        as_text = {name: array for name, array in outputs.items() if not asked.is_binary(name, False)}
        made = sum([sizes.array_bytes(array) for array in outputs.values()])
        text = sizes.json_text_bytes(as_text.values()) if as_text else 0
        held.add(2 * made + text, "the answer")

        def encode() -> tuple[bytes, int | None]:
            return encode_infer(handle.name, handle.version, asked, classified(outputs, asked.outputs))

        slow = outputs if any(output.classes for output in asked.outputs) else as_text
        large = made > off_loop.MESSAGE_COPY_BYTES or (bool(slow) and _cost(slow) > off_loop.JSON_OUTPUT_BYTES)
        body, json_size = await run(encode) if large else encode()
        headers = _JSON if json_size is None else (*_BINARY, (JSON_SIZE, b"%d" % json_size))
        response = Response(200, body, headers, held)
        coding = sender.headers.get(b"accept-encoding")
        return response if coding is None else await self._zipped(response, coding, held)

    async def _zipped(self, response: Response, coding: bytes, held: Reservation) -> Response:
        """The answer in the one coding that the client names; a list of codings is a library's default, not a wish."""
        coding = coding.strip().lower()
        compress = _COMPRESS.get(coding)
        if compress is None or len(response.body) < _MIN_ZIPPED:
            return response
        body = response.body
        held.add(len(body), "the answer, compressed")
        small = len(body) <= off_loop.ZIPPED_BYTES
        zipped = compress(body) if small else await self.registry.run_in_thread(compress, body)
        added = ((b"content-encoding", coding), (b"vary", b"accept-encoding"))
        return response._replace(body=zipped, headers=(*response.headers, *added))


_COMPRESS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"gzip": lambda body: gzip.compress(body, 6),
    b"deflate": lambda body: zlib.compress(body, 6),
}


def _document(document: Any) -> Response:
    return json_response(orjson.dumps(document))


def _health(check: Callable[[], None], what: str, name: str | None = None) -> Response:
    """200, or 503 with the reason; 404 for an unknown model."""
    document: dict[str, Any] = {} if name is None else {"name": name}
    status = 200
    try:
        check()
    except RegistryStateError as error:
        status = 503
        document |= {what: False, "error": error.message}
    else:
        document[what] = True
    response = json_response(orjson.dumps(document), status)
    return response._replace(headers=(*response.headers, (b"cache-control", b"no-store")))


def _check_live(registry: ModelRegistry) -> None:
    trouble = registry.liveness()
    if trouble is not None:
        raise RegistryStateError(trouble)


def _json_size(headers: Mapping[bytes, bytes]) -> int | None:
    value = headers.get(JSON_SIZE)
    if value is None:
        return None
    if not value.isdigit() or len(value) >= 20:
        raise InvalidInputError(
            f"Inference-Header-Content-Length is {value[:100].decode('latin-1')!r}, expected a number of bytes"
        )
    return int(value)


def _cost(outputs: Tensors) -> int:
    cost = 0
    for array in outputs.values():
        cost += array.size * off_loop.JSON_STRING_BYTES if array.dtype.hasobject else array.nbytes
    return cost


def orjson_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a small request; an empty body is an empty object.

    Raises:
        InvalidInputError: No JSON, or no object.
    """
    if not body.strip():
        return {}
    try:
        value = orjson.loads(body)
    except ValueError as error:
        raise InvalidInputError(f"JSON Parse error: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInputError("the body is no JSON object")
    return value
