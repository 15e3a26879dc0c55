"""Which RPCs there are: the table of methods that every transport serves.

Made once per server or application; knows no transport.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from embedserve.config import Access
from embedserve.errors import ConfigError
from embedserve.grpc.access import answering
from embedserve.grpc.calls import Methods, Streaming, Unary
from embedserve.grpc.services import model_service, prediction_service, session_service

if TYPE_CHECKING:
    from embedserve.grpc.services.health import Health
    from embedserve.grpc.services.profiler import Profiler
    from embedserve.registry import ModelRegistry

__all__ = ["Services"]


class Services:
    """The methods over one registry; `aclose` ends the calls that last for as long as their clients like.

    What `Access` keeps from a client is answered with an error of the same words on every transport.

    Attributes:
        methods: By path, `/package.Service/Method`.
        names: Full names of the services.

    Raises:
        ConfigError: A service is wanted whose package is not installed.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        health: bool,
        reflection: bool,
        access: Access,
        tensor_content: bool,
        reload: model_service.Reload | None,
        metric: model_service.MetricReader | None,
    ) -> None:
        session_run = session_service.methods(registry, tensor_content=tensor_content)
        methods: dict[str, Unary | Streaming] = {
            **prediction_service.methods(registry, tensor_content=tensor_content),
            **model_service.methods(registry, reload=reload, metric=metric, reloaded_by=access.reload),
            **answering(access.session_run, "SessionRun", "session_run_clients", session_run),
        }
        self._health: Health | None = None
        self._profiler: Profiler | None = None
        if health:
            self._health = _optional("health", "grpcio-health-checking").Health(registry)
            methods |= self._health.methods()
        described = tuple(
            name for name in _services(methods) if access.session_run != "none" or name != session_service.SERVICE
        )
        if access.profiler != "none":
            # Not described by reflection: its messages are in no descriptor pool that clients share.
            self._profiler = _optional("profiler", "tensorflow").Profiler(registry)
            methods |= answering(access.profiler, "the profiler", "profiler_clients", self._profiler.methods())
        if reflection:
            methods |= _optional("reflection", "grpcio-reflection").methods(described)
        self.methods: Methods = methods
        self.names = frozenset(_services(methods))

    def __repr__(self) -> str:
        return f"<Services {' '.join(sorted(self.names))}>"

    async def aclose(self) -> None:
        """End watches and profiles: they would use up any grace."""
        if self._health is not None:
            self._health.close()
        if self._profiler is not None:
            await self._profiler.aclose()


def _services(methods: Methods) -> tuple[str, ...]:
    """Names of the services that have these methods, each once, in their order."""
    return tuple(dict.fromkeys(path[1:].partition("/")[0] for path in methods))


def _optional(module: str, distribution: str) -> ModuleType:
    """A module of this package whose third-party package may be missing."""
    try:
        return import_module(f"embedserve.grpc.services.{module}")
    except ImportError as error:
        raise ConfigError(
            f"gRPC {module} needs the package {distribution}: pip install {distribution}, or serve with {module}=False "
            f"({error})"
        ) from error
