"""The only account of bytes held by requests: bodies, decoded inputs, and answers until their sending.

Adapters reserve before the allocation, and release after sending the answer. `tensors/sizes.py` and
`grpc/message_size.py` work out the sizes. Loop only; the module knows no wire. A host's own arrays in process are the
host's memory, and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from embedserve.concurrency.container import usable_memory
from embedserve.errors import RequestTooLargeError

__all__ = ["InflightBytes", "Reservation", "default_limit"]


def default_limit() -> int:
    """Return a quarter of the process's usable memory, in bytes."""
    return max(1, usable_memory() // 4)


MAX_GROWTH = 1 << 28
"""Bytes of growth allowed to any request, however small: 256 MiB is small on any machine."""

GROWTH_FACTOR = 128
"""Further bytes of growth for each byte on the wire: enough for the parse of JSON brackets, with little to spare."""


class InflightBytes:
    """Counts reserved bytes against `limit`."""

    def __init__(self, limit: int | None, request_limit: int) -> None:
        self.limit = default_limit() if limit is None else limit
        self.request_limit = request_limit
        self.reserved = 0

    def __repr__(self) -> str:
        return f"<InflightBytes {self.reserved} of {self.limit}>"

    def check_request(self, size: int) -> None:
        """Refuse a single request above the size limit.

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
            what: The purpose of the bytes, for the message.

        Raises:
            RequestTooLargeError: The total would be over `max_inflight_bytes`. The account is unchanged.
        """
        if not self.try_reserve(size):
            raise RequestTooLargeError(
                f"{what}{': ' if what else ''}requests in flight hold {self.reserved} bytes; "
                f"{size} more would be over max_inflight_bytes, {self.limit}"
            )

    def try_reserve(self, size: int) -> bool:
        """Take `size` bytes, as `reserve`; False instead of an error."""
        if self.reserved + size > self.limit:
            return False
        self.reserved += size
        return True

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
    """A request's share of `max_inflight_bytes`, from the first byte until the answer is sent.

    Leaving the context releases the bytes.
    """

    __slots__ = ("_inflight", "sent", "size")

    def __init__(self, inflight: InflightBytes) -> None:
        self._inflight = inflight
        self.sent = 0
        self.size = 0

    def receive(self, size: int, what: str) -> None:
        """Hold `size` bytes from the wire, compressed or not.

        Raises:
            RequestTooLargeError: As `add`.
        """
        self.add(size, what)
        self.sent += size

    def add(self, size: int, what: str = "") -> None:
        """Hold `size` more bytes before the allocation; `what` names the purpose in the refusal.

        Raises:
            RequestTooLargeError: The process holds too many bytes already.
        """
        inflight = self._inflight
        if inflight.reserved + size > inflight.limit:
            inflight.reserve(size, what)  # Raises.
        inflight.reserved += size
        self.size += size

    def grow(self, size: int, what: str) -> None:
        """Hold the `size` bytes of a request beyond the bytes on the wire, before the allocation.

        Raises:
            RequestTooLargeError: As `add`, or the request would hold more than 256 MiB and 128 bytes for each byte
                sent.
        """
        self.add(size, what)
        limit = MAX_GROWTH + GROWTH_FACTOR * self.sent
        if self.size > limit:
            raise RequestTooLargeError(
                f"{what}: the request has {self.sent} bytes and would become {self.size}; "
                f"at most {limit} are made of it"
            )

    def become(self, size: int) -> None:
        """Hold `size` bytes from now on: the reserved objects exist, and the real size is known.

        Never refused: the bytes are allocated already.
        """
        self._inflight.reserved += size - self.size
        self.size = size

    def release(self) -> None:
        """Release the held bytes."""
        self._inflight.reserved -= self.size
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
