"""TCP ports for servers that a benchmark or a test starts; no port is given out twice while its taker lives."""

from __future__ import annotations

import atexit
import os
import random
import socket
import sys

# The kernel gives ports above to whoever asks for any port, connections too, before the server of a test can bind.
_FIRST, _PAST = 15000, 32768
# A name per port, held until this process ends; abstract sockets belong to the network namespace, as ports do.
_reservations: list[socket.socket] = []
_random = random.Random(os.urandom(8))


@atexit.register
def _give_back() -> None:
    for name in _reservations:
        name.close()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing is bound to and that no other call, in any process, returns meanwhile."""
    for port in _random.sample(range(_FIRST, _PAST), 1000):
        if _reserved(port) and _unbound(port):
            return port
    raise OSError(f"no free port among 1,000 between {_FIRST} and {_PAST}")


def _reserved(port: int) -> bool:
    if sys.platform != "linux":  # The others have no abstract sockets.
        return True
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0embedserve-port-{port}")
    except OSError:
        name.close()
        return False
    _reservations.append(name)
    return True


def _unbound(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
