"""One measurement: h2load against one server, and what came of it.

Called by `measure`. HTTP/1.1 has a connection per request under way; gRPC, as its clients do, up to eight streams on a
connection. Knows no server and no model.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

STREAMS = 8


@dataclass(frozen=True)
class Target:
    """One request, to be sent again and again.

    Attributes:
        url: Of the server's port and the request's path.
        body: Of each request; for gRPC with its prefix.
        grpc: HTTP/2 with gRPC's headers, or else HTTP/1.1.
        answer_bytes: Size of a right answer's body where it is always the same, else None. A failed gRPC call answers
            200 with a status in its trailers and no body: that is how it shows.
        content_type: Of a body over HTTP/1.1.
    """

    url: str
    body: bytes
    grpc: bool
    answer_bytes: int | None = None
    content_type: str = "application/json"


@dataclass(frozen=True)
class Load:
    """What a measurement found; latencies are in seconds.

    Attributes:
        answered: Requests answered with success within the time measured.
        failed: Requests that were not: another status, a broken connection, an answer of another size.
        rate: Answers per second.
        p50, p99: Latency of the answered requests.
        cpu: Processor time of the server per answered request, in seconds; 0 where it was not read.
        gap: The longest time between two answers, in seconds.
    """

    answered: int
    failed: int
    rate: float
    p50: float
    p99: float
    cpu: float = 0.0
    gap: float = 0.0


class NoLoadGenerator(Exception):
    """h2load is not installed."""


def h2load() -> str:
    """The load generator's path.

    Raises:
        NoLoadGenerator: With what to install.
    """
    found = shutil.which("h2load")
    if found is None:
        raise NoLoadGenerator(
            "h2load was not found; it is in the package nghttp2-client (apt-get install nghttp2-client)"
        )
    return found


def command_of(target: Target, concurrency: int, seconds: float, body: Path, log: Path) -> list[str]:
    """h2load's command line."""
    command = [h2load(), "--duration", f"{round(seconds * 1000)}ms", "--data", str(body), "--log-file", str(log)]
    if target.grpc:
        clients = -(-concurrency // STREAMS)
        command += ["--clients", str(clients), "--max-concurrent-streams", str(concurrency // clients)]
        command += ["--header", "content-type: application/grpc", "--header", "te: trailers"]
        # Windows that no answer fills, as gRPC's clients grow them by themselves.
        command += ["--window-bits", "24", "--connection-window-bits", "26"]
    else:
        command += ["--h1", "--clients", str(concurrency), "--header", f"content-type: {target.content_type}"]
    return [*command, target.url]


def run(target: Target, concurrency: int, seconds: float, core: int) -> Load:
    """Keep `concurrency` requests under way for `seconds`, from processor `core`.

    Raises:
        RuntimeError: h2load ended with an error, in its words.
    """
    with tempfile.TemporaryDirectory() as directory:
        body, log = Path(directory, "body"), Path(directory, "log")
        body.write_bytes(target.body)
        done = subprocess.run(
            ["taskset", "--cpu-list", str(core), *command_of(target, concurrency, seconds, body, log)],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
        if done.returncode:
            raise RuntimeError(f"h2load: {done.stderr.strip() or done.stdout.strip()}"[:500])
        return parse(done.stdout, log.read_text(), target, concurrency)


def parse(printed: str, log: str, target: Target, concurrency: int) -> Load:
    """h2load's summary, and its log with a line per request: start, status and duration, the times in µs."""

    def number(pattern: str) -> int:
        found = re.search(pattern, printed)
        assert found is not None, printed
        return int(found[1])

    (rate,) = re.findall(r"finished in .*?, ([\d.]+) req/s", printed)
    succeeded = number(r"(\d+) succeeded")
    failed = sum(number(rf"(\d+) {kind}") for kind in ("failed", "errored", "timeout"))
    if target.answer_bytes:
        # What was under way when time was up may have left some of its bytes here.
        surplus = number(r"\((\d+)\) data") - succeeded * target.answer_bytes
        if not 0 <= surplus <= concurrency * target.answer_bytes:
            failed += -(-abs(surplus) // target.answer_bytes)
    lines = (line.split("\t") for line in log.splitlines())
    answers = [(int(start), int(duration)) for start, status, duration in lines if status == "200"]
    latencies = sorted(duration / 1e6 for _, duration in answers)
    ends = sorted(start + duration for start, duration in answers)
    gap = max((after - before for before, after in pairwise(ends)), default=0) / 1e6
    return Load(succeeded, failed, float(rate), percentile(latencies, 0.50), percentile(latencies, 0.99), gap=gap)


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def median(loads: list[Load]) -> Load:
    """Each figure's own median; failures add up."""
    return Load(
        sum(load.answered for load in loads),
        sum(load.failed for load in loads),
        *(statistics.median(getattr(load, name) for load in loads) for name in ("rate", "p50", "p99", "cpu", "gap")),
    )
