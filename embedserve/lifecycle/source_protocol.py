"""The protocol of a source of versions and of the listener to its reports.

Directories, stores and both together are sources; a test brings another source, and so does a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from embedserve.config import ModelConfig, RegistryOptions, VersionPolicy
from embedserve.lifecycle.scan import VersionDirectory
from embedserve.store_url import StoreUrl

__all__ = ["IdleSource", "MakeSource", "Source", "SourceListener", "StoreStatistics"]


@dataclass(frozen=True)
class StoreStatistics:
    """The state of a remote model's sync.

    Attributes:
        url: The base path, without credentials.
        last_sync: The time of the store's last answer, in seconds since 1970; None before the first answer.
        last_error: The reason of a missing answer or a failed fetch; None while all is well.
        failures: Unanswered rounds in a row.
        fetching: The version that is being fetched.
        fetched_bytes: Bytes fetched since the registry was entered.
        cached_bytes: Bytes of the model's whole versions in the cache.
    """

    url: str
    last_sync: float | None = None
    last_error: str | None = None
    failures: int = 0
    fetching: int | None = None
    fetched_bytes: int = 0
    cached_bytes: int = 0


class SourceListener(Protocol):
    """The receiver of a source's reports.

    Every call comes on the loop, between two turns of the loop, and must not block.
    """

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        """Take the changed models: all models, given by name or discovered.

        No more reports follow about a model left out.
        """

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory]) -> None:
        """Take all aspired versions of a model after a change. Leaving out a version means unload."""

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        """Take the changed waiting versions, with reasons: all wanted versions not yet whole and quiet."""

    def on_trouble(self, name: str, trouble: str | None) -> None:
        """Take the changed obstacle to finding new versions of a model; None for no obstacle."""


class Source(Protocol):
    """The origin of versions; reports to a `SourceListener`. Loop only."""

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


class IdleSource:
    """A source that looks at nothing: the versions are told otherwise, or by a subclass."""

    diagnosis: str | None = None
    misused = False
    unread = False

    async def start(self) -> None:
        """Return at once."""

    async def aclose(self) -> None:
        """Return at once."""

    def release(self) -> None:
        """Return at once: no files are kept on a disk."""

    async def scan_now(self, names: Collection[str] | None = None) -> None:
        """Return at once."""

    def hint(self) -> None:
        """Ignore the hint."""

    def problem(self, name: str) -> str | None:
        """Return None: there is no base path."""
        return None

    def coming(self, name: str) -> bool:
        """Return False: every version is present at once."""
        return False

    def misplaced(self, name: str) -> bool:
        """Return False: there is no base path."""
        return False

    def set_models(self, models: Sequence[ModelConfig]) -> None:
        """Ignore the models."""

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Ignore the policy."""

    def stores(self) -> Mapping[str, StoreStatistics]:
        """Return no statistics: no model is in a store."""
        return {}


MakeSource: TypeAlias = (
    "Callable[[RegistryOptions, Path | StoreUrl | None, SourceListener, Callable[[], Collection[str]]], Source]"
)
"""Makes a source of options, a root, a listener, and a function that returns the version directories in use."""
