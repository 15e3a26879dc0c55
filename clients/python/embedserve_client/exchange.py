"""A call as steps: exchanges with a server, pauses between attempts, and calls of a registry.

A flow is a generator that yields steps and is given their results; `Client` performs the steps by blocking, and
`AsyncClient` by awaiting. What is tried again, where and when is decided here, once for both. The module knows no
protocol and no socket.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

from embedserve_client.errors import DeadlineExceededError, InvalidInputError, ServingError

__all__ = [
    "Addresses",
    "Ask",
    "Exchange",
    "Failure",
    "Flow",
    "Pause",
    "Reply",
    "Request",
    "Retry",
    "Step",
    "attempts",
    "deadline_error",
    "deadline_of",
    "time_left",
]

T = TypeVar("T")

RESTING = 5.0
"""Seconds for which an address that could not be reached is asked last."""


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed call is sent again. A call that the server may have begun to answer is never repeated.

    Repeated are calls that the server refused as UNAVAILABLE, and calls of which the server surely saw nothing: the
    connection could not be made, ended before the first byte, or was refused by HTTP/2's own rules.

    Attributes:
        attempts: Attempts in all; 1 never repeats.
        initial: Upper bound of the first pause, in seconds. Pauses are uniform between 0 and the bound (full jitter).
        multiplier: Growth of the bound with each round over the addresses.
        maximum: The largest bound, in seconds.

    Raises:
        InvalidInputError: No attempt, or a negative number.
    """

    attempts: int = 4
    initial: float = 0.05
    multiplier: float = 2.0
    maximum: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.initial, self.multiplier, self.maximum) < 0:
            raise InvalidInputError(f"expects one attempt or more and no negative number, got {self!r}")

    def pause(self, round: int, draw: float) -> float:
        """Seconds to wait before a round, from 0 on; `draw` is between 0 and 1."""
        return draw * min(self.maximum, self.initial * self.multiplier**round)


@dataclass(frozen=True, slots=True)
class Request:
    """A request of a protocol.

    Attributes:
        path: An RPC's path, or a URL's path.
        parts: The body; None asks by GET.
        headers: Names in lower case, and values.
    """

    path: str
    parts: Sequence[bytes | memoryview] | None
    headers: Sequence[tuple[str, str]] = ()


class Reply(NamedTuple):
    """A whole answer that is no error: the body, and its media type."""

    body: bytes
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """Step: send a request to an address and give the reply.

    Attributes:
        address: Number of the address.
        deadline: As `deadline_of`.
    """

    address: int
    request: Request
    deadline: float | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Step: wait for a number of seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ask:
    """Step: a call of a registry in this process, in both forms."""

    blocking: Callable[[], Any]
    awaitable: Callable[[], Awaitable[Any]]


Step: TypeAlias = Exchange | Pause | Ask
Flow: TypeAlias = Generator[Step, Any, T]


class Failure(Exception):
    """An exchange without an answer to give.

    Attributes:
        error: What the caller is told.
        repeatable: Whether the exchange may be tried again.
        unreachable: Whether the address could not be reached at all.
    """

    def __init__(self, error: ServingError, *, repeatable: bool = False, unreachable: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.repeatable = repeatable
        self.unreachable = unreachable


def deadline_of(timeout: float | None) -> float | None:
    """The time of the monotonic clock after `timeout` seconds; None for None and infinity.

    Raises:
        InvalidInputError: No number of seconds, or a negative number.
    """
    if timeout is None or timeout == float("inf"):
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidInputError(f"timeout must be seconds, 0 or more, got {timeout!r}")
    return time.monotonic() + timeout


def time_left(deadline: float | None) -> float | None:
    """Seconds until a deadline; None without one.

    Raises:
        DeadlineExceededError: The deadline has passed.
    """
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise deadline_error()
    return left


def deadline_error(last: ServingError | None = None) -> DeadlineExceededError:
    """The error for a deadline that passed in the client, with the last failure before, if any."""
    reason = f"; the last attempt failed: {last}" if last is not None else ""
    return DeadlineExceededError(f"the timeout of the call passed before an answer{reason}")


class Addresses:
    """Round robin over addresses; those that could not be reached lately come last. For any thread."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._turn = itertools.count()
        self._resting: dict[int, float] = {}

    def choose(self, tried: Sequence[int]) -> int:
        """The next address for a call that has tried some in the current round."""
        first = next(self._turn) % self._count
        if self._count == 1:
            return 0
        order = [(first + step) % self._count for step in range(self._count)]
        fresh = [at for at in order if at not in tried] or order
        now = self._clock()
        return next((at for at in fresh if self._resting.get(at, 0.0) <= now), fresh[0])

    def reached(self, address: int) -> None:
        """An address has answered."""
        if self._resting:
            self._resting.pop(address, None)

    def unreachable(self, address: int) -> None:
        """An address could not be reached."""
        self._resting[address] = self._clock() + RESTING


def attempts(
    addresses: Addresses,
    count: int,
    retry: Retry,
    deadline: float | None,
    request: Request,
    draw: Callable[[], float] = random.random,
) -> Flow[Reply]:
    """Send a request until an answer, an error that may not be repeated, the last attempt or the deadline.

    The other addresses are tried at once; a pause comes before each further round over all `count` addresses.

    Raises:
        ServingError: The error of the last attempt.
        DeadlineExceededError: The deadline has passed, or would pass in the pause.
    """
    tried: list[int] = []
    rounds = 0
    last: ServingError | None = None
    for attempt in range(retry.attempts):
        if len(tried) == count:
            pause = retry.pause(rounds, draw())
            if deadline is not None and time.monotonic() + pause >= deadline:
                raise deadline_error(last)
            yield Pause(pause)
            tried.clear()
            rounds += 1
        address = addresses.choose(tried)
        tried.append(address)
        try:
            reply: Reply = yield Exchange(address, request, deadline)
        except Failure as failure:
            if failure.unreachable:
                addresses.unreachable(address)
            last = failure.error
            if not failure.repeatable or attempt == retry.attempts - 1:
                raise last from None
        else:
            addresses.reached(address)
            return reply
    raise AssertionError("a call has one attempt at least")
