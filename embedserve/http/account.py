"""The bytes that connections hold for their clients: heads, bodies not taken yet, queued frames, unread answers.

All connections of a server share an account. An application of embedserve's gives the registry's account, so that the
listener's bytes and the requests' bytes are bounded together. The module knows no wire and no model.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["Account", "Accounted", "BoundedAccount", "Share", "accounted"]

_WRAPPERS = 16
"""Applications around an application, as uvicorn's for proxy headers, behind which an account is looked for."""


class Account(Protocol):
    """Bytes held by a process, against a limit."""

    def try_reserve(self, size: int) -> bool:
        """Take `size` bytes, unless the total would be over the limit."""

    def release(self, size: int) -> None:
        """Give `size` bytes back, or take them without a question if `size` is negative."""


class BoundedAccount:
    """An account of its own, for an application that brings none."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reserved = 0

    def __repr__(self) -> str:
        return f"<BoundedAccount {self.reserved} of {self.limit}>"

    def try_reserve(self, size: int) -> bool:
        """Take `size` bytes, unless the total would be over the limit."""
        if self.reserved + size > self.limit:
            return False
        self.reserved += size
        return True

    def release(self, size: int) -> None:
        """Give `size` bytes back."""
        self.reserved -= size


@runtime_checkable
class Accounted(Protocol):
    """An application with an account of its own for the listener's bytes."""

    def account(self) -> Account | None:
        """The account; None as long as there is none for the running loop."""

    def takes_whole(self, size: int) -> bool:
        """Whether a request's body of `size` bytes may be received as one piece, instead of as a stream."""

    def refused(self, reason: str) -> None:
        """The listener refused a connection or a request; `reason` is one of a few words."""


def accounted(app: object) -> Accounted | None:
    """The application with an account, found behind applications that keep the inner one as `app`."""
    for _ in range(_WRAPPERS):
        if isinstance(app, Accounted):
            return app
        app = getattr(app, "app", None)
    return None


class Share:
    """A connection's part of an account; without an account every size is granted.

    Attributes:
        size: Reserved bytes.
    """

    __slots__ = ("_account", "size")

    def __init__(self, account: Account | None) -> None:
        self._account = account
        self.size = 0

    def __repr__(self) -> str:
        return f"<Share of {self.size} bytes>"

    def cover(self, size: int) -> bool:
        """Reserve up to `size` bytes in all, before they are made; False leaves the share unchanged."""
        more = size - self.size
        if more > 0 and self._account is not None and not self._account.try_reserve(more):
            return False
        self.size = max(self.size, size)
        return True

    def become(self, size: int) -> None:
        """Hold exactly `size` bytes, which exist already."""
        if size != self.size:
            if self._account is not None:
                self._account.release(self.size - size)
            self.size = size

    def close(self) -> None:
        """Give everything back; the share reserves no more."""
        self.become(0)
        self._account = None
