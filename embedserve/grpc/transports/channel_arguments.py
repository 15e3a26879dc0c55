"""gRPC channel arguments of a server → limits of the own listener; the rest have no meaning there."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from embedserve.errors import ConfigError
from embedserve.http.limits import Limits
from embedserve.http.listener import KEEP_ALIVE

__all__ = ["MAX_MESSAGE_BYTES", "ConnectionPolicy", "connection_policy"]

logger = logging.getLogger("embedserve")

MAX_MESSAGE_BYTES = 2**31 - 1
"""Bytes of the largest message: protobuf allows no more."""

_NEVER = 2**31 - 1
"""Milliseconds that gRPC takes for no limit: INT_MAX."""

# Fields of `Limits` with the same unit.
_NUMBERS = {
    "grpc.max_concurrent_streams": "max_streams",
    "grpc.max_metadata_size": "max_header_bytes",
    "grpc.absolute_max_metadata_size": "max_header_bytes",
    "grpc.http2.max_frame_size": "max_frame_bytes",
    "grpc.http2.lookahead_bytes": "stream_window",
    "grpc.http2.max_ping_strikes": "max_ping_strikes",
}
_SECONDS = {
    "grpc.max_connection_idle_ms": "idle",
    "grpc.max_connection_age_ms": "age",
    "grpc.max_connection_age_grace_ms": "grace",
    "grpc.http2.min_recv_ping_interval_without_data_ms": "ping_interval",
}
# Fields of `ConnectionPolicy` with the same unit.
_MESSAGES = {
    "grpc.max_receive_message_length": "max_receive_bytes",
    "grpc.max_send_message_length": "max_send_bytes",
}


@dataclass(frozen=True)
class ConnectionPolicy:
    """The part of channel arguments that the own listener follows.

    Attributes:
        limits: The costs that a connection may cause.
        keep_alive: Seconds until an idle connection ends.
        ages: As `HttpListener` has them.
        max_receive_bytes, max_send_bytes: Largest message in and out.
        shared: Whether further processes may have the same port (SO_REUSEPORT).
    """

    limits: Limits = field(default_factory=Limits)
    keep_alive: float = KEEP_ALIVE
    ages: tuple[float, float] = (math.inf, math.inf)
    max_receive_bytes: int = MAX_MESSAGE_BYTES
    max_send_bytes: int = MAX_MESSAGE_BYTES
    shared: bool = False


def connection_policy(arguments: Mapping[str, int | str]) -> ConnectionPolicy:
    """The policy for channel arguments; arguments without a meaning are named in a single warning.

    Raises:
        ConfigError: A value is outside the protocol's range.
    """
    limits: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    unknown = []
    for name, value in arguments.items():
        if not isinstance(value, int):
            unknown.append(name)
        elif name in _NUMBERS:
            known = _NUMBERS[name]
            limits[known] = max(value, limits.get(known, value))
        elif name in _MESSAGES:
            policy[_MESSAGES[name]] = value if 0 <= value < MAX_MESSAGE_BYTES else MAX_MESSAGE_BYTES
        elif name in _SECONDS:
            seconds[_SECONDS[name]] = math.inf if value >= _NEVER else value / 1e3
        elif name == "grpc.so_reuseport":
            policy["shared"] = bool(value)
        else:
            unknown.append(name)
    if unknown:
        logger.warning(
            "embedserve's own gRPC server ignores these channel arguments: %s; grpcio's server has them "
            '(--grpc_server=grpcio, or transport="grpcio")',
            ", ".join(sorted(unknown)),
        )
    if "ping_interval" in seconds:
        limits["ping_interval"] = seconds["ping_interval"]
    policy["ages"] = (seconds.get("age", math.inf), seconds.get("grace", math.inf))
    policy["keep_alive"] = seconds.get("idle", KEEP_ALIVE)
    try:
        return ConnectionPolicy(limits=Limits(**limits), **policy)
    except ValueError as error:
        raise ConfigError(f"gRPC channel arguments: {error}") from None
