"""Server reflection (`grpc.reflection.v1alpha`) over the default descriptor pool, for grpcurl and the like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpc_reflection.v1alpha import reflection

__all__ = ["SERVICE", "add_to"]

SERVICE = reflection.SERVICE_NAME


def add_to(server: Any, names: Sequence[str]) -> None:
    """Let `server` describe the services called `names`, and itself."""
    reflection.enable_server_reflection((*names, SERVICE), server)
