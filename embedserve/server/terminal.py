"""What a start shows on a terminal: a line for each step of a version, then a table of what is served where.

Nothing is printed where the output is no terminal. The log is the record of a start; this is for the eyes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from embedserve.errors import one_line
from embedserve.http.sockets import EVERY_IPV4, EVERY_IPV6, bracketed
from embedserve.observer import Observer
from embedserve.servable import ServableId, State

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry
    from embedserve.server.config import ServerConfig

__all__ = ["progress", "show_served"]


class _Progress(Observer):
    """Prints a line when a version begins to load, serves, or ends with an error."""

    def __init__(self) -> None:
        self._began: dict[ServableId, float] = {}

    def version_state(self, id: ServableId, state: State, error: Exception | None) -> None:
        name = f"{id.name} version {id.version}"
        if state is State.LOADING:
            self._began.setdefault(id, time.monotonic())
            self._say(f"{name}: loads and warms up")
        elif state is State.AVAILABLE:
            self._say(f"{name}: serves after {time.monotonic() - self._began.get(id, time.monotonic()):.1f} s")
        elif state is State.END and error is not None:
            self._say(f"{name}: failed: {one_line(str(error))}")

    @staticmethod
    def _say(line: str) -> None:
        print(line, flush=True)


@contextmanager
def progress(registry: ModelRegistry) -> Iterator[None]:
    """Show the steps of the versions on a terminal while the body runs."""
    if not sys.stdout.isatty():
        yield
        return
    shown = _Progress()
    registry.observers.add(shown)
    try:
        yield
    finally:
        registry.observers.remove(shown)


def show_served(registry: ModelRegistry, config: ServerConfig) -> None:
    """Print on a terminal which versions are served, how, and at which addresses."""
    if not sys.stdout.isatty():
        return
    rows = [("model", "version", "runs as", "requests share runs")]
    for name, statuses in sorted(registry.status().items()):
        for status in statuses:
            if status.state is State.AVAILABLE:
                shared = [signature for signature, verdict in status.batching.items() if verdict.batchable]
                rows.append((name, str(status.version), status.kind, ", ".join(shared) or "no"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    print("\n".join(["", *lines, "", *_addresses(config)]), flush=True)


def _addresses(config: ServerConfig) -> Iterator[str]:
    rest, grpc = config.rest, config.grpc
    if rest.port is not None:
        url = f"{'http' if rest.tls is None else 'https'}://{_host(rest.hosts)}:{rest.port}"
        yield f"REST  {url}/v1/models/NAME:predict  (documentation: {url}/-/docs)"
    if grpc.port is not None:
        yield f"gRPC  {_host(grpc.hosts)}:{grpc.port}"
    if grpc.socket_path is not None:
        yield f"gRPC  unix:{grpc.socket_path}"


def _host(hosts: Sequence[str]) -> str:
    """An address at which a reader on this machine reaches the port."""
    return bracketed(hosts[0]) if hosts and hosts[0] not in (EVERY_IPV4, EVERY_IPV6) else "localhost"
