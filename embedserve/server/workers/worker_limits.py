"""Computes a worker's share of the whole server's limits: threads and memory."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from embedserve.concurrency.inflight import default_limit
from embedserve.config import RetryPolicy
from embedserve.errors import ConfigError
from embedserve.server.config import GrpcConfig, ServerConfig

if TYPE_CHECKING:
    pass


__all__ = ["can_share_ports", "check_supported", "share", "worker_config"]

# Of grpcio's server, whose port the kernel shares out. The kernel assigns a connection once, by chance. Ending
# connections in good order every 60 s lets the kernel assign them anew, so a replaced worker gets a share.
_CONNECTIONS = {"grpc.max_connection_age_ms": 60_000}


def check_supported(config: ServerConfig) -> None:
    """Refuse configurations that several processes cannot serve.

    Raises:
        ConfigError: The system or the configuration does not allow workers; the message says why, and the remedy.
    """
    if not can_share_ports():
        raise ConfigError("--workers needs a system whose processes can share a port (SO_REUSEPORT), such as Linux")
    if config.grpc.server == "grpcio" and config.grpc.socket_path is not None and config.workers > 1:
        raise ConfigError("--grpc_server=grpcio cannot share --grpc_socket_path among --workers: have one worker")


def can_share_ports() -> bool:
    """Whether processes of this system can share a TCP port."""
    return hasattr(socket, "SO_REUSEPORT") and os.name == "posix"


def share(whole: int, workers: int) -> int:
    """A worker's part of a total; at least 1."""
    return max(1, whole // workers)


def worker_config(config: ServerConfig, cpus: int) -> ServerConfig:
    """A worker's configuration, without models and retries: the supervisor sends the models and decides retries.

    Args:
        config: The server's configuration.
        cpus: Processors of the machine, divided among the workers for unset TensorFlow thread counts.
    """
    workers, options = config.workers, config.options
    inflight = options.max_inflight_bytes or default_limit()
    return config.model_copy(
        update={
            "root": None,
            "models": (),
            "config_file": None,
            "options": options.model_copy(
                update={
                    "num_batch_threads": share(options.num_batch_threads, workers),
                    "max_inflight_bytes": share(inflight, workers),
                    "retry": RetryPolicy(max_retries=0),
                }
            ),
            "grpc": _shared_port(config.grpc, workers) if config.grpc.server == "grpcio" else config.grpc,
            "session_config": session_config_share(config.session_config, workers, cpus),
        }
    )


def _shared_port(config: GrpcConfig, workers: int) -> GrpcConfig:
    """The configuration of grpcio's server on a port of several processes."""
    arguments = {**(_CONNECTIONS if workers > 1 else {}), **config.channel_arguments, "grpc.so_reuseport": 1}
    return config.model_copy(update={"channel_arguments": arguments})


def session_config_share(session_config: bytes, workers: int, cpus: int) -> bytes:
    """A serialized `tensorflow.ConfigProto` with a worker's part of the threads; negative numbers stay."""
    from tensorflow.core.protobuf.config_pb2 import ConfigProto

    config = ConfigProto.FromString(session_config)
    for field in ("intra_op_parallelism_threads", "inter_op_parallelism_threads"):
        whole = getattr(config, field) or cpus
        setattr(config, field, share(whole, workers) if whole > 0 else whole)
    serialized: bytes = config.SerializeToString()
    return serialized
