"""The interface that lets several managers switch versions together.

A coordinator decides when a loaded version may answer. A manager without a coordinator publishes at once. Loop only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from embedserve.config import ModelConfig
    from embedserve.lifecycle.managed_version import ManagedVersion
    from embedserve.servable import Servable

__all__ = ["Coordinator"]


class Coordinator(Protocol):
    """Holds versions back, and hears of every change of the serving versions."""

    async def hold(self, version: ManagedVersion, servable: Servable) -> None:
        """Wait while a loaded and warm version must stay unpublished; must not raise.

        A coordinator may call `Manager.publish` during the wait. Otherwise the manager publishes after the return, if
        the version is still aspired. Return soon after `version.unaspired` is set.
        """

    def serving_changed(self) -> None:
        """Hear of a published or withdrawn version or a moved label; the call is part of the same synchronous step."""

    def models_changed(self, configs: Mapping[str, ModelConfig]) -> None:
        """Hear of the changed set of models with their configurations, before any report about the versions."""
