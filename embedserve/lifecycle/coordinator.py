"""Who, outside a manager, decides when a version that is ready may answer: for several managers that switch together.

The manager calls it; without one it publishes at once. Loop only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from embedserve.lifecycle.managed_version import ManagedVersion
    from embedserve.servable import Servable

__all__ = ["Coordinator"]


class Coordinator(Protocol):
    """Holds versions back, and hears what serves."""

    async def hold(self, version: ManagedVersion, servable: Servable) -> None:
        """Wait while a loaded and warm version is not to be published; must not raise.

        Whoever calls `Manager.publish` meanwhile has published it; else the manager does when this returns, if the
        version is still aspired. Return soon after `version.unaspired` is set.
        """

    def serving_changed(self) -> None:
        """A version was published or withdrawn, or a label moved; called within that step, so that both are one."""
