"""What one of several workers gets: its part of threads and memory, no decision, and a shared gRPC port."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from tensorflow.core.protobuf.config_pb2 import ConfigProto

from embedserve.config import ModelConfig, RegistryOptions
from embedserve.errors import ConfigError
from embedserve.server.config import GrpcConfig, ServerConfig
from embedserve.server.workers.worker_limits import check_supported, session_config_share, share, worker_config


@pytest.mark.parametrize(("whole", "workers", "expected"), [(8, 2, 4), (2, 2, 1), (3, 2, 1), (1, 4, 1)])
def test_everyone_gets_at_least_one(whole: int, workers: int, expected: int) -> None:
    assert share(whole, workers) == expected


@pytest.mark.parametrize(
    ("intra", "inter", "expected"), [(0, 0, (2, 2)), (4, 0, (1, 2)), (1, 1, (1, 1)), (0, -1, (2, -1))]
)
def test_tensorflows_threads_are_divided(intra: int, inter: int, expected: tuple[int, int]) -> None:
    config: Any = ConfigProto(intra_op_parallelism_threads=intra, inter_op_parallelism_threads=inter)
    config.allow_soft_placement = True
    divided: Any = ConfigProto.FromString(session_config_share(config.SerializeToString(), 4, 8))
    assert (divided.intra_op_parallelism_threads, divided.inter_op_parallelism_threads) == expected
    assert divided.allow_soft_placement


def test_a_worker_is_told_what_to_serve_later_and_never_tries_again_by_itself() -> None:
    whole = ServerConfig(
        models=(ModelConfig(name="m", base_path="/m"),),
        workers=2,
        options=RegistryOptions(num_batch_threads=8, max_inflight_bytes=1000),
        grpc=GrpcConfig(server="grpcio", channel_arguments={"grpc.so_reuseport": 0, "grpc.max_connection_age_ms": 5}),
    )
    one = worker_config(whole, cpus=4)
    assert one.models == ()
    assert one.root is None
    assert (one.options.num_batch_threads, one.options.max_inflight_bytes) == (4, 500)
    assert one.options.retry.delay(1) is None
    assert dict(one.grpc.channel_arguments) == {"grpc.so_reuseport": 1, "grpc.max_connection_age_ms": 5}
    grpcio = GrpcConfig(server="grpcio")
    two = worker_config(ServerConfig(workers=2, grpc=grpcio), 4).grpc.channel_arguments
    assert two["grpc.max_connection_age_ms"] == 60_000
    alone = worker_config(ServerConfig(workers=1, grpc=grpcio), 4).grpc.channel_arguments
    assert "grpc.max_connection_age_ms" not in alone, "there is nobody to share connections with"
    assert worker_config(ServerConfig(workers=2), 4).grpc == GrpcConfig(), "the supervisor binds the own server's port"


def test_without_a_limit_the_machines_memory_is_divided() -> None:
    one = worker_config(ServerConfig(workers=1), cpus=2).options.max_inflight_bytes
    four = worker_config(ServerConfig(workers=4), cpus=2).options.max_inflight_bytes
    assert one is not None
    assert four == one // 4


def test_what_cannot_be_shared_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    check_supported(ServerConfig(workers=2))
    check_supported(ServerConfig(workers=2, grpc=GrpcConfig(socket_path="s.sock")))
    check_supported(ServerConfig(workers=1, grpc=GrpcConfig(server="grpcio", socket_path="s.sock")))
    with pytest.raises(ConfigError, match="cannot share --grpc_socket_path"):
        check_supported(ServerConfig(workers=2, grpc=GrpcConfig(server="grpcio", socket_path="s.sock")))
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(ConfigError, match="--workers needs a system whose processes can share a port"):
        check_supported(ServerConfig(workers=2))
