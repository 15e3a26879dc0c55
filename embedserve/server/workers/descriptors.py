"""Has gRPC's listening sockets close before its connections, when the process is killed and when it leaves.

Clients whose connection ends connect anew at once. If they meet a socket that is about to be closed too, they are
reset, and gRPC clients then fail for a second before they try again: in half of the kills and one drain in six.
Called by `worker`, as gRPC offers neither.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["high_descriptors", "stop_listening"]

# Above most connections of a worker, and cheap to reach.
_HIGH = 4096
# What has to fit below the limit.
_ROOM = 128


@contextmanager
def high_descriptors() -> Iterator[None]:
    """Whatever is opened in the body gets a descriptor above those of most that is opened after it.

    Linux closes the descriptors of a process that ends from the highest to the lowest (measured).
    """
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = min(_HIGH, soft - _ROOM) if soft != resource.RLIM_INFINITY else _HIGH
    held = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while held[-1] < high:
            held.append(os.dup(held[0]))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def stop_listening(port: int) -> None:
    """Take this process's sockets out of those among which the kernel chooses for a connection to `port`.

    Connections that it has are not touched. Nothing happens where the system does not list descriptors.
    """
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                _stop_listening(int(name), port)


def _stop_listening(descriptor: int, port: int) -> None:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return
    with socket.socket(fileno=os.dup(descriptor)) as each:
        listens = each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if listens and each.family != socket.AF_UNIX and each.getsockname()[1] == port:
            each.shutdown(socket.SHUT_RD)
