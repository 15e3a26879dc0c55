"""The table of RPCs: the methods of all services, the same for every transport. Knows no transport."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from embedserve.config import Access
from embedserve.errors import ConfigError
from embedserve.grpc.access import answering
from embedserve.grpc.calls import Methods, Streaming, Unary
from embedserve.grpc.services import inference_service, model_service, prediction_service, session_service

if TYPE_CHECKING:
    from embedserve.grpc.services.health import Health
    from embedserve.grpc.services.profiler import Profiler
    from embedserve.oip.repository import Repository
    from embedserve.registry import ModelRegistry

__all__ = ["Services"]


STATUS = f"/{model_service.SERVICE}/GetModelStatus"


class Services:
    """The methods over a registry; `aclose` ends the calls without an end of their own.

    A method that `Access` denies to a client answers with the same error on every transport.

    Attributes:
        methods: By path, `/package.Service/Method`.
        direct: The unary methods that many clients call often, and that ask nothing about the client.
        names: Full names of the services.

    Raises:
        ConfigError: The package of a requested service is not installed.
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
        repository: Repository | None = None,
    ) -> None:
        session_run = session_service.methods(registry, tensor_content=tensor_content)
        prediction = prediction_service.methods(registry, tensor_content=tensor_content)
        models = model_service.methods(registry, reload=reload, metric=metric, reloaded_by=access.reload)
        inference = inference_service.methods(registry, repository=repository, changed_by=access.reload)
        methods: dict[str, Unary | Streaming] = {
            **prediction,
            **models,
            **inference,
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
            # Reflection leaves the profiler out: its messages are not in the default descriptor pool.
            self._profiler = _optional("profiler", "tensorflow").Profiler(registry)
            methods |= answering(access.profiler, "the profiler", "profiler_clients", self._profiler.methods())
        if reflection:
            methods |= _optional("reflection", "grpcio-reflection").methods(described)
        self.methods: Methods = methods
        direct = {f"/{inference_service.SERVICE}/{name}" for name in inference_service.DIRECT}
        plain = {**prediction, STATUS: models[STATUS], **{path: inference[path] for path in direct}}
        self.direct = {path: method for path, method in plain.items() if isinstance(method, Unary)}
        self.names = frozenset(_services(methods))

    def __repr__(self) -> str:
        return f"<Services {' '.join(sorted(self.names))}>"

    async def aclose(self) -> None:
        """End watches and profiles, because either would use up any grace."""
        if self._health is not None:
            self._health.close()
        if self._profiler is not None:
            await self._profiler.aclose()


def _services(methods: Methods) -> tuple[str, ...]:
    """Names of the services with the methods, each name once, in order."""
    return tuple(dict.fromkeys(path[1:].partition("/")[0] for path in methods))


def _optional(module: str, distribution: str) -> ModuleType:
    """A module of the package whose third-party package may be missing."""
    try:
        return import_module(f"embedserve.grpc.services.{module}")
    except ImportError as error:
        raise ConfigError(
            f"gRPC {module} needs the package {distribution}: pip install {distribution}, or serve with {module}=False "
            f"({error})"
        ) from error
