"""Who may connect to a server, and what was refused: connections in all and per address, one account, one count.

The module knows no wire: a protocol asks before its connection begins, and reports each refusal by a short reason.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from embedserve.http.account import Account, Accounted, BoundedAccount, accounted
from embedserve.http.limits import Limits

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Admission", "admission_of"]

_admissions: WeakKeyDictionary[object, Admission] = WeakKeyDictionary()


def admission_of(server: object, app: object, limits: Limits) -> Admission:
    """The admission that all connections of `server` share; made for the first connection."""
    found = _admissions.get(server)
    if found is None:
        found = _admissions[server] = Admission(app, limits)
    return found


def allowed_connections(limits: Limits) -> int:
    """`max_connections`, or three quarters of the process's files if that is less.

    Without a free file descriptor no model loads, and a loop logs a traceback for each connection.
    """
    if resource is None:
        return limits.max_connections
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limits.max_connections if files < 0 else max(1, min(limits.max_connections, files * 3 // 4))


class Admission:
    """The connections of a server.

    Attributes:
        connections: Connections that have entered and not left.
        owner: The application with an account of its own; None for an unknown application.
    """

    def __init__(self, app: object, limits: Limits) -> None:
        self.owner: Accounted | None = accounted(app)
        self.connections = 0
        self._most = allowed_connections(limits)
        self._most_of_address = limits.max_connections_per_address
        self._of_address: dict[str, int] = {}
        self._account = BoundedAccount(limits.max_held_bytes)

    def __repr__(self) -> str:
        return f"<Admission of {self.connections} connections from {len(self._of_address)} addresses>"

    def account(self) -> Account:
        """The owner's account if there is one for the running loop, else an account of the server."""
        found = self.owner.account() if self.owner is not None else None
        return self._account if found is None else found

    def takes_whole(self, size: int) -> bool:
        """Whether the application has an account, and reads a body of `size` bytes as a whole."""
        return self.owner is not None and self.owner.account() is not None and self.owner.takes_whole(size)

    def enter(self, address: str) -> bool:
        """Count a connection from `address`, which may be empty; False for a connection over a limit.

        A True has to be followed by a call of `leave`.
        """
        if self.connections >= self._most:
            self.refused("connections")
            return False
        count = self._of_address.get(address, 0)
        if count >= self._most_of_address and address:
            self.refused("connections_of_address")
            return False
        self._of_address[address] = count + 1
        self.connections += 1
        return True

    def leave(self, address: str) -> None:
        """Forget a connection that had entered."""
        self.connections -= 1
        count = self._of_address[address] - 1
        if count:
            self._of_address[address] = count
        else:
            del self._of_address[address]

    def refused(self, reason: str) -> None:
        """Tell the application's metrics about a refusal."""
        if self.owner is not None:
            self.owner.refused(reason)
