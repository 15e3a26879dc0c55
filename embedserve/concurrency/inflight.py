"""The one account of what requests make the process hold: bodies, what they become, and answers until they are sent.

Adapters reserve before anything is made, and give back when the answer is sent. How many bytes something will be is
worked out by `tensors/sizes.py` and `grpc/message_size.py`. Loop only; knows no wire. A host's own arrays in process
are the host's memory, and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from embedserve.concurrency.container import usable_memory
from embedserve.errors import RequestTooLargeError

__all__ = ["InflightBytes", "Reservation", "default_limit"]


def default_limit() -> int:
    """A quarter of the memory that the process may use, in bytes."""
    return max(1, usable_memory() // 4)


MAX_GROWTH = 1 << 28
"""Bytes that any request may become, however few were sent: a few bytes stay small on the largest machine."""

GROWTH_FACTOR = 128
"""Bytes that each byte on the wire may become besides: what reading JSON of brackets takes, and little else."""


class InflightBytes:
    """Counts reserved bytes against `limit`."""

    def __init__(self, limit: int | None, request_limit: int) -> None:
        self.limit = default_limit() if limit is None else limit
        self.request_limit = request_limit
        self.reserved = 0

    def __repr__(self) -> str:
        return f"<InflightBytes {self.reserved} of {self.limit}>"

    def check_request(self, size: int) -> None:
        """Refuse one request that is too large by itself.

        Raises:
            RequestTooLargeError: `size` is over `max_request_bytes`.
        """
        if size > self.request_limit:
            raise RequestTooLargeError(
                f"the request has {size} bytes or more, max_request_bytes is {self.request_limit}"
            )

    def reserve(self, size: int, what: str = "") -> None:
        """Take `size` bytes; pair with `release`.

        Args:
            size: Bytes.
            what: What they are for, for the message.

        Raises:
            RequestTooLargeError: With them the bytes held would be over `max_inflight_bytes`. Nothing was taken.
        """
        if self.reserved + size > self.limit:
            raise RequestTooLargeError(
                f"{what}{': ' if what else ''}requests in flight hold {self.reserved} bytes; "
                f"{size} more would be over max_inflight_bytes, {self.limit}"
            )
        self.reserved += size

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Hold `size` bytes while the body runs.

        Raises:
            RequestTooLargeError: As `reserve`.
        """
        self.reserve(size)
        try:
            yield
        finally:
            self.release(size)

    def release(self, size: int) -> None:
        """Give `size` reserved bytes back."""
        self.reserved -= size


class Reservation:
    """The bytes that one request holds of `max_inflight_bytes`, from its first byte until its answer is sent.

    Leaving the context gives them back.
    """

    __slots__ = ("_inflight", "sent", "size")

    def __init__(self, inflight: InflightBytes) -> None:
        self._inflight = inflight
        self.sent = 0
        self.size = 0

    def receive(self, size: int, what: str) -> None:
        """Hold `size` bytes that came over the wire, compressed or not.

        Raises:
            RequestTooLargeError: As `add`.
        """
        self.add(size, what)
        self.sent += size

    def add(self, size: int, what: str = "") -> None:
        """Hold `size` more bytes, before they are made; `what` they are for is named where they are refused.

        Raises:
            RequestTooLargeError: The process holds too much already.
        """
        self._inflight.reserve(size, what)
        self.size += size

    def grow(self, size: int, what: str) -> None:
        """Hold the `size` bytes that a request takes beyond those that were sent, before they are made.

        Raises:
            RequestTooLargeError: As `add`, or the request would hold more than 256 MiB and 128 bytes for each sent.
        """
        self.add(size, what)
        limit = MAX_GROWTH + GROWTH_FACTOR * self.sent
        if self.size > limit:
            raise RequestTooLargeError(
                f"{what}: the request has {self.sent} bytes and would become {self.size}; "
                f"at most {limit} are made of it"
            )

    def become(self, size: int) -> None:
        """Hold `size` bytes from now on: what was reserved has been made, and its real size is known.

        Never refused: the bytes are there.
        """
        self._inflight.reserved += size - self.size
        self.size = size

    def release(self) -> None:
        """Give back what is held."""
        self.become(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
