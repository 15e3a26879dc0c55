"""Typed modules for one model: `embedserve-client URL MODEL > digits_client.py`, or TypeScript by `--language`.

The declared signatures of the version that answers become types, with dtypes and shapes in the descriptions, and one
function for each signature. The module knows no protocol.
"""

from __future__ import annotations

import argparse
import json
import keyword
import re
import sys
from collections.abc import Callable, Iterable, Sequence

from embedserve_client.client import Client
from embedserve_client.dtypes import by_name
from embedserve_client.errors import ServingError, UnsupportedError
from embedserve_client.model import ModelMetadata, Signature, TensorSpec

__all__ = ["main", "python_module", "typescript_module"]

_PROGRAM = "embedserve-client"
EXIT_BAD_ARGUMENTS = 2
_INIT_SIGNATURE = "__saved_model_init_op"


def main(arguments: Sequence[str] | None = None, program: str = _PROGRAM) -> int:
    """Print the module of a model.

    Returns:
        0, or 2 with the reason on stderr if the model's signatures cannot be read. Bad usage ends with SystemExit(2).
    """
    parser = argparse.ArgumentParser(prog=program, description="Print a typed module that calls one model.")
    parser.add_argument("url", help="the server: grpc://host:8500, http://host:8501, ...")
    parser.add_argument("model", help="the name of the model")
    parser.add_argument("--language", choices=_LANGUAGES, default="python", help="the language of the module")
    parser.add_argument("--model-version", type=int, help="the version whose signatures count; else the latest")
    parser.add_argument("--label", help="the label of the version whose signatures count")
    options = parser.parse_args(arguments)
    try:
        with Client(options.url) as client:
            found = client.metadata(options.model, version=options.model_version, label=options.label)
    except ServingError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_BAD_ARGUMENTS
    sys.stdout.write(_LANGUAGES[options.language](found, options.url))
    return 0


def _signatures(metadata: ModelMetadata) -> list[Signature]:
    return [each for name, each in sorted(metadata.signatures.items()) if name != _INIT_SIGNATURE and each.outputs]


class _Names:
    """Identifiers in place of any names, each used once."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def unique(self, name: str) -> str:
        while name in self._taken or keyword.iskeyword(name):
            name += "_"
        self._taken.add(name)
        return name


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9]+", name) or ["signature"]


def _snake(name: str) -> str:
    found = "_".join(_words(name))
    return f"signature_{found}" if found[0].isdigit() else found


def _camel(name: str) -> str:
    found = "".join(word[0].upper() + word[1:] for word in _words(name))
    return f"Signature{found}" if found[0].isdigit() else found


# Python.

_PYTHON_HEAD = '''"""Typed calls of the model {model}, as version {version} declares its signatures.

Made by `{program} {url} {model}`.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, Unpack, cast

import numpy as np
import numpy.typing as npt

from embedserve_client import AsyncClient, CallOptions, Client

MODEL = {name}
'''

_PYTHON_CALLS = '''

def {function}(client: Client, inputs: {inputs}, **options: Unpack[CallOptions]) -> {outputs}:
    """Call the signature {signature}.

    Args:
        client: A client of a server or registry with the model.
        inputs: {listed_inputs}
        options: As for `Client.predict`.

    Returns:
        {listed_outputs}
    """
    options["signature_name"] = {name}
    return cast({outputs}, client.predict(MODEL, inputs, **options))


async def {twin}(client: AsyncClient, inputs: {inputs}, **options: Unpack[CallOptions]) -> {outputs}:
    """Call the signature {signature}; as `{function}`."""
    options["signature_name"] = {name}
    return cast({outputs}, await client.predict(MODEL, inputs, **options))
'''
_PYTHON_WORDS = "Any NotRequired TypedDict Unpack cast np npt AsyncClient CallOptions Client MODEL annotations"


def _text(value: str) -> str:
    """A text for a docstring: nothing in a name may end the docstring or begin an escape."""
    return re.sub(r'[\\"\x00-\x1f\x7f-\x9f\ud800-\udfff]', "?", value)


def _quoted(value: str) -> str:
    return json.dumps(value)


def python_module(metadata: ModelMetadata, url: str) -> str:
    """The Python module of a model; clean under `mypy --strict`.

    Args:
        metadata: The version with its signatures.
        url: The server, for the description.
    """
    names = _Names(_PYTHON_WORDS.split())
    parts = [
        _PYTHON_HEAD.format(
            model=_text(metadata.name),
            version=metadata.version,
            program=_PROGRAM,
            url=_text(url),
            name=_quoted(metadata.name),
        )
    ]
    for signature in _signatures(metadata):
        base = _camel(signature.name)
        inputs, outputs = names.unique(f"{base}Inputs"), names.unique(f"{base}Outputs")
        parts.append(_python_dict(inputs, "Inputs", signature, signature.inputs.values(), "npt.ArrayLike"))
        parts.append(_python_dict(outputs, "Outputs", signature, signature.outputs.values(), None))
        function = names.unique(_snake(signature.name))
        parts.append(
            _PYTHON_CALLS.format(
                function=function,
                twin=names.unique(f"{function}_async"),
                inputs=inputs,
                outputs=outputs,
                signature=_text(signature.name),
                name=_quoted(signature.name),
                listed_inputs=_listed(signature.inputs.values()),
                listed_outputs=_listed(signature.outputs.values()),
            )
        )
    return "".join(parts)


def _listed(specs: Iterable[TensorSpec]) -> str:
    return "; ".join(f"`{_text(spec.name)}` {spec}" for spec in specs) or "none"


def _python_dict(name: str, what: str, signature: Signature, specs: Iterable[TensorSpec], kind: str | None) -> str:
    rows = []
    for spec in specs:
        found = kind or _array_type(spec)
        optional = what == "Inputs" and spec.name in signature.optional
        rows.append((spec, f"NotRequired[{found}]" if optional else found))
    told = f"{what} of the signature {_text(signature.name)}."
    plain = all(spec.name.isidentifier() and not keyword.iskeyword(spec.name) for spec, _ in rows)
    if plain and not any(spec.name.startswith("__") for spec, _ in rows):
        fields = [f'\n    {spec.name}: {found}\n    """{spec}"""\n' for spec, found in rows]
        return f'\n\nclass {name}(TypedDict):\n    """{told}"""\n' + "".join(fields)
    fields = [f"        {_quoted(spec.name)}: {found},  # {spec}\n" for spec, found in rows]
    return f"\n\n# {told}\n{name} = TypedDict(\n    {_quoted(name)},\n    {{\n" + "".join(fields) + "    },\n)\n"


def _array_type(spec: TensorSpec) -> str:
    try:
        dtype = by_name(spec.dtype).numpy
    except UnsupportedError:
        return "npt.NDArray[Any]"
    if dtype.kind not in "fiucbO":
        return "npt.NDArray[Any]"
    return f"npt.NDArray[np.{'object_' if dtype.kind == 'O' else 'bool_' if dtype.kind == 'b' else dtype.name}]"


# TypeScript.

_TYPESCRIPT_HEAD = """/**
 * Typed calls of the model {model}, as version {version} declares its signatures; over TensorFlow Serving's REST API.
 * Made by `{program} {url} {model} --language typescript`.
 */

export const MODEL = {name};

/** A value, or arrays of values to any depth. */
export type Nested<T> = T | Nested<T>[];

/** Text, or bytes that are no text. */
export type Bytes = string | {{ b64: string }};

/** An answer of the server that is an error. */
export class ModelError extends Error {{
  constructor(
    readonly status: number,
    message: string,
  ) {{
    super(message);
    this.name = "ModelError";
  }}
}}

export interface Options {{
  /** The server, for example http://localhost:8501. */
  baseUrl: string;
  /** The number of the version; the latest without it. */
  version?: number;
  /** A label of the version. */
  label?: string;
  headers?: Record<string, string>;
  /** Gives the call up: AbortSignal.timeout(1000), for example. */
  signal?: AbortSignal;
}}

// The API writes NaN, Infinity and -Infinity, which JSON has not.
const BARE = /"(?:[^"\\\\]|\\\\.)*"|-?\\b(?:NaN|Infinity)\\b/g;

function numbers(value: unknown): unknown {{
  return Array.isArray(value) ? value.map(numbers) : typeof value === "string" ? Number(value) : value;
}}

async function call(
  signature: string,
  inputs: object,
  outputs: Readonly<Record<string, boolean>>,
  options: Options,
): Promise<Record<string, unknown>> {{
  let path = `/v1/models/${{encodeURIComponent(MODEL)}}`;
  if (options.version !== undefined) path += `/versions/${{options.version}}`;
  else if (options.label !== undefined) path += `/labels/${{encodeURIComponent(options.label)}}`;
  const response = await fetch(`${{options.baseUrl.replace(/\\/$/, "")}}${{path}}:predict`, {{
    method: "POST",
    headers: {{ "content-type": "application/json", ...options.headers }},
    body: JSON.stringify({{ signature_name: signature, inputs }}),
    signal: options.signal ?? null,
  }});
  const text = await response.text();
  if (!response.ok) {{
    let message = text;
    try {{
      message = (JSON.parse(text) as {{ error: string }}).error;
    }} catch {{
      // A proxy's page is no JSON.
    }}
    throw new ModelError(response.status, message);
  }}
  let bare = false;
  const json = text.replace(BARE, (found) => {{
    if (found.startsWith('"')) return found;
    bare = true;
    return `"${{found}}"`;
  }});
  const answer = (JSON.parse(json) as {{ outputs: unknown }}).outputs;
  const names = Object.keys(outputs);
  const [only] = names;
  const named = (names.length === 1 && only !== undefined ? {{ [only]: answer }} : answer) as Record<string, unknown>;
  if (bare) for (const name of names) if (outputs[name]) named[name] = numbers(named[name]);
  return named;
}}
"""

_TYPESCRIPT_CALL = """
/** Calls the signature {signature}. */
export async function {function}(inputs: {inputs}, options: Options): Promise<{outputs}> {{
  return (await call({name}, inputs, {numeric}, options)) as unknown as {outputs};
}}
"""
_TYPESCRIPT_WORDS = (
    "MODEL Nested Bytes ModelError Options BARE numbers call fetch Error JSON Object Record Number Promise function "
    "new delete default export enum switch this throw typeof var void null true false const let static super do case "
    "catch"
)
_TYPESCRIPT_KINDS = {"string_val": "Bytes", "bool_val": "boolean"}


def typescript_module(metadata: ModelMetadata, url: str) -> str:
    """The TypeScript module of a model, without dependencies; clean under `tsc --strict`.

    Args:
        metadata: The version with its signatures; those with dtypes that JSON lacks are left out, and named.
        url: The server, for the description.
    """
    names = _Names(_TYPESCRIPT_WORDS.split())
    parts = [
        _TYPESCRIPT_HEAD.format(
            model=_comment(metadata.name),
            version=metadata.version,
            program=_PROGRAM,
            url=_comment(url),
            name=_quoted(metadata.name),
        )
    ]
    for signature in _signatures(metadata):
        specs = [*signature.inputs.values(), *signature.outputs.values()]
        without = [spec.dtype for spec in specs if not _in_json(spec)]
        if without:
            parts.append(f"\n// Left out: {_comment(signature.name)}, because JSON carries no {', '.join(without)}.\n")
            continue
        base = _camel(signature.name)
        inputs, outputs = names.unique(f"{base}Inputs"), names.unique(f"{base}Outputs")
        parts.append(_typescript_interface(inputs, f"Inputs of {_comment(signature.name)}.", signature, True))
        parts.append(_typescript_interface(outputs, f"Outputs of {_comment(signature.name)}.", signature, False))
        numeric = {name: _typescript_kind(spec) == "number" for name, spec in signature.outputs.items()}
        parts.append(
            _TYPESCRIPT_CALL.format(
                signature=_comment(signature.name),
                function=names.unique(base[0].lower() + base[1:]),
                inputs=inputs,
                outputs=outputs,
                name=_quoted(signature.name),
                numeric=json.dumps(numeric),
            )
        )
    return "".join(parts)


def _comment(text: str) -> str:
    return _text(text).replace("*/", "* /")


def _in_json(spec: TensorSpec) -> bool:
    try:
        return by_name(spec.dtype).json
    except UnsupportedError:
        return False


def _typescript_kind(spec: TensorSpec) -> str:
    return _TYPESCRIPT_KINDS.get(by_name(spec.dtype).field, "number")


def _typescript_interface(name: str, told: str, signature: Signature, given: bool) -> str:
    rows = []
    for spec in (signature.inputs if given else signature.outputs).values():
        kind = _typescript_kind(spec)
        found = f"Nested<{kind}>" if spec.shape is None else kind + "[]" * len(spec.shape)
        optional = "?" if given and spec.name in signature.optional else ""
        rows.append(f"  /** {spec} */\n  {_quoted(spec.name)}{optional}: {found};\n")
    return f"\n/** {told} */\nexport interface {name} {{\n{''.join(rows)}}}\n"


_LANGUAGES: dict[str, Callable[[ModelMetadata, str], str]] = {
    "python": python_module,
    "typescript": typescript_module,
}


if __name__ == "__main__":
    sys.exit(main())
