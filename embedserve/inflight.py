"""Bounds the bytes of request bodies that the adapters hold at once. Loop only; knows no wire."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from embedserve.errors import RequestTooLargeError
from embedserve.memory import usable_memory

__all__ = ["InflightBytes", "Reservation", "default_limit"]


def default_limit() -> int:
    """A quarter of the memory that the process may use, in bytes."""
    return max(1, usable_memory() // 4)


class InflightBytes:
    """Counts reserved bytes against `limit`; adapters reserve while they read, and release when they have answered."""

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

    def reserve(self, size: int) -> None:
        """Take `size` bytes; pair with `release`.

        Raises:
            RequestTooLargeError: With them the bytes held would be over `max_inflight_bytes`. Nothing was taken.
        """
        if self.reserved + size > self.limit:
            raise RequestTooLargeError(
                f"requests in flight hold {self.reserved} bytes; "
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
    """The bytes that one request holds of `max_inflight_bytes`; leaving the context gives them back."""

    __slots__ = ("_held", "_inflight")

    def __init__(self, inflight: InflightBytes) -> None:
        self._inflight = inflight
        self._held = 0

    def add(self, size: int) -> None:
        """Hold `size` more bytes.

        Raises:
            RequestTooLargeError: The process holds too much already.
        """
        self._inflight.reserve(size)
        self._held += size

    def release(self) -> None:
        """Give back what is held."""
        self._inflight.release(self._held)
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
