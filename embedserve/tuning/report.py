"""The results of a sweep, as text for people and as JSON for programs.

The table is Markdown, readable in a terminal.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from embedserve.tuning.deployment import Deployment
from embedserve.tuning.model import TunedModel
from embedserve.tuning.plan import ALONE
from embedserve.tuning.plot import terminal_plot
from embedserve.tuning.recommendation import Choice
from embedserve.tuning.requests import Requests
from embedserve.tuning.sweep import Result

__all__ = ["Report"]

_HEAD = ("run threads", "batch limit", "callers", "requests/s", "p50 ms", "p95 ms", "p99 ms", "failed")
# Most reasons of failures in the text; each request may have a different reason.
_MOST_REASONS = 5


@dataclass(frozen=True)
class Report:
    """A sweep's outcome.

    Attributes:
        model: The measured model.
        requests: The requests sent.
        results: The measured cells.
        notes: Omitted parts, with reasons.
        cpus: CPUs of the process.
        choice: The recommended setting, or None.
        deployment: Flags and code for the recommended setting.
        interrupted: Whether a signal ended the sweep.
    """

    model: TunedModel
    requests: Requests
    results: Sequence[Result]
    cpus: int
    notes: Sequence[str] = ()
    choice: Choice | None = None
    deployment: Deployment | None = None
    interrupted: bool = False
    versions: dict[str, str] = field(default_factory=lambda: _versions())

    def text(self, program: str) -> str:
        """The report for people: model, table, plot and recommendation."""
        place, named = self.model.place, ", ".join(f"{name} {version}" for name, version in self.versions.items())
        parts = [
            f"Model {self.model.config.name}, version {place.version}, signature {self.requests.signature.name}\n"
            f"Requests: {self.requests}\n"
            f"In process, {self.cpus} CPU{'s' * (self.cpus > 1)}, {named}",
            *(["Interrupted: this is what was measured until then."] if self.interrupted else []),
            *(["\n".join(self.notes)] if self.notes else []),
            table(self.results),
            *self._failures(),
            terminal_plot(self.results, self.choice),
            self._recommendation(program),
        ]
        return "\n\n".join(part for part in parts if part)

    def _failures(self) -> list[str]:
        reasons = Counter[str]()
        for result in self.results:
            reasons.update(result.measured.failed)
        if not reasons:
            return []
        told = [f"  {count} {reason}" for reason, count in reasons.most_common(_MOST_REASONS)]
        more = len(reasons) - len(told)
        return ["\n".join(["Failed requests:", *told, *([f"  and {more} other reasons"] if more > 0 else [])])]

    def _recommendation(self, program: str) -> str:
        if self.choice is None or self.deployment is None:
            return "No setting is recommended: none was measured without a failed request."
        return (
            f"Recommended: {self.choice.setting}. {self.choice.reason}\n\n"
            f"{self.deployment.shell(program)}\n\nIn an embedding service:\n\n{self.deployment.code}"
        )

    def document(self) -> dict[str, object]:
        """The report for programs; in seconds and requests per second."""
        place, requests = self.model.place, self.requests
        return {
            "model": {
                "name": self.model.config.name,
                "base_path": str(place.base_path),
                "version": place.version,
                "signature": requests.signature.name,
            },
            "requests": {"origin": requests.origin, "count": len(requests.inputs), "mean_rows": requests.mean_rows},
            "machine": {"cpus": self.cpus, **self.versions},
            "interrupted": self.interrupted,
            "notes": list(self.notes),
            "cells": [_cell(result, requests.mean_rows) for result in self.results],
            "recommendation": self._recommended(),
        }

    def _recommended(self) -> dict[str, object] | None:
        if self.choice is None or self.deployment is None:
            return None
        return {
            "run_threads": self.choice.setting.run_threads,
            "batch_limit": self.choice.setting.batch_limit,
            "concurrency": self.choice.at.cell.concurrency,
            "reason": self.choice.reason,
            "holds_target": self.choice.holds_target,
            "flags": list(self.deployment.flags),
            "batching_parameters": self.deployment.batching_file,
            "python": self.deployment.code,
        }


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in ("embedserve", "tensorflow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cell(result: Result, mean_rows: float) -> dict[str, object]:
    measured = result.measured
    return {
        "run_threads": result.cell.setting.run_threads,
        "batch_limit": result.cell.setting.batch_limit,
        "concurrency": result.cell.concurrency,
        "seconds": measured.seconds,
        "answered": measured.answered,
        "failed": dict(measured.failed),
        "requests_per_second": measured.throughput,
        "rows_per_second": measured.throughput * mean_rows,
        "p50": measured.p50,
        "p95": measured.p95,
        "p99": measured.p99,
    }


def table(results: Sequence[Result]) -> str:
    """A Markdown table with a line for each cell."""
    rows = [_HEAD, *map(_row, results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [
        "| " + " | ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|", *lines[1:]])


def _row(result: Result) -> tuple[str, ...]:
    setting, measured = result.cell.setting, result.measured
    return (
        str(setting.run_threads),
        "none" if setting.batch_limit == ALONE else str(setting.batch_limit),
        str(result.cell.concurrency),
        f"{measured.throughput:.{1 if measured.throughput < 100 else 0}f}",
        *("-" if seconds is None else f"{seconds * 1e3:.2f}" for seconds in (measured.p50, measured.p95, measured.p99)),
        str(measured.failures),
    )
