"""How urgent a request is: three levels, their names on every API, and a queue with a lane for each.

The rule, here and in `batching/batch_queue.py`: a request overtakes those of lower priority, takes the place of the
newest and lowest where the queue is full, and of `TURNS` runs in a row one goes to whoever has waited longest.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Literal, TypeAlias, TypeVar

from embedserve.errors import InvalidInputError

__all__ = ["OVERTAKEN", "PRIORITY_KEY", "TURNS", "Lanes", "Priority", "PriorityName", "priority_named", "sent_priority"]

T = TypeVar("T")

PriorityName: TypeAlias = Literal["high", "normal", "low"]

PRIORITY_KEY = "x-embedserve-priority"
"""The REST header and the gRPC metadata key that name a request's priority."""

OVERTAKEN = "a request of higher priority took this one's place"
"""What the error of a request that was evicted from a full queue ends with."""

TURNS = 8


class Priority(enum.IntEnum):
    """How urgent a request is; a smaller number goes first. Only the names are public: other servers count up."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


_PUBLIC: tuple[PriorityName, ...] = ("high", "normal", "low")
_NAMES: dict[str, Priority] = dict(zip(_PUBLIC, Priority, strict=True))


def priority_named(name: str) -> Priority:
    """The level of that name, in any case.

    Raises:
        InvalidInputError: There is none.
    """
    found = _NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if found is None:
        raise InvalidInputError(f"priority {name!r} is none of {', '.join(_NAMES)}")
    return found


def sent_priority(value: str | bytes) -> PriorityName:
    """What a client sent under `PRIORITY_KEY`, as `predict` takes it.

    Raises:
        InvalidInputError: It is no priority.
    """
    try:
        level = priority_named(value.decode("latin-1") if isinstance(value, bytes) else value)
    except InvalidInputError as error:
        raise InvalidInputError(f"{PRIORITY_KEY}: {error}") from None
    return _PUBLIC[level]


class Lanes(Generic[T]):
    """What waits, by priority and in the order in which it came."""

    def __init__(self) -> None:
        self._lanes: tuple[deque[tuple[int, T]], ...] = tuple(deque() for _ in Priority)
        self._came = 0
        self._size = 0
        self._overtakes = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        return (item for lane in self._lanes for _, item in lane)

    def append(self, item: T, level: int) -> None:
        """Add the newest of its level."""
        self._came += 1
        self._size += 1
        self._lanes[level].append((self._came, item))

    def popleft(self) -> T:
        """Take the first of the highest level, or now and then the oldest of all."""
        self._size -= 1
        for level, lane in enumerate(self._lanes):
            if lane:
                if self._overtakes == TURNS - 1:
                    self._overtakes = 0
                    return min(filter(None, self._lanes), key=lambda lane: lane[0][0]).popleft()[1]
                self._overtakes = self._overtakes + 1 if any(self._lanes[level + 1 :]) else 0
                return lane.popleft()[1]
        raise IndexError("nothing waits")

    def evict(self, level: int) -> T | None:
        """Take out the newest of the lowest level below `level`; None if nothing is below."""
        for lane in reversed(self._lanes[level + 1 :]):
            if lane:
                self._size -= 1
                return lane.pop()[1]
        return None

    def retain(self, wanted: Callable[[T], bool]) -> int:
        """Take out what is not wanted any more; how many that were."""
        before = self._size
        self._lanes = tuple(deque(entry for entry in lane if wanted(entry[1])) for lane in self._lanes)
        self._size = sum(map(len, self._lanes))
        return before - self._size

    def clear(self) -> None:
        """Take everything out."""
        self.retain(lambda _: False)
