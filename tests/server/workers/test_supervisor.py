"""What the parent process does besides its fleet: keeps the gRPC port, and ends everything at a second signal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from embedserve.errors import StartError
from embedserve.server import standalone
from embedserve.server.config import GrpcConfig
from embedserve.server.listening import bound_socket
from embedserve.server.standalone import stop_on_signals
from embedserve.server.workers.supervisor import _reserved_port


def test_the_port_is_kept_for_workers_and_from_everybody_else() -> None:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
        config = GrpcConfig(port=port)
        with pytest.raises(StartError, match=f"port {port}: Address already in use"), _reserved_port(config):
            pass
    with _reserved_port(config):
        with pytest.raises(OSError, match="in use"):
            bound_socket(socket.AF_INET, "0.0.0.0", port)
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("0.0.0.0", port))
            worker.listen()
            with socket.create_connection(("127.0.0.1", port)), worker.accept()[0]:
                pass
    with _reserved_port(GrpcConfig(port=None)):
        pass


async def test_a_second_signal_ends_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(standalone, "exit_now", done.append)
    with stop_on_signals(lambda: done.append("workers killed")) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 10)
        assert done == []
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(10):
            while len(done) < 2:
                await asyncio.sleep(0)
    assert done == ["workers killed", 128 + signal.SIGINT]
