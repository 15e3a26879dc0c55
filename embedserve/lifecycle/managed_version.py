"""One generation of a version: state, error and the number of requests in flight.

A generation is one fingerprint of the version's directory. Only the manager makes and moves generations. Loop only.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from embedserve.errors import ServingError
from embedserve.lifecycle.transition_policy import VersionSnapshot
from embedserve.servable import Loader, Predictor, Servable, ServableId, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embedserve.signature import Signature

__all__ = ["ManagedVersion"]


class ManagedVersion:
    """One generation, from the moment a source names the version until the unload or the failure.

    Attributes:
        fingerprint: The directory's contents when the source named the version; None for loaders without fingerprints.
        error: The reason why the last load attempt failed; stays set during retries.
        failures: Load attempts that failed in a row.
    """

    def __init__(self, id: ServableId, generation: int, loader: Loader, fingerprint: Any, path: str) -> None:
        self.id = id
        self.generation = generation
        self.loader = loader
        self.fingerprint = fingerprint
        self.path = path
        self.state = State.START
        self.error: ServingError | None = None
        self.failures = 0
        self.aspired = True
        self.unaspired = asyncio.Event()
        self.servable: Servable | None = None
        self.predictor: Predictor | None = None
        self.signatures: Mapping[str, Signature] = {}
        self._handles = 0
        self._unused: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<ManagedVersion {self.id}#{self.generation} {self.state.name}, {self._handles} in flight>"

    @property
    def handles(self) -> int:
        """Requests that hold the version now."""
        return self._handles

    @property
    def failed(self) -> bool:
        """Whether a failed load ended the version or awaits a retry."""
        return self.error is not None and self.state in (State.LOADING, State.END)

    def snapshot(self) -> VersionSnapshot:
        """The version as the transition policy sees it."""
        return VersionSnapshot(self.id.version, self.generation, self.state, self.aspired)

    def advance(self, state: State) -> None:
        """Move down the list of states; going back is a bug."""
        assert state > self.state, f"{self!r} cannot go back to {state.name}"
        self.state = state

    def set_aspired(self, aspired: bool) -> None:
        """Note whether the source still wants the generation; False wakes a load that waits for a retry."""
        self.aspired = aspired
        if aspired:
            self.unaspired.clear()
        else:
            self.unaspired.set()

    def hold(self) -> None:
        """Count one more holder. Pair with `release`."""
        self._handles += 1

    def release(self) -> None:
        """Count one holder less; synchronous, so that a release can neither block nor be cancelled."""
        self._handles -= 1
        if not self._handles and self._unused is not None:
            self._unused.set()

    async def drained(self) -> None:
        """Wait for the last holder's release. Call after the version has left the serving map."""
        if self._handles:
            self._unused = asyncio.Event()
            await self._unused.wait()
