"""`top URL`: requests, errors, latency and batches of each model, from the difference of two pages of metrics."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedserve.commands.asking import EXIT_FINDING, CommandError, Parser, Server, patience
from embedserve.commands.tables import table

__all__ = ["rates", "samples", "top"]

_PATH = "/monitoring/prometheus/metrics"
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_HEAD = ("model", "requests/s", "errors/s", "mean ms", "rows/batch", "wait ms")

Samples = Mapping[tuple[str, str, str], float]


def top(arguments: Sequence[str], program: str) -> int:
    """Print a table every few seconds until an interrupt, or `--count` tables; return 0.

    Raises:
        CommandError: No server answers, or the server has no page of metrics.
    """
    parser = Parser(
        prog=f"{program} top",
        description="Shows requests, errors, latency and batches of each model while they happen.",
        epilog="Exit status: 0, 1 the server has no metrics, 2 bad arguments, 3 no answer.",
    )
    add = parser.add_argument
    add("url", metavar="URL", help="the server, http://localhost:8501")
    add("--interval", type=patience, default=2.0, metavar="SECONDS", help="between two tables; 2")
    add("--count", type=int, default=0, metavar="N", help="tables to print; 0 goes on until an interrupt")
    add("--metrics-path", default=_PATH, metavar="PATH", help=f"page of metrics; {_PATH}")
    add("--timeout", type=patience, default=10.0, metavar="SECONDS", help="for each answer; 10")
    add("--json", action="store_true", help="print a JSON object a line")
    options = parser.parse_args(arguments)
    server = Server(options.url, options.timeout)
    before, began, printed = _read(server, options.metrics_path), time.monotonic(), 0
    try:
        while not options.count or printed < options.count:
            time.sleep(options.interval)
            now, ended = _read(server, options.metrics_path), time.monotonic()
            found = rates(before, now, ended - began)
            _show(found, server.url, as_json=options.json)
            before, began, printed = now, ended, printed + 1
    except KeyboardInterrupt:
        print()
    return 0


def _read(server: Server, path: str) -> Samples:
    status, page = server.ask(path)
    if status != 200:
        raise CommandError(f"{server.url}{path} answers {status}: the server has no metrics there", EXIT_FINDING)
    return samples(page.decode("utf-8", "replace"))


def samples(page: str) -> Samples:
    """Sums by metric, model and status of a page in Prometheus' text format."""
    found: dict[tuple[str, str, str], float] = defaultdict(float)
    for name, inside, value in _SAMPLE.findall(page):
        labels = dict(_LABEL.findall(inside))
        model = labels.get("model_name") or labels.get("model") or ""
        found[name, model, labels.get("status", "")] += float(value)
    return found


@dataclass(frozen=True)
class Rate:
    """The work of a model between two pages; None where nothing happened."""

    model: str
    requests: float
    errors: float
    mean_ms: float | None
    rows: float | None
    wait_ms: float | None


def rates(before: Samples, now: Samples, seconds: float) -> list[Rate]:
    """The work of each model between two pages that are `seconds` apart."""

    def grown(name: str, model: str, status: str | None = None) -> float:
        return sum(
            value - before.get(key, 0.0)
            for key, value in now.items()
            if key[0] == name and key[1] == model and status in (None, key[2])
        )

    def mean(name: str, model: str, scale: float = 1.0) -> float | None:
        count = grown(f"{name}_count", model)
        return scale * grown(f"{name}_sum", model) / count if count else None

    found = []
    for model in sorted({key[1] for key in now if key[1]}):
        requests = grown(":tensorflow:serving:request_count", model)
        answered = grown(":tensorflow:serving:request_count", model, "OK")
        found.append(
            Rate(
                model,
                requests / seconds,
                (requests - answered) / seconds,
                mean(":tensorflow:serving:request_latency", model, 1e-3),
                mean("embedserve_batch_rows", model),
                mean("embedserve_queue_wait_seconds", model, 1e3),
            )
        )
    return found


def _show(found: Sequence[Rate], url: str, *, as_json: bool) -> None:
    if as_json:
        models: dict[str, Any] = {one.model: {k: v for k, v in vars(one).items() if k != "model"} for one in found}
        print(json.dumps({"time": time.time(), "models": models}), flush=True)
        return
    rows = [(one.model, *map(_number, (one.requests, one.errors, one.mean_ms, one.rows, one.wait_ms))) for one in found]
    clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
    print(f"{clear}{url}  {time.strftime('%H:%M:%S')}\n{table(_HEAD, rows)}", flush=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
