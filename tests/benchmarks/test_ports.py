"""No two servers of the tests are given the same port."""

from __future__ import annotations

import socket
import subprocess
import sys

from benchmarks.ports import free_port


def test_no_port_is_given_twice_in_any_process() -> None:
    more = "from benchmarks.ports import free_port\nprint(*(free_port() for _ in range(300)), flush=True)\ninput()"
    others = [
        subprocess.Popen([sys.executable, "-c", more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ports = [free_port() for _ in range(300)]
    for other in others:
        assert other.stdout is not None
        ports += map(int, other.stdout.readline().split())
    for other in others:
        other.communicate("\n", timeout=60)
    assert len(ports) == 1200
    assert len(set(ports)) == 1200
    # No connection takes one of them by chance.
    assert max(ports) < 32768


def test_a_port_that_something_listens_on_is_not_given() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert port not in {free_port() for _ in range(50)}
