"""The protocol of a source of versions, and the default source.

A test brings another source, and so does a worker: the supervisor tells a worker the versions to serve.
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
    """The origin of versions; `CombinedSource`, unless a test brings another source. Loop only."""

    async def start(self) -> None:
        """Scan once, tell the listener, then go on watching."""

    async def aclose(self) -> None:
        """Stop watching; the listener hears no further report."""

    def release(self) -> None:
        """Release the last resources, after `aclose` and the unload of all versions."""

    async def scan_now(self, names: Collection[str] | None = None) -> None:
        """Scan the models, or all models, and return once the listener has heard; hanging scans are not awaited."""

    def hint(self) -> None:
        """Scan soon, directories and stores alike, whenever the next scan is due."""

    def problem(self, name: str) -> str | None:
        """Return the last scan's problem with a model's base path, or None."""

    def coming(self, name: str) -> bool:
        """Whether a version of the model is on the way: a fetch is running, or a copy has just changed."""

    def misplaced(self, name: str) -> bool:
        """Whether the content of a model's base path must be moved or converted to become a version."""

    @property
    def diagnosis(self) -> str | None:
        """Why the last scan discovered no model, with the remedy, or None."""

    @property
    def misused(self) -> bool:
        """Whether the root is unusable: absent, or a model or version instead of a directory of models."""

    @property
    def unread(self) -> bool:
        """Whether the set of models is still unknown."""

    def set_models(self, models: Sequence[ModelConfig]) -> None:
        """Follow exactly the listed models from the next scan on."""

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Choose versions of a model by the policy from the next scan on."""

    def stores(self) -> Mapping[str, StoreStatistics]:
        """Return the progress of the sync of each remote model; readable from any thread."""


MakeSource: TypeAlias = "Callable[[RegistryOptions, Path | StoreUrl | None, VersionHolder], Source]"


def watch(options: RegistryOptions, root: Path | StoreUrl | None, listener: VersionHolder) -> Source:
    """Make the source of a registry; a test or an embedder may replace the function."""
    from embedserve.remote.source import CombinedSource

    return CombinedSource(options, root, listener)
