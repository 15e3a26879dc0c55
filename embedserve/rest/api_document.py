"""The OpenAPI 3.1 document of the REST API: the exact paths of each serving model, version, label and signature.

The document is made anew for each request, from the versions that serve at the moment. The schemas of bodies are in
`json_schema`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from embedserve.errors import Code, InvalidInputError, ServableNotFoundError
from embedserve.priority import PRIORITY_KEY
from embedserve.rest import json_schema
from embedserve.rest.errors import HTTP_STATUS
from embedserve.rest.json_schema import Schema
from embedserve.servable import State
from embedserve.signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from embedserve.tfs.examples import classification_outputs, regression_outputs

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["Loaded", "described", "document", "examples", "loaded", "openapi"]

_ERRORS = {
    Code.INVALID_ARGUMENT: "The body, a name, a dtype, a shape or a value does not fit the signature.",
    Code.NOT_FOUND: "The model or version does not serve at the moment.",
    Code.RESOURCE_EXHAUSTED: "The request is too large, or waits too long for its timeout.",
    Code.INTERNAL: "TensorFlow failed in the run.",
    Code.UNIMPLEMENTED: "The model or the build does not support the request.",
    Code.UNAVAILABLE: "A queue is full, or the server starts or shuts down; another attempt may succeed.",
    Code.DEADLINE_EXCEEDED: "The run took longer than the server's timeout.",
}
_EXAMPLE_FEATURES: Schema = {
    "type": "object",
    "description": "A tf.Example: a value or a list of values of a single kind by feature name.",
    "additionalProperties": {
        "anyOf": [
            {"type": "number"},
            {"type": "string"},
            {"$ref": "#/components/schemas/serving.Base64"},
            {"type": "array", "items": {"type": "number"}},
            {"type": "array", "items": {"type": "string"}},
            {"type": "array", "items": {"$ref": "#/components/schemas/serving.Base64"}},
        ]
    },
}
_SCHEMAS: Mapping[str, Schema] = {
    **json_schema.COMPONENTS,
    "serving.Example": _EXAMPLE_FEATURES,
    "serving.Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
    "serving.ModelList": {
        "type": "object",
        "properties": {"models": {"type": "array", "items": {"type": "object", "required": ["name", "versions"]}}},
        "required": ["models"],
    },
    "serving.ModelStatus": {
        "type": "object",
        "properties": {
            "model_version_status": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "version": {"type": "string"},
                        "state": {"enum": [state.name for state in State]},
                        "status": {"type": "object", "required": ["error_code", "error_message"]},
                    },
                    "required": ["version", "state", "status"],
                },
            },
            "ready": {"type": "boolean"},
        },
        "required": ["model_version_status"],
    },
    "serving.Metadata": {"type": "object", "required": ["model_spec", "metadata"]},
}


@dataclass(frozen=True)
class Loaded:
    """The serving versions of a model, descending, each with its callable signatures; and the labels that serve."""

    name: str
    versions: Mapping[int, Mapping[str, Signature]]
    labels: Mapping[str, int]


def openapi(registry: ModelRegistry, *, prefix: str = "", into: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe the REST API of a registry as an OpenAPI 3.1 document, alone or as part of a host's document.

    A FastAPI host shows the models on its own `/docs` page:

        own = app.openapi
        app.openapi = lambda: openapi(registry, prefix="/ml", into=own())

    Args:
        registry: An entered registry; from any thread. A registry without an entry gives a document without models.
        prefix: The mount point of `create_app(registry)` in the host.
        into: The host's document, which is left as is; the result has the paths and schemas of both.

    Returns:
        A new document of plain dictionaries, lists, strings and numbers.
    """
    models = [] if registry.loop is None else list(loaded(registry))
    return document(models, prefix, into)


def loaded(registry: ModelRegistry) -> Iterator[Loaded]:
    """Yield the serving models; on the registry's loop, or blocking in any other thread."""
    from asyncio import _get_running_loop

    acquire = registry.acquire_now if _get_running_loop() is registry.loop else registry.acquire_sync
    for name, statuses in sorted(registry.status().items()):
        versions = {}
        for status in statuses:
            if status.state is State.AVAILABLE:
                try:
                    with acquire(name, version=status.version) as handle:
                        versions[status.version] = handle.signatures
                except ServableNotFoundError:
                    continue  # Unloaded since the snapshot.
        if versions:
            labels = {label: version for label, version in registry.labels(name).items() if version in versions}
            yield Loaded(name, versions, labels)


def document(models: list[Loaded], prefix: str = "", into: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The document of `models`; arguments as `openapi`."""
    paths: dict[str, Any] = {
        "/v1/models": {"get": _read("List the models", "models", "serving.ModelList", "listModels")}
    }
    schemas = dict(_SCHEMAS)
    for model in models:
        paths |= _paths(model, schemas)
    if into is None:
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Models",
                "version": "1",
                "summary": "TensorFlow Serving's REST API for the models that serve at the moment.",
                "description": _ABOUT,
            },
            "servers": [{"url": prefix or "/"}],
            "tags": [{"name": "models"}, *({"name": model.name} for model in models)],
            "paths": paths,
            "components": {"schemas": schemas},
        }
    components = dict(into.get("components", {}))
    components["schemas"] = {**components.get("schemas", {}), **schemas}
    below = {prefix + path: operations for path, operations in paths.items()}
    return {**into, "paths": {**into.get("paths", {}), **below}, "components": components}


_ABOUT = (
    "Bodies are JSON. `instances` holds a list of rows and is answered by `predictions`; `inputs` holds whole tensors "
    "and is answered by `outputs`. Lists at the same depth have the same length. Bytes that are no UTF-8 text are sent "
    'as `{"b64": "..."}`. NaN and infinity are the bare tokens `NaN`, `Infinity` and `-Infinity`, as in TensorFlow '
    "Serving, which strict JSON parsers refuse."
)


def _paths(model: Loaded, schemas: dict[str, Schema]) -> Iterator[tuple[str, Any]]:
    base, name = f"/v1/models/{quote(model.name, safe='')}", model.name
    newest = max(model.versions)
    yield base, {"get": _read(f"Status of {name}", name, "serving.ModelStatus", f"status {name}")}
    yield from _of_version(model, newest, base, f"{name}", "the latest version", schemas)
    for version in model.versions:
        place = f"{base}/versions/{version}"
        status = f"Status of {name} version {version}"
        yield place, {"get": _read(status, name, "serving.ModelStatus", f"status {name} {version}")}
        yield from _of_version(model, version, place, f"{name} {version}", f"version {version}", schemas)
    for label, version in sorted(model.labels.items()):
        place, words = f"{base}/labels/{quote(label, safe='')}", f"label {label}, now version {version}"
        yield from _of_version(model, version, place, f"{name} label {label}", words, schemas)


def _of_version(
    model: Loaded, version: int, place: str, key: str, words: str, schemas: dict[str, Schema]
) -> Iterator[tuple[str, Any]]:
    """The paths of a version at one of its places."""
    signatures = model.versions[version]
    metadata = _read(f"Signatures of {model.name}, {words}", model.name, "serving.Metadata", f"metadata {key}")
    yield f"{place}/metadata", {"get": metadata}
    calls = {
        "predict": {name: one for name, one in signatures.items() if json_schema.has_json_form(one)},
        "classify": {name: one for name, one in signatures.items() if _fits(classification_outputs, one)},
        "regress": {name: one for name, one in signatures.items() if _fits(regression_outputs, one)},
    }
    for verb, callable_ones in calls.items():
        if callable_ones:
            names = _call_schemas(f"{model.name} {version}", verb, callable_ones, schemas)
            operation = _call(verb, model.name, words, callable_ones, names)
            yield f"{place}:{verb}", {"post": operation | {"operationId": _identifier(f"{verb} {key}")}}


def _fits(outputs_of: Callable[[Signature, bool], object], signature: Signature) -> bool:
    """Whether `:classify` or `:regress` takes the signature: its names decide, as in TensorFlow Serving."""
    try:
        outputs_of(signature, False)
    except InvalidInputError:
        return False
    return all(spec.dtype.json == "string" for spec in signature.inputs.values())


def _read(summary: str, tag: str, schema: str, id: str) -> dict[str, Any]:
    errors = (Code.NOT_FOUND, Code.UNAVAILABLE)
    return {
        "summary": summary,
        "operationId": _identifier(id),
        "tags": [tag],
        "responses": {"200": _json("The document.", schema)} | _errors(*errors),
    }


def _call_schemas(
    key: str, verb: str, signatures: Mapping[str, Signature], schemas: dict[str, Schema]
) -> tuple[str, str]:
    """Add the schemas of a version's requests and answers, once for all of its places; return their names."""
    names = f"serving.{_identifier(key)}.{verb}.request", f"serving.{_identifier(key)}.{verb}.response"
    if names[0] not in schemas:
        in_order = [signatures[name] for name in _in_order(signatures)]
        if verb == "predict":
            asked = [form for one in in_order for form in json_schema.predict_request(one)]
            answered = [form for one in in_order for form in json_schema.predict_response(one)]
        else:
            asked, answered = [_examples_body(in_order)], [_results(verb)]
        schemas[names[0]] = {"anyOf": asked}
        schemas[names[1]] = {"anyOf": _distinct(answered)}
    return names


def _examples_body(signatures: list[Signature]) -> Schema:
    names = [one.name for one in signatures]
    example = {"$ref": "#/components/schemas/serving.Example"}
    required = ["examples"] if DEFAULT_SIGNATURE in names else ["examples", "signature_name"]
    return {
        "type": "object",
        "properties": {
            "signature_name": {"enum": names},
            "context": example,
            "examples": {"type": "array", "items": example, "minItems": 1},
        },
        "required": required,
        "additionalProperties": False,
    }


def _results(verb: str) -> Schema:
    either = {"anyOf": [{"type": "string"}, {"type": "number"}]}
    label_and_score = {"type": "array", "items": either, "minItems": 2, "maxItems": 2}
    item = {"type": "number"} if verb == "regress" else {"type": "array", "items": label_and_score}
    return {"type": "object", "properties": {"results": {"type": "array", "items": item}}, "required": ["results"]}


def _call(
    verb: str, model: str, words: str, signatures: Mapping[str, Signature], names: tuple[str, str]
) -> dict[str, Any]:
    request = {"schema": {"$ref": f"#/components/schemas/{names[0]}"}}
    tried = dict(examples(verb, signatures))
    priority = {
        "name": PRIORITY_KEY,
        "in": "header",
        "description": "Higher priorities overtake, and lower priorities give way in a full queue.",
        "schema": {"enum": ["high", "normal", "low"], "default": "normal"},
    }
    return {
        "summary": f"{verb.capitalize()} with {model}, {words}",
        "description": "\n\n".join(_told(signatures[name]) for name in _in_order(signatures)),
        "tags": [model],
        "parameters": [priority],
        "requestBody": {
            "required": True,
            "content": {"application/json": request | ({"examples": tried} if tried else {})},
        },
        "responses": {"200": _json("The answer.", names[1])} | _errors(*_ERRORS),
        "x-signatures": {name: described(signatures[name]) for name in _in_order(signatures)},
    }


def _told(signature: Signature) -> str:
    def tensors(specs: Mapping[str, TensorSpec]) -> str:
        return ", ".join(f"`{name}` {spec}" for name, spec in specs.items()) or "nothing"

    return f"Signature `{signature.name}`: takes {tensors(signature.inputs)}; answers {tensors(signature.outputs)}."


def described(signature: Signature) -> dict[str, Any]:
    """The signature's tensors and its batching, for tools; sizes are null where any size is possible."""

    def tensors(specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
        return {
            name: {"dtype": spec.dtype.enum_name, "shape": None if spec.shape is None else list(spec.shape)}
            for name, spec in specs.items()
        }

    verdict = signature.batching
    return {
        "method_name": signature.method_name,
        "inputs": tensors(signature.inputs),
        "outputs": tensors(signature.outputs),
        "optional_inputs": sorted(signature.defaults),
        "batching": {"batched": verdict.batchable, "by": verdict.by, "reason": verdict.reason},
    }


def examples(verb: str, signatures: Mapping[str, Signature]) -> Iterator[tuple[str, Any]]:
    """Whole bodies by a name for readers."""
    for name in _in_order(signatures):
        signature = signatures[name]
        inputs = json_schema.example_inputs(signature)
        if inputs is None:
            continue
        untried = "" if signature.example else ", not tried"
        if verb != "predict":
            if signature.example:
                asked = {} if name == DEFAULT_SIGNATURE else {"signature_name": name}
                yield name, {"value": asked | {"examples": json_schema.example_features(signature.example)}}
            continue
        rows = json_schema.row_request(inputs, signature)
        if rows is not None:
            yield f"{name}, rows{untried}", {"value": rows}
        yield f"{name}, columns{untried}", {"value": json_schema.column_request(inputs, signature)}


def _json(description: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _errors(*codes: Code) -> dict[str, Any]:
    return {str(HTTP_STATUS[code]): _json(_ERRORS[code], "serving.Error") for code in codes}


def _in_order(signatures: Mapping[str, Signature]) -> list[str]:
    """Names of signatures, the default first."""
    return sorted(signatures, key=lambda name: (name != DEFAULT_SIGNATURE, name))


def _distinct(schemas: list[Schema]) -> list[Schema]:
    return [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]


def _identifier(words: str) -> str:
    """A name for an operation or a schema, different for different words."""
    return re.sub(r"[^A-Za-z0-9.]", lambda found: "_" if found[0] == " " else f"-{ord(found[0]):x}-", words)
