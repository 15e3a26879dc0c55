"""What is opened under `high_descriptors` lies above what is opened later, and nothing stays open."""

from __future__ import annotations

import os
import resource
import socket

from embedserve.workers.descriptors import high_descriptors


def test_a_listening_socket_lies_above_the_connections_that_come_later() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    with high_descriptors():
        listener = socket.socket()
    with listener, socket.socket() as later:
        assert min(4096, soft - 128) < listener.fileno() < soft
        assert later.fileno() < 1000 < listener.fileno() or soft < 1200
        assert len(os.listdir("/proc/self/fd")) == before + 2
