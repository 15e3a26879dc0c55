"""The last state and error of every version ever known, and a way to wait for a change.

Only the loop writes. The published snapshot is immutable, so any thread may read the snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from embedserve.errors import Code
from embedserve.lifecycle.changes import Changes
from embedserve.lifecycle.managed_version import ManagedVersion
from embedserve.servable import State
from embedserve.signature import BatchingVerdict

__all__ = ["Monitor", "VersionStatus"]


@dataclass(frozen=True)
class VersionStatus:
    """The status of a model's version.

    Attributes:
        version: The version's number.
        state: AVAILABLE while any generation of the version serves.
        code, message: The error that ended the version or made the load retry; otherwise OK and empty.
        path: The version's directory.
        generation: Counts how often the version was brought up: for new contents, or after an unload.
        kind: `function`, `session`, `frozen`, `xla` or `tflite` once loaded.
        note: A remark beside the state. Possible remarks: a newer generation failed, the reason for a wait before the
            load, the reason why no new version can be found, the stuck runs behind a refusal, missing parts of
            `optimize`, or signatures that take any number of rows despite a declared number.
        batching: Whether requests of each signature share runs, with the reason, once loaded.
    """

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""
    path: str = ""
    generation: int = 1
    kind: str = ""
    note: str = ""
    batching: Mapping[str, BatchingVerdict] = field(default_factory=dict)

    @property
    def error_message(self) -> str:
        """The message of TensorFlow Serving's status: the error, or the reason why a new version is not loaded yet."""
        return self.message or (self.note if self.state is State.START else "")


def status_of(generations: Iterable[ManagedVersion]) -> VersionStatus:
    """Fold the generations of a version into a single status."""
    newest_first = sorted(generations, key=lambda v: v.generation, reverse=True)
    serving = next((v for v in newest_first if v.state is State.AVAILABLE), None)
    shown = serving or newest_first[0]
    status = VersionStatus(
        version=shown.id.version,
        state=shown.state,
        path=shown.path,
        generation=shown.generation,
        kind=shown.servable.kind if shown.servable is not None else "",
        note=shown.loader.note if shown.servable is not None else "",
        batching={name: one.batching for name, one in shown.servable.signatures.items()} if shown.servable else {},
    )
    if shown.error is not None and shown.state is not State.AVAILABLE:
        status = replace(status, code=Code(shown.error.code), message=shown.error.message)
    if shown.predictor is not None and (trouble := shown.predictor.trouble) is not None:
        status = replace(status, note=f"refused: {trouble}")
    newest = newest_first[0]
    if newest is not shown and newest.error is not None:
        status = replace(status, note=f"the directory changed, but its new contents failed to load: {newest.error}")
    return status


class Monitor:
    """Remembers every version's last status while the registry is entered."""

    def __init__(self) -> None:
        self._statuses: dict[str, dict[int, VersionStatus]] = {}
        self._waiting: dict[str, dict[int, str]] = {}
        self._troubles: dict[str, str] = {}
        self._snapshot: Mapping[str, tuple[VersionStatus, ...]] = MappingProxyType({})
        self._changes = Changes()

    def __repr__(self) -> str:
        return f"<Monitor of {sum(map(len, self._statuses.values()))} versions>"

    @property
    def snapshot(self) -> Mapping[str, tuple[VersionStatus, ...]]:
        """Status of every version by model, versions descending; readable from any thread."""
        return self._snapshot

    def available(self) -> list[str]:
        """List `model:version` of every serving version; readable from any thread."""
        return [
            f"{name}:{s.version}" for name, all in self._snapshot.items() for s in all if s.state is State.AVAILABLE
        ]

    def update(self, name: str, generations: Iterable[ManagedVersion]) -> None:
        """Take over the state of a version's live generations."""
        status = status_of(generations)
        self._statuses.setdefault(name, {})[status.version] = status
        self.publish()

    def set_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        """Note the reasons why version directories of `name` are not loaded yet."""
        self._waiting[name] = dict(reasons)
        self.publish()

    def set_trouble(self, name: str, trouble: str | None) -> None:
        """Note the obstacle to finding new versions of `name`; None for no obstacle."""
        if trouble is None:
            self._troubles.pop(name, None)
        else:
            self._troubles[name] = trouble
        self.publish()

    def waiting(self, name: str) -> Mapping[int, str]:
        """Map each waiting version to the reason for the wait."""
        return self._waiting.get(name, {})

    def publish(self) -> None:
        """Make a new snapshot and wake every task that waits for a change."""
        names = self._statuses.keys() | {name for name, reasons in self._waiting.items() if reasons}
        self._snapshot = MappingProxyType({name: self._of(name) for name in sorted(names)})
        self._changes.notify()

    def _of(self, name: str) -> tuple[VersionStatus, ...]:
        statuses = dict(self._statuses.get(name, {}))
        for version, reason in self._waiting.get(name, {}).items():
            statuses[version] = replace(statuses.get(version, VersionStatus(version, State.START)), note=reason)
        trouble = self._troubles.get(name)
        for version, status in statuses.items() if trouble is not None else ():
            if status.state is State.AVAILABLE and not status.note:
                statuses[version] = replace(status, note=f"new versions are not found: {trouble}")
        return tuple(statuses[version] for version in sorted(statuses, reverse=True))

    async def changed(self) -> None:
        """Wait for a change."""
        await self._changes.next()

    async def wait_until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition()` holds; every change asks the condition again. False if the time is over first."""
        return await self._changes.wait_until(condition, timeout)
