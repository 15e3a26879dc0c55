"""The urgency of a request: three levels, their names on every API, and a queue with a lane for each level.

The rule, here and in `batching/batch_queue.py`: a request overtakes requests of lower priority. In a full queue the
request takes the place of the newest request of the lowest priority. A run in every `TURNS` goes to the oldest request.
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
"""The name of the REST header and the gRPC metadata key for a request's priority."""

OVERTAKEN = "a request of higher priority took this one's place"
"""The end of the error message for a request evicted from a full queue."""

TURNS = 8


class Priority(enum.IntEnum):
    """The urgency of a request; a smaller number goes first. Only the names are public: other servers count upwards."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


_PUBLIC: tuple[PriorityName, ...] = ("high", "normal", "low")
_NAMES: dict[str, Priority] = dict(zip(_PUBLIC, Priority, strict=True))


def priority_named(name: str) -> Priority:
    """Return the level with the name, in any case.

    Raises:
        InvalidInputError: The name is unknown.
    """
    found = _NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if found is None:
        raise InvalidInputError(f"priority {name!r} is none of {', '.join(_NAMES)}")
    return found


def sent_priority(value: str | bytes) -> PriorityName:
    """Convert a client's value of `PRIORITY_KEY` to the argument of `predict`.

    Raises:
        InvalidInputError: The value is no priority.
    """
    try:
        level = priority_named(value.decode("latin-1") if isinstance(value, bytes) else value)
    except InvalidInputError as error:
        raise InvalidInputError(f"{PRIORITY_KEY}: {error}") from None
    return _PUBLIC[level]


class Lanes(Generic[T]):
    """A queue of items by priority, and by arrival within a priority."""

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
        """Add an item as the newest of the level."""
        self._came += 1
        self._size += 1
        self._lanes[level].append((self._came, item))

    def popleft(self) -> T:
        """Remove and return the oldest item of the highest level; once in `TURNS`, the oldest item of all levels."""
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
        """Remove and return the newest item of the lowest level below `level`; None without a lower item."""
        for lane in reversed(self._lanes[level + 1 :]):
            if lane:
                self._size -= 1
                return lane.pop()[1]
        return None

    def retain(self, wanted: Callable[[T], bool]) -> int:
        """Remove the unwanted items; return the number of removed items."""
        before = self._size
        self._lanes = tuple(deque(entry for entry in lane if wanted(entry[1])) for lane in self._lanes)
        self._size = sum(map(len, self._lanes))
        return before - self._size

    def clear(self) -> None:
        """Remove all items."""
        self.retain(lambda _: False)
