"""`predict URL MODEL INPUT`: a request from a file, and its answer as a table, as JSON or as a file of arrays."""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from embedserve.commands.asking import (
    EXIT_BAD_ARGUMENTS,
    EXIT_FINDING,
    CommandError,
    Parser,
    Server,
    patience,
)
from embedserve.commands.tables import table

__all__ = ["predict"]

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_CELL = 60
"""Characters of a table's cell at the most."""


def predict(arguments: Sequence[str], program: str) -> int:
    """Send a request and print its answer; return 0, or 1 for a refused request.

    Raises:
        CommandError: No server answers, or the input cannot be read.
    """
    options = _parser(program).parse_args(arguments)
    server = Server(options.url, options.timeout)
    place = f"/versions/{options.version}" if options.version is not None else ""
    place = f"/labels/{quote(options.label, safe='')}" if options.label else place
    signatures = server.operation(options.model, place)["x-signatures"]
    if options.signature not in signatures:
        known = ", ".join(signatures) or "none"
        raise CommandError(f"{options.model} has no signature {options.signature!r}; it has {known}", EXIT_FINDING)
    signature = signatures[options.signature]
    body = _body(options, signature)
    path = f"/v1/models/{quote(options.model, safe='')}{place}:predict"
    status, answer = server.ask(path, json.dumps({"signature_name": options.signature, **body}).encode())
    text = answer.decode("utf-8", "replace")
    if status != 200:
        raise CommandError(f"{status}: {_error(text)}", EXIT_FINDING)
    _show(json.loads(text), signature, options)
    return 0


def _parser(program: str) -> Parser:
    parser = Parser(
        prog=f"{program} predict",
        description="Sends a request from a file to a model, and prints the answer.",
        epilog="Exit status: 0 answered, 1 refused, 2 bad arguments or an unreadable input, 3 no answer.",
    )
    add = parser.add_argument
    add("url", metavar="URL", help="the server with its mount point, http://localhost:8501")
    add("model", metavar="MODEL")
    add("input", metavar="INPUT", help="a .json, .npy, .npz, .csv or image file; - reads JSON from stdin")
    add("--signature", default="serving_default", metavar="NAME", help="serving_default")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--version", type=int, metavar="N", help="the latest if not given")
    chosen.add_argument("--label", metavar="NAME")
    add("--scale", type=float, metavar="X", help="factor for an image's values; 1/255 for floats, 1 for integers")
    add("--output", default="table", metavar="WHERE", help="table, json, or a .npz file; table")
    add("--timeout", type=patience, default=60.0, metavar="SECONDS", help="for each answer; 60")
    return parser


def _error(text: str) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, TypeError, KeyError):
        return text[:500]


# Inputs.


def _body(options: argparse.Namespace, signature: Mapping[str, Any]) -> dict[str, Any]:
    """The request's `instances` or `inputs`.

    Raises:
        CommandError: The file is missing, of an unknown kind, or does not fit the signature.
    """
    try:
        if options.input == "-":
            return _of_json(sys.stdin.read())
        file = Path(options.input)
        kind = file.suffix.lower()
        if kind == ".json":
            return _of_json(file.read_text())
        if kind == ".npy":
            return {"inputs": {_only(signature, file): _values(np.load(file))}}
        if kind == ".npz":
            with np.load(file) as arrays:
                return {"inputs": {name: _values(arrays[name]) for name in arrays.files}}
        if kind == ".csv":
            return {"inputs": _of_csv(file.read_text(), signature, file)}
        if kind in _PICTURES:
            name = _only(signature, file)
            return {"inputs": {name: _of_picture(file, signature["inputs"][name], options.scale)}}
    except (OSError, ValueError) as error:
        raise CommandError(f"{options.input} cannot be read: {error}", EXIT_BAD_ARGUMENTS) from None
    known = "json, .npy, .npz, .csv " + " ".join(_PICTURES)
    raise CommandError(f"{options.input} is of an unknown kind: give a file that ends in .{known}", EXIT_BAD_ARGUMENTS)


def _only(signature: Mapping[str, Any], file: Path) -> str:
    names = list(signature["inputs"])
    if len(names) != 1:
        told = f"the signature takes {', '.join(names) or 'nothing'}"
        raise ValueError(f"{file.suffix} holds one input, and {told}: give a .npz or .json file with the names")
    return str(names[0])


def _of_json(text: str) -> dict[str, Any]:
    document = json.loads(text)
    if isinstance(document, dict) and ("instances" in document or "inputs" in document):
        return document
    return {"instances" if isinstance(document, list) else "inputs": document}


def _values(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind == "S":
        return _bytes(array.tolist())
    return array.tolist()


def _bytes(value: Any) -> Any:
    return [_bytes(each) for each in value] if isinstance(value, list) else {"b64": base64.b64encode(value).decode()}


def _of_csv(text: str, signature: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Columns by the header's names, or all columns as the rows of an only input."""
    head, *rows = [row for row in csv.reader(io.StringIO(text)) if row]
    inputs = signature["inputs"]
    if set(head) <= set(inputs):
        columns = dict(zip(head, zip(*rows, strict=True), strict=True))
        return {name: _column(values, inputs[name]) for name, values in columns.items()}
    name = _only(signature, file)
    if all(_is_number(cell) for cell in head):
        rows.insert(0, head)
    return {name: [[_cell(cell, inputs[name]["dtype"]) for cell in row] for row in rows]}


def _column(values: Sequence[str], spec: Mapping[str, Any]) -> list[Any]:
    """A column; where the input is declared as `[rows, 1]`, each value in a list of its own."""
    cells = [_cell(value, spec["dtype"]) for value in values]
    return [[cell] for cell in cells] if spec["shape"] is not None and len(spec["shape"]) == 2 else cells


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cell(text: str, dtype: str) -> Any:
    if dtype == "DT_STRING":
        return text
    if dtype == "DT_BOOL":
        return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
    return int(text) if "INT" in dtype else float(text)


def _of_picture(file: Path, spec: Mapping[str, Any], scale: float | None) -> Any:
    """One picture: its bytes for an input of strings, else its pixels in the declared size."""
    if spec["dtype"] == "DT_STRING":
        return _bytes([file.read_bytes()])
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("pixels need Pillow: pip install 'embedserve[images]', or pillow") from None
    shape = spec["shape"]
    if shape is None or len(shape) not in (3, 4):
        raise ValueError(f"the input has the shape {shape}, and a picture needs [rows, height, width, channels]")
    channels = shape[3] if len(shape) == 4 else None
    with Image.open(file) as opened:
        picture = opened.convert("RGB" if channels in (3, None) and len(shape) == 4 else "L")
    size = (shape[2] or picture.width, shape[1] or picture.height)
    pixels = np.asarray(picture.resize(size))
    pixels = pixels[..., None] if channels == 1 else pixels
    if "INT" in spec["dtype"]:
        return np.rint(pixels * (scale or 1.0)).astype(int)[None].tolist()
    return (pixels * (scale or 1 / 255)).astype(np.float32)[None].tolist()


# Answers.


def _show(document: Mapping[str, Any], signature: Mapping[str, Any], options: argparse.Namespace) -> None:
    if options.output == "json":
        print(json.dumps(document))
        return
    outputs = _arrays(document, list(signature["outputs"]))
    if options.output == "table":
        print(_table(outputs))
        return
    if not options.output.endswith(".npz"):
        raise CommandError(f"--output={options.output}: table, json, or a .npz file", EXIT_BAD_ARGUMENTS)
    try:
        np.savez(options.output, allow_pickle=False, **{name: np.asarray(value) for name, value in outputs.items()})
    except OSError as error:
        raise CommandError(f"{options.output} cannot be written: {error.strerror}", EXIT_BAD_ARGUMENTS) from None


def _arrays(document: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Nested lists by output name, from either form of an answer."""
    if "outputs" in document:
        value = document["outputs"]
        return value if isinstance(value, dict) and set(value) <= set(names) else {names[0]: value}
    rows = document["predictions"]
    if rows and isinstance(rows[0], dict) and set(rows[0]) <= set(names):
        return {name: [row[name] for row in rows] for name in rows[0]}
    return {names[0]: rows}


def _table(outputs: Mapping[str, Any]) -> str:
    """A line per row; outputs without rows, or with another number of rows, have a line of their own."""
    counts = {len(value) if isinstance(value, list) else None for value in outputs.values()}
    if len(counts) == 1 and None not in counts:
        rows = zip(range(*map(int, counts)), *outputs.values(), strict=True)  # type: ignore[arg-type]
        return table(("row", *outputs), [(i, *map(_short, row)) for i, *row in rows])
    return table(("output", "value"), [(name, _short(value)) for name, value in outputs.items()])


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
