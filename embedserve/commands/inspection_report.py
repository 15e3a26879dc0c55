"""The findings of `inspect` for a reader."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from embedserve.commands.tables import size_text, table

__all__ = ["text"]

_LONG = 2000
"""Characters of an example request that are shown; a longer one is cut."""


def text(found: Mapping[str, Any]) -> str:
    """Sections for a reader: signatures, requests, files, warm-up and notes, as far as they are known."""
    runs = f", runs as {found['runs_as']}" if "runs_as" in found else ""
    lines = [f"{found['model']} version {found['version']} at {found['place']}{runs}"]
    for name, signature in found["signatures"].items():
        lines += ["", f"Signature {name} ({signature['method_name']})", *_signature(signature)]
    lines += _requests(found)
    if "files" in found:
        files = found["files"]
        rows = [(file, size_text(size)) for file, size in files.items()]
        lines += ["", f"Files, {size_text(sum(files.values()))}", table(("file", "size"), rows, "  ")]
        records = found["warmup_records"]
        counted = ", ".join(f"{count} {kind}" for kind, count in (records or {}).items())
        lines += ["", f"Warm-up records: {counted or 'none'}"]
    lines += _run_times(found.get("run_seconds", {}))
    lines += [f"Note: {note}" for note in found.get("notes", ())]
    return "\n".join(lines)


def _signature(signature: Mapping[str, Any]) -> list[str]:
    rows = []
    for kind in ("inputs", "outputs"):
        for name, spec in signature[kind].items():
            optional = ", optional" if kind == "inputs" and name in signature["optional_inputs"] else ""
            dtype = spec["dtype"].removeprefix("DT_").lower()
            rows.append((kind[:-1] + optional, name, dtype, _shape(spec["shape"])))
    verdict = signature["batching"]
    by = f" by {verdict['by']}" if verdict["by"] in ("proof", "probe") else ""
    told = f"{'batched' if verdict['batched'] else 'not batched'}{by}: {verdict['reason']}"
    return [table(("", "name", "dtype", "shape"), rows, "  "), f"  {told}"]


def _shape(shape: list[int | None] | None) -> str:
    return "any rank" if shape is None else f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _requests(found: Mapping[str, Any]) -> Iterator[str]:
    """The first request of each signature, by curl and in Python."""
    shown = set()
    for title, body in found["requests"].items():
        name = title.partition(",")[0]
        written = json.dumps(body)
        if name in shown or len(written) > _LONG:
            continue
        shown.add(name)
        yield from ("", f"Request of {title}", f"  curl {shlex.quote(found['url'])} -d {shlex.quote(written)}")
        values = body.get("inputs", body.get("instances"))
        asked = "" if name == "serving_default" else f", signature_name={name!r}"
        if not (isinstance(values, dict) and "b64" in written) and "b64" not in written:
            given = values if "inputs" in body else _columns(values, found["signatures"][name])
            yield f"  registry.predict_sync({found['model']!r}, {given!r}{asked})"


def _columns(instances: list[Any], signature: Mapping[str, Any]) -> Any:
    """Rows as values by input name."""
    names = list(signature["inputs"])
    if len(names) == 1:
        return {names[0]: instances}
    return {name: [row[name] for row in instances] for name in instances[0]}


def _run_times(seconds: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not seconds:
        return []
    names = list(seconds["as it is"])
    rows = [
        (mode, *(f"{1e6 * times[name]:.0f} µs" if name in times else "-" for name in names))
        for mode, times in seconds.items()
    ]
    return ["", "Median run of the request above", table(("", *names), rows, "  ")]
