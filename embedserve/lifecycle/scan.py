"""One scan: what was remembered + what the directories hold now → what is aspired, and what is remembered next.

Plain functions over frozen values, called by `source` in a load thread with the real `Disk` and by tests with a made-up
one. Knows no loop, no event and no model that is loaded; directory state is the only truth.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from embedserve.config import AbsentVersions, ModelConfig, SpecificVersions, VersionPolicy, name_problem
from embedserve.lifecycle.version_policy import choose, find_versions, names_only_absent, version_number
from embedserve.saved_model.files.completeness import Fingerprint, Look
from embedserve.servable import ServableId

__all__ = ["Child", "Disk", "Memory", "ModelMemory", "ModelScan", "Scan", "VersionDirectory", "scan"]


@dataclass(frozen=True)
class VersionDirectory:
    """A version that is whole and quiet: where it is, and the contents it was judged by."""

    version: int
    path: Path
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Child:
    """One entry of a directory; links are followed, dangling ones are not listed."""

    name: str
    is_directory: bool


class Disk(Protocol):
    """What a scan asks the file system; every call may block."""

    def time(self) -> float:
        """Monotonic seconds."""

    def part(self, model: str) -> AbstractContextManager[None]:
        """Look at one model, or at the root if empty; raises OSError if an earlier look has not come back."""

    def children(self, path: Path) -> Sequence[Child]:
        """The entries of a directory; raises OSError if it is gone or unreadable."""

    def listing(self, path: Path) -> tuple[int, Sequence[Child]]:
        """The device that holds a directory, and its entries, both of the same moment; raises as `children`."""

    def look(self, path: Path) -> Look:
        """Stat every file of a version directory (`completeness.look`)."""

    def check(self, path: Path) -> str | None:
        """What keeps a version directory from being loaded (`completeness.check`)."""


@dataclass(frozen=True)
class Observation:
    """What is known of one version directory since it last changed.

    Attributes:
        look: What it looked like.
        since: When it was first seen to look like that.
        judged: Whether `lacking` is the verdict on these contents, so that they need not be read again.
        lacking: What is missing or cannot be read; None if nothing is, as far as is known.
    """

    look: Look
    since: float
    judged: bool = False
    lacking: str | None = None


@dataclass(frozen=True)
class ModelMemory:
    """What one scan of a model leaves to the next.

    Attributes:
        observations: By version directory.
        aspired: None until the base path was read once.
        device: Which one held the base path when it last held versions.
    """

    observations: Mapping[Path, Observation] = field(default_factory=dict)
    aspired: Mapping[int, VersionDirectory] | None = None
    device: int | None = None


@dataclass(frozen=True)
class Memory:
    """What one scan leaves to the next.

    Attributes:
        models: By model name.
        discovered: Base path of each model found under the root.
        missed: When a discovered model's directory was first seen to be gone.
        device: Which one held the root when it last held directories.
    """

    models: Mapping[str, ModelMemory] = field(default_factory=dict)
    discovered: Mapping[str, Path] = field(default_factory=dict)
    missed: Mapping[str, float] = field(default_factory=dict)
    device: int | None = None


@dataclass(frozen=True)
class ModelScan:
    """What a scan found out about one model.

    Attributes:
        memory: For the next scan.
        found: Path of every version there is.
        waiting: Why a version that the policy wants is not taken (yet).
        problem: What is wrong with its base path, or None.
        notices: Texts to log once.
        due: When a version will have been quiet long enough, if one is being waited for.
    """

    memory: ModelMemory
    found: Mapping[int, Path] = field(default_factory=dict)
    waiting: Mapping[int, str] = field(default_factory=dict)
    problem: str | None = None
    notices: tuple[str, ...] = ()
    due: float | None = None


@dataclass(frozen=True)
class Scan:
    """What a scan found out; `models` has one entry per configured or discovered model."""

    memory: Memory
    configs: Mapping[str, ModelConfig]
    models: Mapping[str, ModelScan]
    diagnosis: str | None = None
    notices: tuple[str, ...] = ()
    due: float | None = None
    misused: bool = False


def scan(
    memory: Memory,
    configured: Mapping[str, ModelConfig],
    policies: Mapping[str, VersionPolicy],
    root: Path | None,
    disk: Disk,
    settle: float,
    absent: AbsentVersions = "keep",
) -> Scan:
    """Look at everything once.

    Args:
        memory: What the last scan left.
        configured: Models given by name; one of them hides a discovered one of the same name.
        policies: Version policies that override the models' own.
        root: Directory whose subdirectories are discovered as models, or None.
        disk: The file system.
        settle: Seconds for which a directory must not change before it is believed.
        absent: What becomes of versions that are not there (`RegistryOptions.absent_versions`).
    """
    discovered, missed, device, diagnosis, due = _discover(memory, root, disk, math.inf if absent == "last" else settle)
    configs = {name: ModelConfig(name=name, base_path=path) for name, path in discovered.items()} | dict(configured)
    models = {
        name: _scan_model(config, policies.get(name), memory.models.get(name, ModelMemory()), disk, settle, absent)
        for name, config in configs.items()
    }
    notices = [] if diagnosis is None else [diagnosis]
    notices += [notice for model in models.values() for notice in model.notices]
    return Scan(
        Memory({name: model.memory for name, model in models.items()}, discovered, missed, device),
        configs,
        models,
        diagnosis,
        tuple(notices),
        _earliest([due, *(model.due for model in models.values())]),
        diagnosis is not None and not diagnosis.startswith(_NOTHING_YET),
    )


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)


# Models under the root.

_NOTHING_YET = "no models found under"


def _discover(
    memory: Memory, root: Path | None, disk: Disk, settle: float
) -> tuple[dict[str, Path], dict[str, float], int | None, str | None, float | None]:
    """Models under the root, when those that are gone were first missed, the root's device, what is wrong with the
    root, and a due time.

    A model whose directory is gone is dropped only when a second look, `settle` later, finds the same: replacing a
    directory by two renames must not unload it.
    """
    if root is None:
        return {}, {}, None, None, None
    try:
        with disk.part(""):
            device, children = disk.listing(root)
        _check_mount(root, memory.device, device, any(child.is_directory for child in children))
    except OSError as error:
        what = "does not exist (yet)" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        return dict(memory.discovered), dict(memory.missed), memory.device, f"models directory {root} {what}", None
    directories = {
        child.name
        for child in children
        if child.is_directory and not child.name.startswith(".") and name_problem(child.name) is None
    }
    models = {name: root / name for name in sorted(directories) if _is_model(name, root, memory, disk)}
    now = disk.time()
    missed: dict[str, float] = {}
    for name in sorted(memory.discovered.keys() - directories):
        since = memory.missed.get(name)
        if since is None or now < since + settle:
            missed[name] = now if since is None else since
            models[name] = memory.discovered[name]
    due = _earliest(since + settle for since in missed.values() if settle < math.inf)
    return (
        models,
        missed,
        device if directories else memory.device,
        None if models else _diagnose(root, children, disk),
        due,
    )


def _check_mount(path: Path, before: int | None, device: int, holds: bool) -> None:
    """Refuse to believe a directory that lost its contents and its device together: a mount point without its mount.

    Raises:
        OSError: That is so.
    """
    if before is not None and device != before and not holds:
        raise OSError(errno.ENODEV, "it is empty now and on another device: its mount is gone", str(path))


def _is_model(name: str, root: Path, memory: Memory, disk: Disk) -> bool:
    if name in memory.discovered:
        return True
    try:
        with disk.part(name):
            children = disk.children(root / name)
    except OSError:
        return False
    return any(child.is_directory and version_number(child.name) is not None for child in children)


def _diagnose(root: Path, children: Sequence[Child], disk: Disk) -> str:
    """Why there is no model under a readable root, and what to do about the usual mistakes."""
    versions = [child.name for child in children if child.is_directory and version_number(child.name) is not None]
    model = root.parent if _holds_graph(children) else root
    if versions or model is not root:
        what = (
            f"holds version directories ({', '.join(sorted(versions)[:5])})" if versions else "is a version directory"
        )
        return (
            f"{root} {what}, so it is not a directory of models. Pass {model.parent} to find every model in it, or "
            f"ModelConfig(name={model.name!r}, base_path={str(model)!r}) for this model alone"
        )
    for child in children:
        if child.is_directory and _holds_graph(_children_or_none(root / child.name, disk)):
            inner = root / child.name
            return (
                f"{root} holds no models: {inner} holds a SavedModel itself, "
                f"but a version needs a directory of its own. Move it to {inner / '1'}"
            )
    return f"{_NOTHING_YET} {root}; expected {root}/<model name>/<version number>/saved_model.pb"


def _children_or_none(path: Path, disk: Disk) -> Sequence[Child]:
    try:
        return disk.children(path)
    except OSError:
        return ()


def _holds_graph(children: Sequence[Child]) -> bool:
    return any(child.name in ("saved_model.pb", "saved_model.pbtxt", "model.tflite") for child in children)


# Versions of one model.


def _scan_model(
    config: ModelConfig,
    policy: VersionPolicy | None,
    memory: ModelMemory,
    disk: Disk,
    settle: float,
    absent: AbsentVersions,
) -> ModelScan:
    try:
        with disk.part(config.name):
            return _look_at_model(config, policy, memory, disk, settle, absent)
    except OSError as error:
        unreadable = _unreadable(config, error)
        return ModelScan(memory, problem=unreadable, notices=(unreadable,))


def _look_at_model(
    config: ModelConfig,
    policy: VersionPolicy | None,
    memory: ModelMemory,
    disk: Disk,
    settle: float,
    absent: AbsentVersions,
) -> ModelScan:
    policy = config.version_policy if policy is None else policy
    device, children = disk.listing(config.directory)
    names, duplicates = find_versions((child.name for child in children), policy)
    _check_mount(config.directory, memory.device, device, bool(names))
    found = {number: config.directory / name for number, name in names.items()}
    examination = _Examination(memory, found, disk, settle)
    slip = absent != "unload" and names_only_absent(policy, found)
    aspired: Mapping[int, VersionDirectory] = examination.kept() if slip else examination.aspire(policy)
    if absent == "last" and not aspired and memory.aspired and not _asks_for_none(policy):
        aspired = memory.aspired
    notices = [
        f"Duplicate version directories detected. Version {version} will be loaded from {used}, "
        f"{ignored} will be ignored. (model {config.name}, {config.directory})"
        for version, used, ignored in duplicates
    ]
    notices += _unserved(config, policy, found)
    if slip and aspired:
        listed = ", ".join(map(str, sorted(aspired)))
        notices.append(
            f"The version policy of servable {config.name} names only versions that are not there, so it changes "
            f"nothing: versions {listed} go on serving until one of those appears"
        )
    notices += [
        f"Servable version {ServableId(config.name, number)} is not taken yet: {reason}"
        for number, reason in examination.lacking
    ]
    problem = None if found else _no_versions(config, children)
    return ModelScan(
        ModelMemory(examination.observations(), aspired, device if found else memory.device),
        found,
        examination.waiting,
        problem,
        tuple(notices if problem is None else [*notices, problem]),
        examination.due,
    )


def _asks_for_none(policy: VersionPolicy) -> bool:
    return isinstance(policy, SpecificVersions) and not policy.versions


def _unreadable(config: ModelConfig, error: OSError) -> str:
    path = config.directory
    reason = f"NOT_FOUND: {path} not found" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
    return (
        "FileSystemStoragePathSource encountered a filesystem access error: "
        f"Could not find base path {path} for servable {config.name} with error {reason}"
    )


def _no_versions(config: ModelConfig, children: Sequence[Child]) -> str:
    path = config.directory
    hint = f" It holds a SavedModel itself: move that to {path / '1'}." if _holds_graph(children) else ""
    return (
        f"No versions of servable {config.name} found under base path {path}. "
        f"Did you forget to name your leaf directory as a number (eg. '/1/')?{hint}"
    )


def _unserved(config: ModelConfig, policy: VersionPolicy, found: Mapping[int, Path]) -> list[str]:
    if not isinstance(policy, SpecificVersions):
        return []
    if not policy.versions:
        return [f"No specific versions requested for servable {config.name}."]
    return [
        f"Version {version} of servable {config.name}, which was requested to be served as a 'specific' version in "
        f"the servable's version policy, was not found in the file system ({config.directory})"
        for version in policy.versions
        if version not in found
    ]


class _Examination:
    """One scan's look at the versions of one model; only those that the policy asks about are looked at."""

    def __init__(self, memory: ModelMemory, found: Mapping[int, Path], disk: Disk, settle: float) -> None:
        self.waiting: dict[int, str] = {}
        self.lacking: list[tuple[int, str]] = []
        self.due: float | None = None
        self._before = memory.observations
        self._emitted: Mapping[int, VersionDirectory] = memory.aspired or {}
        self._found = found
        self._disk = disk
        self._settle = settle
        self._seen: dict[Path, Observation] = {}

    def aspire(self, policy: VersionPolicy) -> dict[int, VersionDirectory]:
        """What the policy wants among the versions that can be had."""
        candidates = dict(self._found)
        while True:
            chosen = {number: self._examine(number) for number in choose(policy, candidates)}
            aspired = {number: directory for number, directory in chosen.items() if directory is not None}
            if len(aspired) == len(chosen):
                return aspired or self._held(policy)
            for number in chosen.keys() - aspired.keys():
                del candidates[number]

    def _held(self, policy: VersionPolicy) -> dict[int, VersionDirectory]:
        """What to keep while nothing the policy wants can be had: a model must not go dark over a copy in progress.

        A version whose directory is gone is kept only until its successor has been quiet for long enough.
        """
        if not choose(policy, self._found):
            return {}
        return {
            number: directory
            for number, directory in self._emitted.items()
            if number in self._found or self.due is not None
        }

    def kept(self) -> dict[int, VersionDirectory]:
        """What was aspired before and is still there."""
        return {number: self._emitted[number] for number in self._emitted if number in self._found}

    def _examine(self, number: int) -> VersionDirectory | None:
        """The version as it may be served now: its new contents, else the last ones that were whole, else None."""
        path = self._found[number]
        emitted = self._emitted.get(number)
        observation = self._seen.get(path) or self._observe(path)
        fingerprint = observation.look.fingerprint
        if emitted is not None and (emitted.path, emitted.fingerprint) == (path, fingerprint):
            return emitted
        if observation.lacking is not None:
            self.waiting[number] = observation.lacking
            self.lacking.append((number, observation.lacking))
        elif observation.judged:
            return VersionDirectory(number, path, fingerprint)
        else:
            self.waiting[number] = f"{path} changed less than {self._settle:g} s ago"
        return emitted

    def _observe(self, path: Path) -> Observation:
        begin = self._disk.time()
        look = self._disk.look(path)
        observation = self._before.get(path)
        if observation is None or observation.look != look:
            observation = Observation(look, self._disk.time())
        settled_at = observation.since + self._settle
        if not observation.judged and begin >= settled_at:
            observation = self._judge(path, observation)
        elif not observation.judged:
            self.due = _earliest([self.due, settled_at])
        self._seen[path] = observation
        return observation

    def _judge(self, path: Path, observation: Observation) -> Observation:
        try:
            return replace(observation, judged=True, lacking=self._disk.check(path))
        except OSError as error:  # Not a verdict: asked again by the next scan.
            return replace(observation, lacking=f"{error.filename or path} cannot be read: {error.strerror or error}")

    def observations(self) -> dict[Path, Observation]:
        """For the next scan; versions that were not looked at keep what was known of them."""
        kept = {path: self._before[path] for path in self._found.values() if path in self._before}
        return kept | self._seen
