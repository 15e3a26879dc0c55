"""Decides the next step of a fleet of workers: functions over plain values, without clock, process or await."""

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

# Deaths of a single worker before the ports have opened; at this number the start fails.
DEATHS_AT_START = 3
# Seconds of service after which a dead process is replaced at once.
STEADY = 10.0
# Bound of the seconds before a process is replaced.
LONGEST_DELAY = 60.0


@dataclass(frozen=True)
class WorkerView:
    """The facts for decisions about a single worker.

    Attributes:
        index: The worker's number.
        up: Versions can be loaded in the worker.
        serving: The worker was told to open ports, so the worker's answers count.
        told: Versions ordered to be loaded, without versions ordered to be dropped.
        loaded: Versions in the worker's memory.
        full: All load threads of the worker have a version to load.
        draining: The worker was told to end.
        in_trouble: Stuck runs hold the worker's threads, so only a new process helps.
    """

    index: int
    up: bool = True
    serving: bool = False
    told: frozenset[Key] = frozenset()
    loaded: frozenset[Key] = frozenset()
    draining: bool = False
    in_trouble: bool = False
    full: bool = False


def next_to_load(key: Key, workers: Sequence[WorkerView]) -> tuple[int, ...] | None:
    """Choose the workers to load `key` now: an empty tuple means wait, None means `key` may be published.

    While workers serve, a single worker loads first: a version fatal to processes then costs a single worker, not all.
    A worker started meanwhile loads published versions before serving (`catching_up`), so the rollout does not wait for
    the new worker. While no worker serves, at the start, all workers load side by side. A worker gets as many orders at
    a time as load threads, so a worker's end is blamed only on versions that were loading.
    """
    serving = [worker for worker in workers if worker.serving]
    lacking = [worker for worker in serving or workers if key not in worker.loaded]
    if not lacking:
        return None
    free = tuple(worker.index for worker in lacking if worker.up and not worker.full and key not in worker.told)
    if not serving or any(key in worker.loaded for worker in serving):
        return free
    return () if any(key in worker.told for worker in lacking) else free[:1]


def catching_up(worker: WorkerView, ready: Collection[Key]) -> list[Key]:
    """The versions for a worker to load before serving: all published versions, and versions about to be published.

    Of two generations of a version, the newer is chosen: only a serving worker keeps the older generation. The worker
    then waits until the older generation is dropped (`may_serve`), usually for moments.
    """
    if not worker.up or worker.serving:
        return []
    newest: dict[tuple[str, int], Key] = {}
    for key in sorted(ready):
        newest[key.name, key.version] = key
    return [key for key in newest.values() if key not in worker.told]


def may_serve(worker: WorkerView, ready: Collection[Key]) -> bool:
    """Whether a worker has loaded every version in `ready`."""
    return worker.up and all(key in worker.loaded for key in ready)


def next_to_replace(workers: Sequence[WorkerView]) -> int | None:
    """The index of the worker to drain and replace by a new process; None to replace no worker now.

    Workers are replaced singly: all remaining workers serve meanwhile, even workers in trouble.
    """
    if not all(worker.serving and not worker.draining for worker in workers):
        return None
    return next((worker.index for worker in workers if worker.in_trouble), None)


def restart_delay(short_lives: int) -> float:
    """Seconds before a process is replaced.

    The delay doubles from 1 s up to `LONGEST_DELAY` with each of `short_lives` consecutive processes that served for
    less than `STEADY` seconds.
    """
    return min(2.0 ** (short_lives - 1), LONGEST_DELAY) if short_lives else 0.0


def silent(now: float, looked_before: float, heard: float, limit: float) -> bool:
    """Whether a worker has sent no message for `limit` seconds.

    A paused supervisor (`looked_before` is long ago) has not read messages either, so the answer is no.
    """
    return now - heard > limit and now - looked_before < limit / 2
