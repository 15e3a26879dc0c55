"""Every call of the client as a flow, over gRPC, over REST and in process.

The flows know the protocols' messages and the declared signatures, and no socket. `Client` and `AsyncClient` perform
the flows' steps.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict, TypeVar
from urllib.parse import quote

import numpy as np

from embedserve_client import json_forms, messages
from embedserve_client.dtypes import Array, as_array, by_name, convert
from embedserve_client.errors import (
    Code,
    InvalidInputError,
    ServableNotFoundError,
    ServingError,
    SignatureNotFoundError,
    UnsupportedError,
)
from embedserve_client.exchange import Ask, Flow, Reply, Request, deadline_of, time_left
from embedserve_client.model import (
    DEFAULT_SIGNATURE,
    Classifications,
    ModelMetadata,
    ModelSpec,
    Signature,
    State,
    TensorSpec,
    VersionStatus,
    model_spec,
)

__all__ = ["Call", "CallOptions", "Calls", "GrpcCalls", "RegistryCalls", "RestCalls", "call_of"]

T = TypeVar("T")
Send = Callable[[Request, float | None], Generator[Any, Any, Reply]]

_PREDICTION = "/tensorflow.serving.PredictionService/"
_MODEL = "/tensorflow.serving.ModelService/"
_HEALTH = "/grpc.health.v1.Health/Check"
_PRIORITY = "x-embedserve-priority"
_REQUEST_ID = "x-request-id"
_TRACEPARENT = "traceparent"
_NAME = re.compile(r"[a-z0-9!#$&'*+.^_`|~-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_KNOWN_MODELS = 256
"""Models whose signatures are remembered; at the bound all are forgotten."""


class CallOptions(TypedDict, total=False):
    """Keyword options of a call.

    Attributes:
        version: The number of the version; the latest available without it.
        label: A label of the version.
        signature_name: A signature of the version.
        timeout: Seconds for the whole call with its repetitions; the client's own timeout without it.
        priority: How urgent the request is, for embedserve.
        request_id: Sent as `x-request-id`.
        traceparent: Sent as `traceparent`, W3C's trace context.
        headers: More headers or metadata; names in lower case, values of printable ASCII.
    """

    version: int | None
    label: str | None
    signature_name: str
    timeout: float | None
    priority: Literal["high", "normal", "low"]
    request_id: str
    traceparent: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Call:
    """The checked target and options of a call."""

    spec: ModelSpec
    signature_name: str
    deadline: float | None
    priority: str
    headers: tuple[tuple[str, str], ...]


def call_of(name: str, options: CallOptions, timeout: float | None, headers: Mapping[str, str]) -> Call:
    """Check the options of a call; `timeout` and `headers` are the client's own.

    Raises:
        InvalidModelSpecError: As `model_spec`.
        InvalidInputError: A header that cannot be sent, or a bad timeout.
        TypeError: An unknown option.
    """
    unknown = options.keys() - CallOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option of a call: {', '.join(sorted(unknown))}")
    spec = model_spec(name, options.get("version"), options.get("label"))
    sent = {**headers, **(options.get("headers") or {})}
    for key, option in ((_REQUEST_ID, "request_id"), (_TRACEPARENT, "traceparent")):
        if options.get(option) is not None:
            sent[key] = str(options[option])  # type: ignore[literal-required]
    priority = options.get("priority", "normal")
    if priority != "normal":
        sent[_PRIORITY] = priority
    for key, value in sent.items():
        if not _NAME.fullmatch(key) or not _VALUE.fullmatch(value) or key.startswith(("grpc-", ":")):
            raise InvalidInputError(f"the header {key!r}: {value!r} cannot be sent")
    signature_name = options.get("signature_name") or DEFAULT_SIGNATURE
    seconds = options.get("timeout", timeout)
    return Call(spec, signature_name, deadline_of(seconds), priority, tuple(sent.items()))


class Calls(Protocol):
    """The calls of a client as flows."""

    def predict(self, call: Call, inputs: Any, output_filter: Sequence[str]) -> Flow[dict[str, Array]]:
        """The outputs by name."""

    def classify(self, call: Call, examples: Sequence[bytes], context: bytes) -> Flow[Classifications]:
        """(label, score) pairs for each example."""

    def regress(self, call: Call, examples: Sequence[bytes], context: bytes) -> Flow[Array]:
        """A value for each example."""

    def metadata(self, call: Call) -> Flow[ModelMetadata]:
        """The version with its signatures."""

    def status(self, call: Call) -> Flow[tuple[VersionStatus, ...]]:
        """The versions of a model."""

    def health(self, call: Call | None, deadline: float | None) -> Flow[bool]:
        """Whether a model, or the server without a call, answers."""


class _Known:
    """The signatures that servers have declared, by model spec."""

    def __init__(self) -> None:
        self._found: dict[ModelSpec, ModelMetadata] = {}

    def get(self, spec: ModelSpec) -> ModelMetadata | None:
        return self._found.get(spec)

    def put(self, spec: ModelSpec, metadata: ModelMetadata) -> None:
        if len(self._found) >= _KNOWN_MODELS:
            self._found.clear()
        self._found[spec] = metadata


def _signature_of(metadata: ModelMetadata, name: str) -> Signature:
    found = metadata.signatures.get(name)
    if found is None:
        known = ", ".join(sorted(metadata.signatures)) or "none"
        raise SignatureNotFoundError(f'Serving signature key "{name}" not found. Available signatures: {known}')
    return found


def _named(inputs: Any, signature: Signature | None) -> Mapping[str, Any]:
    """Inputs by name; a bare value belongs to the only input of the signature."""
    if isinstance(inputs, Mapping):
        return inputs
    if signature is None or len(signature.inputs) != 1:
        names = "" if signature is None else f" {', '.join(signature.inputs)}"
        raise InvalidInputError(f"expects a mapping of values by input name{names}, got {type(inputs).__name__}")
    (name,) = signature.inputs
    return {name: inputs}


def _bound(inputs: Any, signature: Signature) -> dict[str, Array]:
    """The inputs in the declared dtypes; names that the signature lacks are left to the server's own error."""
    found = {}
    for name, value in _named(inputs, signature).items():
        spec = signature.inputs.get(name)
        found[name] = as_array(value) if spec is None else convert(value, by_name(spec.dtype), name)
    return found


class _Remote:
    """What both protocols do with declared signatures.

    Args:
        send: Makes the flow of a request with its repetitions.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._known = _Known()

    def _metadata(self, call: Call) -> Flow[ModelMetadata]:
        raise NotImplementedError

    def metadata(self, call: Call) -> Flow[ModelMetadata]:
        """The version with its signatures; remembered for `predict`."""
        found = yield from self._metadata(call)
        self._known.put(call.spec, found)
        return found

    def _declared(self, call: Call) -> Flow[Signature]:
        known = self._known.get(call.spec)
        if known is None or call.signature_name not in known.signatures:
            known = yield from self.metadata(call)
        return _signature_of(known, call.signature_name)

    def _declared_anew(self, call: Call, before: Signature | None) -> Flow[Signature | None]:
        """The signature as declared now; None where nothing else than before is declared."""
        found = _signature_of((yield from self.metadata(call)), call.signature_name)
        return None if found == before else found


class GrpcCalls(_Remote):
    """The calls over gRPC."""

    def _rpc(self, call: Call, path: str, *parts: bytes | memoryview) -> Flow[bytes]:
        reply = yield from self._send(Request(path, parts, call.headers), call.deadline)
        return reply.body

    def predict(self, call: Call, inputs: Any, output_filter: Sequence[str]) -> Flow[dict[str, Array]]:
        """The outputs by name.

        Arrays are sent as they are, and after a refusal, or with lists and numbers, in the declared dtypes.
        """
        known = self._known.get(call.spec)
        signature = known.signatures.get(call.signature_name) if known is not None else None
        if signature is None and not _typed(inputs):
            signature = yield from self._declared(call)
        bound = _bound(inputs, signature) if signature is not None else {n: as_array(v) for n, v in inputs.items()}
        try:
            return (yield from self._predict(call, bound, output_filter))
        except ServingError as error:
            if error.code not in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION):
                raise
            refusal = error
        # The model has another version now, or takes other dtypes than the arrays have.
        try:
            declared = yield from self._declared_anew(call, signature)
        except UnsupportedError:
            declared = None
        again = bound if declared is None else _bound(inputs, declared)
        if all(again[name] is bound.get(name) for name in again):
            raise refusal
        return (yield from self._predict(call, again, output_filter))

    def _predict(self, call: Call, bound: Mapping[str, Array], output_filter: Sequence[str]) -> Flow[dict[str, Array]]:
        parts = messages.predict_request(call.spec, call.signature_name, bound, output_filter)
        return messages.predict_response((yield from self._rpc(call, _PREDICTION + "Predict", *parts)))

    def classify(self, call: Call, examples: Sequence[bytes], context: bytes) -> Flow[Classifications]:
        """(label, score) pairs for each example."""
        kind = "ClassificationRequest"
        body = messages.classify_request(kind, call.spec, call.signature_name, examples, context)
        return messages.classify_response((yield from self._rpc(call, _PREDICTION + "Classify", body)))

    def regress(self, call: Call, examples: Sequence[bytes], context: bytes) -> Flow[Array]:
        """A value for each example."""
        kind = "RegressionRequest"
        body = messages.classify_request(kind, call.spec, call.signature_name, examples, context)
        return messages.regress_response((yield from self._rpc(call, _PREDICTION + "Regress", body)))

    def _metadata(self, call: Call) -> Flow[ModelMetadata]:
        body = messages.metadata_request(call.spec)
        return messages.metadata_response((yield from self._rpc(call, _PREDICTION + "GetModelMetadata", body)))

    def status(self, call: Call) -> Flow[tuple[VersionStatus, ...]]:
        """The versions of a model."""
        body = messages.status_request(call.spec)
        return messages.status_response((yield from self._rpc(call, _MODEL + "GetModelStatus", body)))

    def health(self, call: Call | None, deadline: float | None) -> Flow[bool]:
        """Whether a model, or the server without a call, answers."""
        service = call.spec.name if call is not None else ""
        try:
            reply = yield from self._send(Request(_HEALTH, [messages.health_request(service)]), deadline)
            return messages.health_response(reply.body)
        except UnsupportedError:  # The server has no health service.
            return True if call is None else (yield from _available(self, call))
        except ServableNotFoundError:
            return False


def _typed(inputs: Any) -> bool:
    """Whether all inputs are arrays with a dtype that somebody chose."""
    return isinstance(inputs, Mapping) and all(isinstance(each, np.ndarray) for each in inputs.values())


def _available(calls: Calls, call: Call) -> Flow[bool]:
    try:
        versions = yield from calls.status(call)
    except ServableNotFoundError:
        return False
    return any(each.state == State.AVAILABLE for each in versions)


class RestCalls(_Remote):
    """The calls over REST."""

    def __init__(self, send: Send) -> None:
        super().__init__(send)
        self._json = (("content-type", "application/json"),)

    def _path(self, spec: ModelSpec) -> str:
        path = f"/v1/models/{quote(spec.name, safe='')}"
        if spec.version is not None:
            return f"{path}/versions/{spec.version}"
        return path if spec.label is None else f"{path}/labels/{quote(spec.label, safe='')}"

    def _get(self, path: str, headers: Sequence[tuple[str, str]], deadline: float | None) -> Flow[bytes]:
        return (yield from self._send(Request(path, None, headers), deadline)).body

    def _post(self, call: Call, verb: str, body: bytes) -> Flow[bytes]:
        request = Request(f"{self._path(call.spec)}:{verb}", [body], (*self._json, *call.headers))
        return (yield from self._send(request, call.deadline)).body

    def predict(self, call: Call, inputs: Any, output_filter: Sequence[str]) -> Flow[dict[str, Array]]:
        """The outputs by name, in the declared dtypes: JSON has none."""
        signature = yield from self._declared(call)
        try:
            return (yield from self._predict(call, inputs, output_filter, signature))
        except ServingError as error:
            if error.code not in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION):
                raise
            refusal = error
        declared = yield from self._declared_anew(call, signature)
        if declared is None:
            raise refusal
        return (yield from self._predict(call, inputs, output_filter, declared))

    def _predict(
        self, call: Call, inputs: Any, output_filter: Sequence[str], signature: Signature
    ) -> Flow[dict[str, Array]]:
        unknown = [name for name in output_filter if name not in signature.outputs]
        if unknown:
            raise InvalidInputError(f'output tensor alias not found in signature: "{unknown[0]}"')
        body = json_forms.predict_body(call.signature_name, _bound(inputs, signature), output_filter)
        return json_forms.parse_predict((yield from self._post(call, "predict", body)), signature, output_filter)

    def classify(self, call: Call, examples: Sequence[bytes], context: bytes) -> Flow[Classifications]:
        """(label, score) pairs for each example."""
        body = json_forms.examples_body(call.signature_name, examples, context)
        return json_forms.parse_classify((yield from self._post(call, "classify", body)))

    def regress(self, call: Call, examples: Sequence[bytes], context: bytes) -> Flow[Array]:
        """A value for each example."""
        body = json_forms.examples_body(call.signature_name, examples, context)
        return json_forms.parse_regress((yield from self._post(call, "regress", body)))

    def _metadata(self, call: Call) -> Flow[ModelMetadata]:
        path = f"{self._path(call.spec)}/metadata"
        return json_forms.parse_metadata((yield from self._get(path, call.headers, call.deadline)))

    def status(self, call: Call) -> Flow[tuple[VersionStatus, ...]]:
        """The versions of a model."""
        return json_forms.parse_status((yield from self._get(self._path(call.spec), call.headers, call.deadline)))

    def health(self, call: Call | None, deadline: float | None) -> Flow[bool]:
        """Whether a model, or the server without a call, answers."""
        if call is not None:
            return (yield from _available(self, call))
        try:
            yield from self._get("/-/ready", (), deadline)
        except ServingError as error:
            # TensorFlow Serving has no such path, and answers when its models are loaded.
            return error.code == Code.NOT_FOUND
        return True


class RegistryCalls:
    """The calls in process, on the public API of embedserve's registry."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def predict(self, call: Call, inputs: Any, output_filter: Sequence[str]) -> Flow[dict[str, Array]]:
        """The outputs by name."""
        registry = self._registry
        options: dict[str, Any] = {
            "version": call.spec.version,
            "label": call.spec.label,
            "signature_name": call.signature_name,
            "output_filter": output_filter or None,
            "timeout": time_left(call.deadline),
            "priority": call.priority,
        }
        found: dict[str, Array] = yield Ask(
            lambda: registry.predict_sync(call.spec.name, inputs, **options),
            lambda: registry.predict(call.spec.name, inputs, **options),
        )
        return found

    def _with_handle(self, call: Call, blocking: Callable[[Any], T], awaited: Callable[[Any], Awaitable[T]]) -> Flow[T]:
        registry, spec = self._registry, call.spec

        def held() -> T:
            with registry.acquire_sync(spec.name, version=spec.version, label=spec.label) as handle:
                return blocking(handle)

        async def held_awaited() -> T:
            async with registry.acquire(spec.name, version=spec.version, label=spec.label) as handle:
                return await awaited(handle)

        found: T = yield Ask(held, held_awaited)
        return found

    def _examples(self, method: str, call: Call, examples: Sequence[bytes], context: bytes) -> Flow[Any]:
        options: dict[str, Any] = {
            "context": context or None,
            "signature_name": call.signature_name,
            "timeout": time_left(call.deadline),
            "priority": call.priority,
        }
        return (
            yield from self._with_handle(
                call,
                lambda handle: getattr(handle, f"{method}_sync")(examples, **options),
                lambda handle: getattr(handle, method)(examples, **options),
            )
        )

    def classify(self, call: Call, examples: Sequence[bytes], context: bytes) -> Flow[Classifications]:
        """(label, score) pairs for each example."""
        found: Classifications = yield from self._examples("classify", call, examples, context)
        return found

    def regress(self, call: Call, examples: Sequence[bytes], context: bytes) -> Flow[Array]:
        """A value for each example."""
        found: Array = yield from self._examples("regress", call, examples, context)
        return found

    def metadata(self, call: Call) -> Flow[ModelMetadata]:
        """The version with its signatures."""

        async def awaited(handle: Any) -> ModelMetadata:
            return _metadata_of(handle)

        return (yield from self._with_handle(call, _metadata_of, awaited))

    def status(self, call: Call) -> Flow[tuple[VersionStatus, ...]]:
        """The versions of a model."""
        yield from ()
        name, version = call.spec.name, call.spec.version
        listed = self._registry.status(name).get(name, ())
        found = [
            VersionStatus(each.version, State(int(each.state)), Code(int(each.code)), each.error_message)
            for each in listed
            if version is None or each.version == version
        ]
        if not found:
            wanted = "any versions" if version is None else f"version {version}"
            raise ServableNotFoundError(f"Could not find {wanted} of model {name}")
        return tuple(sorted(found, key=lambda each: -each.version))

    def health(self, call: Call | None, deadline: float | None) -> Flow[bool]:
        """Whether a model, or the registry without a call, answers."""
        yield from ()
        registry = self._registry
        if registry.draining:
            return False
        if call is None:
            return bool(registry.unready() is None)
        return bool(registry.readiness().get(call.spec.name, "unknown") is None)


def _metadata_of(handle: Any) -> ModelMetadata:
    signatures = {
        name: Signature(
            name, _specs(one.inputs), _specs(one.outputs), one.method_name, tuple(sorted(getattr(one, "defaults", ())))
        )
        for name, one in sorted(handle.signatures.items())
    }
    return ModelMetadata(handle.name, handle.version, signatures)


def _specs(specs: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, specs[name].dtype.name, specs[name].shape) for name in sorted(specs)}
