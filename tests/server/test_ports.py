"""Ports are bound before the models load, and kept from further servers."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from embedserve.errors import StartError
from embedserve.http.sockets import bound_socket
from embedserve.server.config import GrpcConfig, RestConfig, ServerConfig
from embedserve.server.ports import bind_ports


def on(port: int | None, **options: object) -> ServerConfig:
    return ServerConfig(grpc=GrpcConfig.model_validate({"port": port} | options), rest=RestConfig(port=None), workers=1)


@pytest.fixture
def free() -> int:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_taken_port_is_known_before_anything_is_loaded(free: int) -> None:
    with socket.create_server(("0.0.0.0", free)):
        for config in (on(free), on(free, server="grpcio"), on(free).model_copy(update={"workers": 0})):
            with pytest.raises(StartError, match=f"port {free}: Address already in use"), bind_ports(config):
                pass


def test_the_workers_port_is_kept_from_everybody_else(free: int) -> None:
    with bind_ports(on(free)) as bound:
        (listener,) = bound.grpc
        listener.listen()
        with pytest.raises(OSError, match="in use"):
            bound_socket(socket.AF_INET, "0.0.0.0", free)


def test_grpcio_in_a_worker_shares_the_port_with_nobody_but_workers(free: int) -> None:
    with bind_ports(on(free, server="grpcio")) as bound:
        assert list(bound) == []
        with pytest.raises(OSError, match="in use"):
            bound_socket(socket.AF_INET, "0.0.0.0", free)
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("0.0.0.0", free))
            worker.listen()
            with socket.create_connection(("127.0.0.1", free)), worker.accept()[0]:
                pass


def test_the_workers_unix_socket_is_bound_once_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    config = on(None, socket_path=str(path))
    with bind_ports(config) as bound:
        assert bound.path is not None
        bound.unix[0].listen()
        assert not path.exists(), "the path appears when the workers answer"
        bound.path.publish()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert os.listdir(tmp_path) == []
