"""What a fleet of workers does next: functions over plain values, without clock, process or await; for `fleet`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from embedserve.server.workers.messages import Key

__all__ = [
    "DEATHS_AT_START",
    "WorkerView",
    "catching_up",
    "may_serve",
    "next_to_load",
    "next_to_replace",
    "restart_delay",
    "silent",
]

# So many deaths of one worker before the ports have opened end the start.
DEATHS_AT_START = 3
# A process that has served for so many seconds is replaced at once when it dies.
STEADY = 10.0
LONGEST_DELAY = 60.0


@dataclass(frozen=True)
class WorkerView:
    """One worker, as decisions see it.

    Attributes:
        index: Which one.
        up: Versions can be loaded in it.
        serving: It was told to open its ports: its answers count.
        told: What it was told to load and not to drop.
        loaded: What it has loaded.
        draining: It was told to end.
        in_trouble: It cannot help itself any more: stuck runs have its threads.
    """

    index: int
    up: bool = True
    serving: bool = False
    told: frozenset[Key] = frozenset()
    loaded: frozenset[Key] = frozenset()
    draining: bool = False
    in_trouble: bool = False


def next_to_load(key: Key, workers: Sequence[WorkerView]) -> tuple[int, ...] | None:
    """Which workers are told to load `key` now; nobody while somebody is at it; None when it may be published.

    While workers serve, one of them goes first: a version that ends the process takes one worker with it, not all. A
    worker that comes up meanwhile loads what is published before it serves (`catching_up`), so that it need not be
    waited for. While none serves, at the start, all load side by side.
    """
    serving = [worker for worker in workers if worker.serving]
    lacking = [worker for worker in serving or workers if key not in worker.loaded]
    if not lacking:
        return None
    if not serving:
        return tuple(worker.index for worker in lacking if worker.up and key not in worker.told)
    if any(key in worker.told for worker in lacking):
        return ()
    proven = any(key in worker.loaded for worker in serving)
    return tuple(worker.index for worker in (lacking if proven else lacking[:1]))


def catching_up(worker: WorkerView, ready: Collection[Key]) -> list[Key]:
    """What a worker that does not serve yet has to be told to load: all that is published, or about to be.

    Of two generations of a version the newer: a worker keeps the older only where that serves. It then waits until the
    older is dropped (`may_serve`), which is a matter of moments.
    """
    if not worker.up or worker.serving:
        return []
    newest: dict[tuple[str, int], Key] = {}
    for key in sorted(ready):
        newest[key.name, key.version] = key
    return [key for key in newest.values() if key not in worker.told]


def may_serve(worker: WorkerView, ready: Collection[Key]) -> bool:
    """Whether a worker has everything that the others answer with."""
    return worker.up and all(key in worker.loaded for key in ready)


def next_to_replace(workers: Sequence[WorkerView]) -> int | None:
    """Which worker is told to end and make room for a new process; None for nobody now.

    One after the other: all others serve meanwhile, be they in trouble as well.
    """
    if not all(worker.serving and not worker.draining for worker in workers):
        return None
    return next((worker.index for worker in workers if worker.in_trouble), None)


def restart_delay(short_lives: int) -> float:
    """Seconds before a process is replaced, after so many in a row that did not serve for `STEADY` seconds."""
    return min(2.0 ** (short_lives - 1), LONGEST_DELAY) if short_lives else 0.0


def silent(now: float, looked_before: float, heard: float, limit: float) -> bool:
    """Whether a worker has said nothing for `limit` seconds.

    A supervisor that has not run itself for a while (`looked_before` is long ago) has not listened either, so it does
    not judge.
    """
    return now - heard > limit and now - looked_before < limit / 2
