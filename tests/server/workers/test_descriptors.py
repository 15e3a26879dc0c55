"""Listening sockets lie above the connections that come later, and stop listening before those are closed."""

from __future__ import annotations

import os
import resource
import socket

import pytest

from embedserve.server.workers.worker import high_descriptors, stop_listening


def test_a_listening_socket_lies_above_the_connections_that_come_later() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    with high_descriptors():
        listener = socket.socket()
    with listener, socket.socket() as later:
        assert min(4096, soft - 128) < listener.fileno() < soft
        assert later.fileno() < 1000 < listener.fileno() or soft < 1200
        assert len(os.listdir("/proc/self/fd")) == before + 2


def test_a_socket_that_stops_listening_leaves_new_connections_to_others_and_keeps_its_own() -> None:
    with socket.socket() as leaving, socket.socket() as staying:
        for listener in (leaving, staying):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        leaving.bind(("127.0.0.1", 0))
        address = leaving.getsockname()
        leaving.listen()
        with socket.create_connection(address) as before:
            own, _ = leaving.accept()
            stop_listening(address[1])
            staying.bind(address)
            staying.listen()
            for _ in range(20):
                with socket.create_connection(address, timeout=10):
                    staying.accept()[0].close()
            with own:
                own.sendall(b"still here")
                assert before.recv(20) == b"still here"
            before_count = len(os.listdir("/proc/self/fd"))
            stop_listening(address[1])
            assert len(os.listdir("/proc/self/fd")) == before_count
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=10)
