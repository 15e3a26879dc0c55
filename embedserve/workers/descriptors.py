"""Gives what a process opens next a high descriptor, so that it is closed first when the process is killed.

Linux closes the descriptors of a process that ends from the highest to the lowest (measured). A listening socket that
outlived the connections, if only for a moment, would be met by clients that connect anew, and reset them: seven in ten
kills made gRPC clients fail for a second, which is how long they then wait. Called by `worker` around gRPC's ports.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["high_descriptors"]

# Above most connections of a worker, and cheap to reach.
_HIGH = 4096
# What has to fit below the limit.
_ROOM = 128


@contextmanager
def high_descriptors() -> Iterator[None]:
    """Whatever is opened in the body gets a descriptor above those of most that is opened after it."""
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
