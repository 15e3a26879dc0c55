"""A batch queue under simulated load: callers, run slots and a clock that are all made up, so that nothing is noise.

Drives the queues of `embedserve.batching` as the batcher does. Used by the tests, and by `benchmarks.adaptive`.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from embedserve.batching.adaptive import AdaptivePolicy
from embedserve.batching.batch import Batch, BatchTask
from embedserve.batching.batch_queue import SLACK, BatchQueue
from embedserve.batching.merge import cut, target_rows
from embedserve.config import BatchingOptions
from embedserve.errors import ServingError
from embedserve.priority import Priority

__all__ = ["ClosedLoop", "Load", "Machine", "OpenLoop", "Outcome", "simulate"]

# What comes within one turn of an event loop shares a decision.
TURN = 20e-6


@dataclass(frozen=True)
class Machine:
    """What runs the batches.

    Attributes:
        fixed, per_row: Seconds of a run, and of each of its rows.
        slots: Runs at once.
        contention: How much longer a run takes for each that is beside it; 1 means that a second slot gains nothing.
        noise: Standard deviation of a run's time, as a share of it.
        stall: Seconds by which a run takes longer when it runs as a whole second begins: a garbage collection, a swap.
    """

    fixed: float
    per_row: float
    slots: int = 1
    contention: float = 0.0
    noise: float = 0.05
    stall: float = 0.0

    def seconds(self, rows: int, beside: int, now: float, dice: random.Random) -> float:
        """How long a run takes that starts now beside so many others."""
        slower = (1 + self.contention * beside) * max(dice.gauss(1, self.noise), 0.5)
        seconds = (self.fixed + self.per_row * rows) * slower
        return seconds + self.stall * (math.floor(now + seconds) - math.floor(now))

    def capacity(self, rows: int) -> float:
        """Rows per second in batches of `rows`."""
        return self.slots / (1 + self.contention * (self.slots - 1)) * rows / (self.fixed + self.per_row * rows)


@dataclass(frozen=True)
class ClosedLoop:
    """Callers that ask again when they have their answer, after up to `pause` seconds."""

    callers: int
    pause: float = 0.0
    timeout: float | None = None


@dataclass(frozen=True)
class OpenLoop:
    """Requests that come by themselves, `rate` per second, `burst` at a time; a share of them with high priority."""

    rate: float
    timeout: float | None = None
    burst: int = 1
    high: float = 0.0


Load: TypeAlias = ClosedLoop | OpenLoop


@dataclass
class Outcome:
    """What became of the requests; latencies in seconds, of those that were answered in time."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    late: int = 0
    runs: int = 0
    high: Counter[str] = field(default_factory=Counter)  # Of high priority: asked, answered.

    @property
    def throughput(self) -> float:
        """Answers in time per second."""
        return len(self.latencies) / self.seconds

    @property
    def mean(self) -> float:
        return sum(self.latencies) / len(self.latencies) if self.latencies else math.inf

    def quantile(self, share: float) -> float:
        return sorted(self.latencies)[int(share * len(self.latencies))] if self.latencies else math.inf


class _Future:
    """As much of a future as the queues ask for."""

    def __init__(self, failed: Callable[[BaseException], None], level: int) -> None:
        self.level = level
        self._failed = failed
        self._done = False

    def done(self) -> bool:
        return self._done

    def set_exception(self, error: BaseException) -> None:
        self._done = True
        self._failed(error)

    def set_result(self, result: object) -> None:
        self._done = True


class _Simulation:
    def __init__(self, queue: BatchQueue, machine: Machine, load: Load, options: BatchingOptions, seed: int) -> None:
        self.queue = queue
        self.machine = machine
        self.load = load
        self.options = options
        # Apart, so that two queues get the same arrivals and the same machine.
        self.dice = random.Random(seed)
        self.times = random.Random(seed + 1)
        self.now = 0.0
        self.running = 0
        self.looking = False
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.outcome = Outcome(0.0)
        self.counting = False

    def at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.order), call))

    def run(self, seconds: float) -> Outcome:
        """A third as long first, to warm up."""
        load = self.load
        if isinstance(load, ClosedLoop):
            for _ in range(load.callers):
                self.at(self.dice.random() * (load.pause or TURN), self.ask)
        else:
            self.at(0.0, self.arrive)
        self.at(seconds / 3, self.count)
        while self.events and self.events[0][0] < seconds * 4 / 3:
            self.now, _, call = heapq.heappop(self.events)
            call()
        self.outcome.seconds = seconds
        return self.outcome

    def count(self) -> None:
        self.counting = True

    def arrive(self) -> None:
        assert isinstance(self.load, OpenLoop)
        for _ in range(self.load.burst):
            self.ask()
        self.at(self.now + self.dice.expovariate(self.load.rate / self.load.burst), self.arrive)

    def ask(self) -> None:
        timeout, level = self.load.timeout, Priority.NORMAL
        if isinstance(self.load, OpenLoop) and self.load.high and self.dice.random() < self.load.high:
            level = Priority.HIGH
            self.outcome.high["asked"] += self.counting

        def failed(error: BaseException) -> None:
            if self.counting:
                self.outcome.failures[type(error).__name__] += 1
            # A client that is refused comes again, but not at once.
            self.again(0.01)

        future: Any = _Future(failed, level)
        deadline = None if timeout is None else self.now + timeout
        task = BatchTask(future, {}, 1, deadline, self.now)
        try:
            if deadline is not None and isinstance(policy := self.queue._policy, AdaptivePolicy):
                policy.check_deadline(self.queue, 1, deadline, self.now, level)
            self.queue.put((None,), task, self.now, level)
        except ServingError as error:
            failed(error)
            return
        self.look_soon()

    def again(self, pause: float = 0.0) -> None:
        if isinstance(self.load, ClosedLoop):
            self.at(self.now + pause + self.dice.random() * self.load.pause, self.ask)

    def look_soon(self) -> None:
        if not self.looking:
            self.looking = True
            self.at(self.now + TURN, self.look)

    def look(self) -> None:
        self.looking = False
        while self.running < self.machine.slots:
            at = self.queue.ready_at()
            if at is None:
                return
            if at > self.now + SLACK:
                self.at(at, self.look_soon)
                return
            batch = self.queue.pop(self.now)
            if batch is None:
                return
            self.start(batch)

    def start(self, batch: Batch) -> None:
        tasks = []
        for task in batch.tasks:
            if task.deadline is not None and task.deadline <= self.now and not task.future.done():
                task.future.set_exception(TimeoutError())
            if not task.future.done():
                tasks.append(task)
        if not tasks:
            return
        rows = target_rows(sum(task.rows for task in tasks), self.options.allowed_batch_sizes)
        seconds = self.machine.seconds(rows, self.running, self.now, self.times)
        self.running += 1
        if self.counting:
            self.outcome.runs += 1
        self.queue.started(self.now)
        self.at(self.now + seconds, lambda: self.end(tasks, rows, seconds))

    def end(self, tasks: list[BatchTask], rows: int, seconds: float) -> None:
        self.running -= 1
        self.queue.ended(seconds, rows, self.now)
        for task in tasks:
            if task.deadline is not None and task.deadline < self.now:
                if self.counting:
                    self.outcome.late += 1
            elif self.counting:
                self.outcome.latencies.append(self.now - task.entered)
                future: Any = task.future
                self.outcome.high["answered"] += future.level == Priority.HIGH
            self.again()
        self.look_soon()


def simulate(
    machine: Machine,
    load: Load,
    seconds: float,
    options: BatchingOptions | None = None,
    *,
    adaptive: bool,
    seed: int = 1,
) -> Outcome:
    """The outcome of `seconds` of a load, after some warm-up."""
    options = options or BatchingOptions()
    queue = BatchQueue(options, cut, AdaptivePolicy(options, machine.slots) if adaptive else None)
    return _Simulation(queue, machine, load, options, seed).run(seconds)
