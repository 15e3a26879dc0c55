"""The printed and written report of a verification: the verdict of each signature, and a table of differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from embedserve.tuning.model import Place
from embedserve.verify.ways import Difference, Findings, Plan, Way

__all__ = ["document", "text"]


def text(place: Place, plan: Plan, findings: Sequence[Findings]) -> str:
    """The report for a reader."""
    lines = [f"Model {place.base_path.name}, version {place.version}; tolerance {plan.tolerance:g}"]
    for found in findings:
        lines += ["", f"{found.signature}: {found.verdict}"]
        if found.skipped:
            lines.append(f"  {found.skipped}")
            continue
        lines.append(f"  requests: {found.requests}")
        lines += _table(found.ways)
        lines += [f"  {line}" for way in found.ways for line in _remarks(way)]
        if not found.verdict.batchable:
            lines.append("  Requests never share a run, so neighbours are not compared; --batching=true compares them.")
    differs = [found.signature for found in findings if found.differs]
    compared = [found for found in findings if found.ways]
    if differs:
        lines += ["", f"DIFFERENT: {', '.join(differs)}"]
    else:
        lines += ["", "No difference." if compared else "Nothing was compared."]
    return "\n".join(lines)


def _table(ways: Sequence[Way]) -> list[str]:
    outputs = list(ways[0].differences)
    rows = [["largest difference of", *(way.name for way in ways)]]
    rows += [[name, *(_size(way.differences[name]) for way in ways)] for name in outputs]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _size(difference: Difference) -> str:
    size = "exact" if not difference.largest else f"{difference.largest:.1e}"
    if math.isinf(difference.largest):
        size = "other values"
    return size + (f" ({difference.over} of {difference.answers} answers)" if difference.over else "")


def _remarks(way: Way) -> list[str]:
    found = [f"{way.name}: {way.note}"] if way.note else []
    if way.apart:
        found.append(f"{way.name}: {way.apart} of {way.apart + way.runs} groups did not share a run")
    for name, difference in way.differences.items():
        if difference.example:
            found.append(f"{way.name}, output {name!r} differs for {difference.example}")
    return found


def document(place: Place, plan: Plan, findings: Sequence[Findings]) -> dict[str, object]:
    """The report for programs; an infinite difference is null."""
    return {
        "model": place.base_path.name,
        "version": place.version,
        "tolerance": plan.tolerance,
        "seed": plan.seed,
        "pairs": plan.pairs,
        "different": any(found.differs for found in findings),
        "signatures": {found.signature: _signature(found) for found in findings},
    }


def _signature(found: Findings) -> dict[str, object]:
    return {
        "batched": found.verdict.batchable,
        "by": found.verdict.by,
        "reason": found.verdict.reason,
        "operation": found.verdict.operation or None,
        "node": found.verdict.node or None,
        "requests": found.requests,
        "skipped": found.skipped or None,
        "different": found.differs,
        "ways": {way.name: _way(way) for way in found.ways},
    }


def _way(way: Way) -> dict[str, object]:
    return {
        "shared_runs": way.runs,
        "groups_that_shared_none": way.apart,
        "note": way.note or None,
        "outputs": {
            name: {
                "largest_difference": each.largest if math.isfinite(each.largest) else None,
                "answers": each.answers,
                "over_tolerance": each.over,
                "example": each.example or None,
            }
            for name, each in way.differences.items()
        },
    }
