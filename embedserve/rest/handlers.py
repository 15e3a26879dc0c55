"""The work of each REST route, from a body to an answer, through the registry's public API only.

The functions take a matched route and raise ServingError. The module knows no statuses and no headers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import orjson

from embedserve.concurrency import off_loop
from embedserve.errors import DeadlineExceededError, InvalidInputError, ServableNotFoundError
from embedserve.request_log.records import Exchange, classify_exchange, predict_exchange, regress_exchange
from embedserve.rest import payload
from embedserve.rest.api_document import Loaded, document, loaded
from embedserve.rest.target import Route
from embedserve.signature import DEFAULT_SIGNATURE
from embedserve.tensors import sizes

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from embedserve.concurrency.inflight import Reservation
    from embedserve.handle import ModelHandle
    from embedserve.priority import PriorityName
    from embedserve.registry import ModelRegistry
    from embedserve.rest.media_types import AnswerForm, Field, Wishes
    from embedserve.servable import Tensors
    from embedserve.signature import Signature

__all__ = ["about_document", "get", "openapi_document", "post", "predict_as"]

T = TypeVar("T")


def post(
    registry: ModelRegistry,
    route: Route,
    body: bytes,
    held: Reservation,
    timeout: float | None,
    priority: PriorityName = "normal",
) -> Awaitable[bytes]:
    """Answer `:predict`, `:classify` or `:regress` under a single handle.

    The body is parsed before the model lookup, so malformed JSON for an unknown model is reported as malformed JSON.
    `held` reserves the body, and then the parsed request and the answer.
    """
    answer = _predict if route.action == "predict" else _run_examples
    return answer(registry, route, body, held, timeout, priority)


async def get(registry: ModelRegistry, route: Route) -> bytes:
    """Answer a request for the list of models, or for a model's status or metadata."""
    if route.action == "list":
        return list_document(registry)
    if route.action == "metadata":
        with _acquire(registry, route) as handle:
            return await registry.run_in_thread(
                metadata_document, handle.name, handle.version, dict(handle.signature_defs)
            )
    return status_document(registry, route)


def _acquire(registry: ModelRegistry, route: Route) -> ModelHandle:
    return registry.acquire_now(route.name, version=route.version, label=route.label)


async def _reserve_document(registry: ModelRegistry, body: bytes, held: Reservation) -> None:
    """Reserve the bytes that reading a document may take, before the reading."""
    large = len(body) > off_loop.JSON_BODY_BYTES
    size = await registry.run_in_thread(sizes.json_document_bytes, body) if large else sizes.json_document_bytes(body)
    held.grow(size, "reading the JSON document")


async def _in_time(reading: Awaitable[T], timeout: float | None) -> T:
    """Wait for a thread that reads a body; a thread over the time is told to give up.

    Raises:
        DeadlineExceededError: `timeout` seconds have passed.
    """
    try:
        async with asyncio.timeout(timeout):
            return await reading
    except TimeoutError:
        raise DeadlineExceededError(f"the body was not read within {timeout:g} s") from None


async def _predict(
    registry: ModelRegistry,
    route: Route,
    body: bytes,
    held: Reservation,
    timeout: float | None,
    priority: PriorityName,
) -> bytes:
    large = len(body) > off_loop.JSON_BODY_BYTES
    run = registry.run_in_thread
    before = held.size
    await _reserve_document(registry, body, held)
    request = await _in_time(run(payload.parse_predict, body), timeout) if large else payload.parse_predict(body)
    with _acquire(registry, route) as handle:
        signature = _signature(handle, request.signature_name or DEFAULT_SIGNATURE)
        decode = request.decode
        inputs, row_format = await _in_time(run(decode, signature), timeout) if large else decode(signature)
        if registry.options.enable_signature_method_name_check:
            signature.check_predict_method()
        bound = signature.bind(inputs)
        names = signature.pick(request.output_filter) if request.output_filter else None
        del request, decode
        held.become(before + sum([sizes.array_bytes(array) for array in inputs.values()]))
        outputs = await handle.run(signature, bound, names, timeout, priority)
        large = _cost(outputs) > off_loop.JSON_OUTPUT_BYTES
        made = sum([sizes.array_bytes(array) for array in outputs.values()])
        held.add(made + sizes.json_text_bytes(outputs.values()), "the answer")
        encode = payload.encode_predict
        answer = await run(encode, outputs, signature, row_format) if large else encode(outputs, signature, row_format)
        log = handle.request_log()
        if log is not None:
            log.add(predict_exchange(handle.name, handle.version, signature, inputs, outputs))
        return answer


def _signature(handle: ModelHandle, name: str) -> Signature:
    signature = handle.signatures.get(name)
    if signature is None:
        known = ", ".join(sorted(handle.signatures)) or "none"
        raise InvalidInputError(
            f'Serving signature name: "{name}" not found in signature def.'
            f"{handle.why_absent(name)} Available signatures: {known}"
        )
    return signature


async def predict_as(
    wishes: Wishes,
    registry: ModelRegistry,
    route: Route,
    body: bytes,
    held: Reservation,
    timeout: float | None,
    priority: PriorityName = "normal",
) -> tuple[bytes, tuple[Field, ...]]:
    """Answer `:predict` in the forms of `wishes`, with the steps and the errors of a JSON request.

    Returns:
        The body of the answer, and the fields for its head.
    """
    form = wishes.body
    large = len(body) > form.thread_bytes
    run = registry.run_in_thread
    before = held.size
    held.grow(await run(form.size, body) if large else form.size(body), "reading the body")
    read = form.read
    request = await _in_time(run(read, body, wishes.parameters), timeout) if large else read(body, wishes.parameters)
    with _acquire(registry, route) as handle:
        signature = _signature(handle, request.signature_name)
        names = signature.pick(request.output_filter) if request.output_filter else None
        answer = _fitting(wishes.answers, signature, names)
        held.grow(request.size(signature), "reading the inputs")
        decode = request.decode
        inputs, row_format = await _in_time(run(decode, signature), timeout) if large else decode(signature)
        if registry.options.enable_signature_method_name_check:
            signature.check_predict_method()
        bound = signature.bind(inputs)
        del request, decode
        held.become(before + sum([sizes.array_bytes(array) for array in inputs.values()]))
        outputs = await handle.run(signature, bound, names, timeout, priority)
        large = _cost(outputs) > off_loop.JSON_OUTPUT_BYTES
        held.add(sum([sizes.array_bytes(array) for array in outputs.values()]) + answer.size(outputs), "the answer")
        write = answer.write
        written = await run(write, outputs, signature, row_format) if large else write(outputs, signature, row_format)
        log = handle.request_log()
        if log is not None:
            log.add(predict_exchange(handle.name, handle.version, signature, inputs, outputs))
        return written


def _fitting(answers: Sequence[AnswerForm], signature: Signature, names: Sequence[str] | None) -> AnswerForm:
    """The first form that can carry the outputs; raises the error of the last form."""
    specs = [signature.outputs[name] for name in (signature.outputs if names is None else names)]
    *preferred, last = answers
    for answer in preferred:
        try:
            answer.check(specs)
        except InvalidInputError:
            continue
        return answer
    last.check(specs)
    return last


def _cost(outputs: Tensors) -> int:
    cost = 0
    for array in outputs.values():
        cost += array.size * off_loop.JSON_STRING_BYTES if array.dtype.hasobject else array.nbytes
    return cost


async def _run_examples(
    registry: ModelRegistry,
    route: Route,
    body: bytes,
    held: Reservation,
    timeout: float | None,
    priority: PriorityName,
) -> bytes:
    large = len(body) > off_loop.JSON_BODY_BYTES
    run = registry.run_in_thread
    parse = payload.parse_examples
    before = held.size
    await _reserve_document(registry, body, held)
    request = await _in_time(run(parse, body), timeout) if large else parse(body)
    held.become(before + sum(map(len, request.examples)))
    context = len(request.context or b"")
    made = sizes.repeated_examples(len(request.examples), context)
    held.add(made, f"{len(request.examples)} examples with a context of {context} bytes")
    examples = await run(request.merged) if made > off_loop.JSON_BODY_BYTES else request.merged()
    with _acquire(registry, route) as handle:
        call = handle.classify if route.action == "classify" else handle.regress
        encode: Callable[..., bytes] = payload.encode_classify if route.action == "classify" else payload.encode_regress
        result = await call(
            examples,
            signature_name=request.signature_name,
            timeout=timeout,
            priority=priority,
        )
        many = len(result) > off_loop.JSON_RESULTS
        held.add(sizes.results_bytes(result), "the answer")
        answer = await run(encode, result) if many else encode(result)
        log = handle.request_log()
        if log is not None:
            exchange: Callable[..., Exchange] = classify_exchange if route.action == "classify" else regress_exchange
            log.add(exchange(_spec(handle, request.signature_name), request.examples, request.context, result))
        return answer


def _spec(handle: ModelHandle, signature_name: str) -> tuple[str, int, str]:
    return handle.name, handle.version, signature_name or DEFAULT_SIGNATURE


def list_document(registry: ModelRegistry) -> bytes:
    """Every known model with its versions and their states; an addition to TensorFlow Serving's API."""
    models = [
        {
            "name": name,
            "versions": [{"version": str(status.version), "state": status.state.name} for status in statuses],
        }
        for name, statuses in sorted(registry.status().items())
    ]
    return _dump({"models": models}) + b"\n"


async def openapi_document(registry: ModelRegistry, mount_point: str) -> bytes:
    """The OpenAPI document of the serving versions, below the application's mount point."""

    def written(models: list[Loaded]) -> bytes:
        return orjson.dumps(document(models, mount_point))

    return await registry.run_in_thread(written, list(loaded(registry)))


def about_document(registry: ModelRegistry) -> bytes:
    """The server's name and the paths of its API. The version is left out: strangers would look up its faults.

    KServe's V1 client reads `status`: `alive`, unless the process should be replaced.
    """
    paths = {
        "models": "v1/models",
        "status": "v1/models/NAME",
        "metadata": "v1/models/NAME/metadata",
        "predict": "v1/models/NAME:predict",
        "openapi": "v1/openapi.json",
        "docs": "-/docs",
    }
    status = "alive" if registry.liveness() is None else "not alive"
    about = {"name": "embedserve", "status": status, "api": "TensorFlow Serving REST", "paths": paths}
    return _dump(about) + b"\n"


def status_document(registry: ModelRegistry, route: Route) -> bytes:
    """`ModelService.GetModelStatus` as JSON; a label is ignored, as TF Serving does.

    The document of a whole model has a second field, `ready`, for KServe's V1 client: whether the model answers now. A
    document asked for by a version or a label has no such field.

    Raises:
        ServableNotFoundError: The model or version was never known.
    """
    statuses = registry.status(route.name).get(route.name, ())
    if route.version is not None:
        statuses = tuple(status for status in statuses if status.version == route.version)
    if not statuses:
        looked_for = f"version {route.version}" if route.version is not None else "any versions"
        raise ServableNotFoundError(f"Could not find {looked_for} of model {route.name}")
    listed = [
        {
            "version": str(status.version),
            "state": status.state.name,
            "status": {"error_code": status.code.name, "error_message": status.error_message},
        }
        for status in statuses
    ]
    document: dict[str, object] = {"model_version_status": listed}
    if route.version is None and route.label is None:
        document["ready"] = registry.readiness().get(route.name, "gone") is None and not registry.draining
    return _dump(document) + b"\n"


def metadata_document(name: str, version: int, signature_defs: Mapping[str, Message]) -> bytes:
    """`PredictionService.GetModelMetadata` as JSON: int64 as strings, enums by name, empty fields written out."""
    from google.protobuf import json_format

    signatures = {
        key: json_format.MessageToDict(
            signature_def, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        for key, signature_def in sorted(signature_defs.items())
    }
    model_spec = _dump({"name": name, "version": str(version), "signature_name": ""})
    metadata = _dump({"signature_def": signatures})
    return b'{\n"model_spec":' + model_spec + b'\n,\n"metadata": {"signature_def": ' + metadata + b"\n}\n}\n"


def _dump(document: object) -> bytes:
    # TF Serving writes non-ASCII characters unescaped, and a blank per level.
    return json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8", "surrogateescape")
