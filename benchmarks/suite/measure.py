"""Runs the suite: starts every server, and measures each in its turn, again and again, while the others stand still.

In turns, so that whatever else the machine does falls on all of them; a server that waits for its turn is stopped by
signal and costs nothing. Called by `benchmarks.__main__`; knows no table and no bar.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.ports import free_port
from benchmarks.suite import load
from benchmarks.suite.client import Client, Refused
from benchmarks.suite.compiled import program_of
from benchmarks.suite.contenders import CONTENDERS, Contender, Place
from benchmarks.suite.environments import NotInstallable, python_of, version_of
from benchmarks.suite.load import Load, Target
from benchmarks.suite.processes import Processes, ServerFailed, running
from benchmarks.suite.wire import Format, framed, tfs_answer
from benchmarks.suite.workloads import ROOT, WORKLOADS, Examples, Workload, examples_of, models_directory

START_LIMIT = 300.0
CHECKS = 2
WARM_UP = 0.2
# A server so slow that each caller has fewer answers than this is given more time, up to so many seconds.
ENOUGH = 3
LONGEST = 6.0


@dataclass(frozen=True, order=True)
class Cell:
    """One figure of the suite: who is asked for what, over which protocol, by how many at once."""

    workload: str
    protocol: str
    concurrency: int
    server: str


@dataclass(frozen=True)
class Plan:
    """What is to be measured, and how long.

    Attributes:
        contenders: In the order of the tables.
        workloads: Names and how many ask at once; a concurrency that a workload has not is left out.
        seconds: Of one measurement, before the workload's own factor.
        repeats: Rounds.
        server_core, load_core: Processors.
        cells: Only these; None measures all that a server can be asked.
    """

    contenders: Sequence[Contender]
    workloads: Sequence[Workload]
    seconds: float
    repeats: int
    server_core: int
    load_core: int
    cells: frozenset[Cell] | None = None


@dataclass
class Results:
    """What came out: samples per cell, one per round; who could not take part; what each server is."""

    samples: dict[Cell, list[Load]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def medians(self) -> dict[Cell, Load]:
        return {cell: load.median(found) for cell, found in self.samples.items() if found}


class Entrant:
    """A contender that takes part: its processes, and how to measure it."""

    def __init__(self, contender: Contender, plan: Plan, place: Place, examples: Mapping[str, Examples]) -> None:
        self.contender = contender
        self._plan, self.place, self._examples = plan, place, examples
        self._processes: Processes | None = None
        self._sizes: dict[tuple[str, str], int | None] = {}

    @property
    def workloads(self) -> list[Workload]:
        """What it is asked of what the plan has."""
        asked = self.contender.workloads
        return [workload for workload in self._plan.workloads if not asked or workload.name in asked]

    def cells(self) -> Iterator[tuple[Cell, Workload, Format]]:
        """What is measured of it. A no-op is a ceiling, which the highest concurrency shows."""
        for workload in self.workloads:
            concurrency = workload.concurrency[-1:] if self.contender.fixed else workload.concurrency
            for protocol in workload.protocols:
                found = self.contender.format(protocol)
                if found is not None:
                    for count in concurrency:
                        cell = Cell(workload.name, protocol, count, self.contender.name)
                        if self._plan.cells is None or cell in self._plan.cells:
                            yield cell, workload, found

    def start(self) -> None:
        """Start it and return when it has answered every workload right.

        Raises:
            ServerFailed: It did not.
        """
        environment = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(ROOT) if self.contender.requirements is None else "",
            "PYTHONUNBUFFERED": "1",
            **self.contender.environment(self.place),
        }
        self._processes = Processes(
            self.contender.command(self.place),
            environment,
            self.place.work / "log",
            self._plan.server_core,
            piped=self._is_worker,
        )
        if self._is_worker:
            self._reply()
        else:
            self._processes.wait_until(self._answers, START_LIMIT)

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return [each.pid for each in self._processes.tree()] if self._processes is not None else []

    @property
    def _is_worker(self) -> bool:
        return self.contender.formats[0].protocol == "in-process"

    def _clients(self) -> Iterator[tuple[Workload, Format, Client]]:
        for workload in self.workloads:
            for format in self.contender.formats:
                if format.protocol in workload.protocols:
                    yield workload, format, Client(format, self._port(format), workload.name)

    def _port(self, format: Format) -> int:
        return self.place.grpc if format.protocol == "grpc" and not self.contender.one_port else self.place.rest

    def _answers(self) -> bool:
        for workload, _, client in self._clients():
            try:
                client.ask(self._examples[workload.name].x[:1])
            except Refused:
                return False
        return True

    def check(self) -> list[str]:
        """What is not answered right, by workload and protocol."""
        if self._is_worker:
            return []  # It checks itself, before every measurement.
        found = []
        for workload, format, client in self._clients():
            examples = self._examples[workload.name]
            wrong = client.wrong(examples, CHECKS, fixed=self.contender.fixed)
            found += [f"{self.contender.name}, {workload.name} over {format.protocol}: {what}" for what in wrong]
            sizes = {len(client.ask(examples.x[:1])) for _ in range(2)} if format.protocol == "grpc" else set()
            self._sizes[workload.name, format.protocol] = sizes.pop() + 5 if len(sizes) == 1 else None
        return found

    def measure(self, cell: Cell, workload: Workload, format: Format) -> Load:
        """One measurement of one cell."""
        assert self._processes is not None
        seconds = self._plan.seconds * workload.seconds
        if self._is_worker:
            return self._ask_worker(cell, seconds)
        body = format.encode(workload.name, self._examples[workload.name].x[:1])
        is_grpc = format.protocol == "grpc"
        target = Target(
            f"http://127.0.0.1:{self._port(format)}{format.path(workload.name)}",
            framed(body) if is_grpc else body,
            is_grpc,
            self._sizes.get((workload.name, format.protocol)),
        )
        # h2load's own warm-up would leave its bytes in what it counts.
        load.run(target, cell.concurrency, WARM_UP, self._plan.load_core)
        while True:
            before = self._processes.cpu
            found = load.run(target, cell.concurrency, seconds, self._plan.load_core)
            used = self._processes.cpu - before
            if found.failed or found.answered >= ENOUGH * cell.concurrency or seconds >= LONGEST:
                return replace(found, cpu=used / max(1, found.answered))
            seconds = min(LONGEST, 3 * seconds)

    def _ask_worker(self, cell: Cell, seconds: float) -> Load:
        assert self._processes is not None
        assert self._processes.root.stdin is not None
        asked = {"workload": cell.workload, "concurrency": cell.concurrency, "seconds": seconds}
        self._processes.root.stdin.write(json.dumps(asked).encode() + b"\n")
        self._processes.root.stdin.flush()
        found = self._reply()
        return Load(int(found["answered"]), 0, found["rate"], found["p50"], found["p99"], found["cpu"])

    def _reply(self) -> dict[str, float]:
        assert self._processes is not None
        assert self._processes.root.stdout is not None
        line = self._processes.root.stdout.readline()
        if not line:
            self._processes.root.wait(10)
            raise ServerFailed(f"it ended: {self._processes.last_words()}")
        reply: dict[str, float] = json.loads(line)
        return reply

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run while the body does; one that cannot be stopped is started for it."""
        if self._processes is None:
            self.start()
        assert self._processes is not None
        if self.contender.halts:
            with running(self._processes):
                yield
        else:
            try:
                yield
            finally:
                self.close()

    def close(self) -> None:
        if self._processes is not None:
            self._processes.close()
            self._processes = None


def prepare(contender: Contender, results: Results) -> Path | None:
    """A contender's program or its environment's interpreter; None when it cannot be had, which `results` then tell."""
    if contender.requirements is None and not contender.compiled:
        return Path(sys.executable)
    try:
        if contender.compiled:
            return program_of(contender.compiled)
        assert contender.requirements is not None
        python = python_of(contender.requirements)
    except NotInstallable as error:
        results.absent[contender.name] = f"not installable: {error}"
        return None
    results.versions[contender.name] = version_of(python, contender.package)
    return python


def install(contenders: Sequence[Contender]) -> dict[str, str]:
    """Make models and environments; who cannot be had, and why."""
    models_directory(WORKLOADS)
    results = Results()
    for contender in contenders:
        prepare(contender, results)
    return results.absent


def run(plan: Plan, models: Path) -> Results:
    """Measure every cell of `plan`; a server that fails is told of in the results and left out."""
    results = Results()
    pin(plan.load_core)
    examples = {workload.name: examples_of(models, workload.name) for workload in plan.workloads}
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        answers = write_answers(Path(directory), examples)
        entrants = []
        for contender in plan.contenders:
            program = prepare(contender, results)
            if program is not None:
                place = new_place(Path(directory, contender.name), models, answers, program)
                entrant = Entrant(contender, plan, place, examples)
                if entrant.workloads:
                    entrants.append(entrant)
                    stack.callback(entrant.close)
        for number in range(plan.repeats + 1):
            # The first round only starts and checks. Later ones begin with another server each.
            turns = entrants[number % max(1, len(entrants)) :] + entrants[: number % max(1, len(entrants))]
            for entrant in turns:
                try:
                    take_turn(entrant, results, number, last=number == plan.repeats)
                except (ServerFailed, Refused, RuntimeError, OSError) as error:
                    results.absent[entrant.contender.name] = str(error)
                    say(f"{entrant.contender.name} is out: {error}")
                    entrant.close()
                    entrants = [each for each in entrants if each is not entrant]
    return results


def take_turn(entrant: Entrant, results: Results, number: int, *, last: bool) -> None:
    begun = time.perf_counter()
    with entrant.turn():
        if number == 0:
            results.problems += entrant.check()
            say(f"{entrant.contender.name} answers, after {time.perf_counter() - begun:.1f} s")
            return
        for cell, workload, format in entrant.cells():
            found = entrant.measure(cell, workload, format)
            results.samples.setdefault(cell, []).append(found)
            if found.failed or not found.answered:
                what = f"{found.failed} failed, {found.answered} answered"
                results.problems.append(
                    f"{cell.server}, {cell.workload} over {cell.protocol}, {cell.concurrency}: {what}"
                )
        if last:
            results.problems += entrant.check()
    say(f"round {number}: {entrant.contender.name}, {time.perf_counter() - begun:.1f} s")


def new_place(work: Path, models: Path, answers: Path, program: Path) -> Place:
    work.mkdir()
    return Place(program, models, work, answers, free_port(), free_port())


def write_answers(directory: Path, examples: Mapping[str, Examples]) -> Path:
    """What the no-ops answer: the first example's right answer, in TensorFlow Serving's formats."""
    answers = directory / "answers"
    answers.mkdir()
    grpc_format = CONTENDERS["embedserve-standalone"].format("grpc")
    assert grpc_format is not None
    sizes = {}
    for name, found in examples.items():
        y = found.y[:1]
        (answers / f"{name}.rest").write_bytes(json.dumps({"predictions": y.tolist()}).encode())
        (answers / f"{name}.grpc").write_bytes(tfs_answer(name, y))
        sizes[name] = len(grpc_format.encode(name, found.x[:1]))
    (answers / "requests.json").write_text(json.dumps(sizes))
    return answers


def narrowed(names: Sequence[str], concurrency: Sequence[int]) -> list[Workload]:
    """The workloads of these names, at these concurrencies only; all of them where nothing is said."""
    chosen = [workload for workload in WORKLOADS.values() if not names or workload.name in names]
    if concurrency:
        chosen = [
            replace(workload, concurrency=tuple(count for count in workload.concurrency if count in concurrency))
            for workload in chosen
        ]
    return [workload for workload in chosen if workload.concurrency]


def pin(core: int) -> None:
    """Keep this process, and the load generator that it starts, off the servers' processor."""
    os.sched_setaffinity(0, {core})


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
