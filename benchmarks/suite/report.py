"""Results as Markdown tables and as JSON, and back from JSON.

Ratios come first: they are what another machine would find too. Knows no server but by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from benchmarks.suite.alone import Alone
from benchmarks.suite.bars import Bar, Samples, bars, ours, rate_ratio
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.load import Load
from benchmarks.suite.measure import Cell, Results
from benchmarks.suite.workloads import WORKLOADS

TITLES = {"in-process": "in process", "rest": "REST", "grpc": "gRPC"}
CEILING = "bare-tensorflow"
PICTURE = "suite-{}.svg"


@dataclass(frozen=True)
class Report:
    """One run: what was measured, with what, where."""

    results: Results
    alone: Alone | None
    about: dict[str, Any]


def about(seconds: float, repeats: int) -> dict[str, Any]:
    packages = ("tensorflow", "numpy", "grpcio", "uvicorn", "uvloop", "httptools", "starlette", "orjson")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "seconds": seconds,
        "repeats": repeats,
        "packages": {name: version(name) for name in packages},
    }


# JSON.


def to_json(report: Report) -> str:
    """Every sample, so that other tables and plots can be made of it."""
    results = report.results
    document = {
        "about": report.about,
        "cells": [
            dataclasses.asdict(cell) | {"samples": [_plain(load) for load in samples]}
            for cell, samples in results.samples.items()
        ],
        "absent": results.absent,
        "versions": results.versions,
        "problems": results.problems,
        "alone": None if report.alone is None else dataclasses.asdict(report.alone),
        "bars": [_plain(bar) | {"met": bar.met} for bar in bars(results.samples, report.alone)],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _plain(found: Load | Bar) -> dict[str, Any]:
    """The fields of a figure; JSON has no NaN, so what is unknown is null."""
    fields = dataclasses.asdict(found)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields.items()}


def from_json(text: str) -> Report:
    """The report that `to_json` wrote; bars are judged again."""
    document = json.loads(text)
    samples = {
        Cell(each["workload"], each["protocol"], each["concurrency"], each["server"]): [
            _load(load) for load in each["samples"]
        ]
        for each in document["cells"]
    }
    results = Results(samples, document["absent"], document["versions"], document["problems"])
    return Report(results, document["alone"] and Alone(**document["alone"]), document["about"])


def _load(fields: dict[str, Any]) -> Load:
    known: dict[str, Any] = {name: math.nan if value is None else value for name, value in fields.items()}
    return Load(**known)


# Markdown.


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def times(ratio: float) -> str:
    if math.isnan(ratio):
        return ""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"


def markdown(report: Report) -> str:
    """The whole run for reading: ratios, bars, absolute figures, who was not there."""
    parts = [*ratio_tables(report.results), bar_table(bars(report.results.samples, report.alone))]
    parts += [*absolute_tables(report.results), servers(report.results), problems(report.results)]
    return "\n\n".join(part for part in parts if part) + "\n"


BEGIN, END = "<!-- begin: python -m benchmarks --page -->", "<!-- end -->"


def page(report: Report, text: str) -> str:
    """`text` with this run's ratios between the two marks, instead of another's; absolute figures are left out.

    Raises:
        ValueError: The marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"there is no place for the results: it begins with {BEGIN} and ends with {END}")
    return before + BEGIN + "\n\n" + _results(report) + "\n\n" + END + after


def _results(report: Report) -> str:
    about, samples = report.about, report.results.samples
    parts = [
        f"TensorFlow {about['packages']['tensorflow']}, Python {about['python']}, {about['machine']}, one processor "
        f"core for the servers; {about['repeats']} rounds of {about['seconds']:g} s, twice that for `mobilenet`. A "
        "figure says how many times the requests per second of the server in its row embedserve answers, with as many "
        "under way at once as the column says: above 1, embedserve is the faster one."
    ]
    for workload in WORKLOADS:
        if any(cell.workload == workload for cell in samples):
            parts += [f"### {workload}", f"![Requests per second of each server]({PICTURE.format(workload)})"]
            parts += ratio_tables(report.results, workload)
    parts += ["### The bars", bar_table(bars(samples, report.alone))]
    parts += ["### The servers", servers(report.results), problems(report.results)]
    return "\n\n".join(parts)


def groups(samples: Samples) -> Iterator[tuple[str, str, list[int], list[str]]]:
    """Workload, protocol, concurrencies and servers of each table."""
    order = list(CONTENDERS)
    for workload in WORKLOADS.values():
        for protocol in workload.protocols:
            cells = [cell for cell in samples if (cell.workload, cell.protocol) == (workload.name, protocol)]
            servers = sorted({cell.server for cell in cells}, key=order.index)
            if cells:
                yield workload.name, protocol, sorted({cell.concurrency for cell in cells}), servers


def ratio_tables(results: Results, only: str | None = None) -> Iterator[str]:
    """How many times the requests of each other server embedserve answers, in each cell; of one workload or all."""
    for workload, protocol, concurrency, servers in groups(results.samples):
        base = ours(Cell(workload, protocol, 1, "")).server
        if base not in servers or only not in (None, workload):
            continue
        rows = []
        for server in [*servers, *([CEILING] if protocol != "in-process" else [])]:
            at = protocol if server != CEILING else "in-process"
            cells = [
                (Cell(workload, protocol, count, base), Cell(workload, at, count, server)) for count in concurrency
            ]
            if server != base and any(other in results.samples for _, other in cells):
                rows.append([server, *(times(rate_ratio(results.samples, *pair)) for pair in cells)])
        if rows:
            head = [f"{workload}, {TITLES[protocol]}: {base} over", *(f"at {count}" for count in concurrency)]
            yield table(head, rows)


def absolute_tables(results: Results) -> Iterator[str]:
    medians = results.medians()
    for workload, protocol, concurrency, servers in groups(results.samples):
        head = [f"{workload}, {TITLES[protocol]}", *(f"at {count}: /s, p50, p99 ms, CPU µs" for count in concurrency)]
        rows = []
        for server in servers:
            found = [medians.get(Cell(workload, protocol, count, server)) for count in concurrency]
            rows.append([server, *("" if load is None else figures(load) for load in found)])
        yield table(head, rows)


def figures(load: Load) -> str:
    rate = f"{load.rate:,.0f}" if load.rate >= 100 else f"{load.rate:.1f}"
    return f"{rate}, {load.p50 * 1e3:.2f}, {load.p99 * 1e3:.2f}, {load.cpu * 1e6:,.0f}"


def bar_table(found: Sequence[Bar]) -> str:
    if not found:
        return ""
    rows = [
        [
            bar.what,
            times(bar.ratio),
            times(bar.by_cpu),
            f"{'≤' if bar.at_most else '≥'} {bar.bound:g}",
            "met" if bar.met else "**missed**",
        ]
        for bar in found
    ]
    return table(["bar", "found", "by processor time", "bound", ""], rows)


def servers(results: Results) -> str:
    """What each server is; who could not take part, and why."""
    there = {cell.server for cell in results.samples}
    rows = [
        [each.name, results.versions.get(each.name, ""), each.what]
        for each in CONTENDERS.values()
        if each.name in there
    ]
    rows += [[name, results.versions.get(name, ""), f"not measured: {why}"] for name, why in results.absent.items()]
    lines = ["| server | version | what it is |", "| --- | --- | --- |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def problems(results: Results) -> str:
    if not results.problems:
        return "Every answer that was looked at was right, and no request failed."
    return "Problems:\n\n" + "\n".join(f"- {problem}" for problem in results.problems)
