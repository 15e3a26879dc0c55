"""What a registry asks of whoever finds its versions, and who that is.

Used by `runtime`. A test, or a process that is told what to serve by another one, brings a source of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from embedserve.config import ModelConfig, RegistryOptions, VersionPolicy
from embedserve.remote.follower import StoreStatistics
from embedserve.store_url import StoreUrl

if TYPE_CHECKING:
    from embedserve.remote.source import VersionHolder

__all__ = ["MakeSource", "Source", "watch"]


class Source(Protocol):
    """Where versions come from; `CombinedSource`, unless a test brings another. Loop only."""

    async def start(self) -> None:
        """Look once, tell the listener, then go on watching."""

    async def aclose(self) -> None:
        """Stop watching; nothing is told any more."""

    def release(self) -> None:
        """No version is loaded any more; comes after `aclose`."""

    async def scan_now(self, names: Collection[str] | None = None) -> None:
        """Look at these models, or at everything, and return when the listener has been told; what hangs is not waited
        for."""

    def hint(self) -> None:
        """Look soon, at directories and stores alike, whenever the next look is due."""

    def problem(self, name: str) -> str | None:
        """What the last scan found wrong with a model's base path, or None."""

    def coming(self, name: str) -> bool:
        """Whether a version of the model is on its way by itself: it is being fetched, or was copied a moment ago."""

    def misplaced(self, name: str) -> bool:
        """Whether what stands at a model's base path has to be moved or converted before any of it is a version."""

    @property
    def diagnosis(self) -> str | None:
        """Why the last scan discovered no model, and what to do, or None."""

    @property
    def misused(self) -> bool:
        """Whether the root cannot be what was meant: not there, or a model or version instead of models."""

    @property
    def unread(self) -> bool:
        """Whether it is not known yet which models there are."""

    def set_models(self, models: Sequence[ModelConfig]) -> None:
        """Follow exactly these models from the next scan on."""

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Choose versions of one model by another policy from the next scan on."""

    def stores(self) -> Mapping[str, StoreStatistics]:
        """How the sync of each remote model goes; readable from any thread."""


MakeSource: TypeAlias = "Callable[[RegistryOptions, Path | StoreUrl | None, VersionHolder], Source]"


def watch(options: RegistryOptions, root: Path | StoreUrl | None, listener: VersionHolder) -> Source:
    """The source of every registry, unless a test or an embedder brings another one."""
    from embedserve.remote.source import CombinedSource

    return CombinedSource(options, root, listener)
