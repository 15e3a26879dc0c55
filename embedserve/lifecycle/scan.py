"""Looks at a model or at the root: memory + directory contents → aspired versions and the next look's memory.

Plain functions over frozen values. The functions run in a thread with the real `Disk`, and in tests with a made-up
disk. The module knows no loop, no event and no loaded model; directory state is the only truth.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from embedserve.config import AbsentVersions, ModelConfig, SpecificVersions, VersionPolicy, name_problem
from embedserve.lifecycle.version_policy import (
    Duplicate,
    asks_for_none,
    choose,
    find_versions,
    names_only_absent,
    version_number,
)
from embedserve.saved_model.files import misplaced
from embedserve.saved_model.files.completeness import Fingerprint, Look
from embedserve.saved_model.files.misplaced import Child
from embedserve.servable import ServableId

__all__ = [
    "Disk",
    "Listing",
    "ModelMemory",
    "ModelScan",
    "RootMemory",
    "RootScan",
    "VersionDirectory",
    "base_path_problem",
    "diagnose",
    "scan_model",
    "scan_root",
]


@dataclass(frozen=True)
class VersionDirectory:
    """A whole and quiet version: number, place, and the judged contents."""

    version: int
    path: Path
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Listing:
    """A directory at one moment: identity and entries."""

    device: int
    inode: int
    children: Sequence[Child]


class Disk(Protocol):
    """The file system's interface for a scan; every call may block."""

    def time(self) -> float:
        """Monotonic seconds."""

    def listing(self, path: Path, follow: bool = True) -> Listing:
        """List a directory.

        Args:
            path: The directory.
            follow: Look at the targets of links, and leave out links without a target.

        Raises:
            OSError: The directory is gone, unreadable or too large.
        """

    def leads_nowhere(self, path: Path) -> bool:
        """Whether the path is missing, or a link to a missing target."""

    def look(self, path: Path) -> Look:
        """Stat every file of a version directory (`completeness.look`)."""

    def check(self, path: Path) -> str | None:
        """Find the reason why a version directory cannot be loaded (`completeness.check`)."""


@dataclass(frozen=True)
class Observation:
    """Knowledge about a version directory since the last change.

    Attributes:
        look: The stats of the files.
        since: When the same stats were first seen, in monotonic seconds.
        judged: Whether `lacking` is the verdict on the contents, so that no scan needs to read the files again.
        lacking: The missing or unreadable part; None if no part is known to be missing.
        misplaced: Whether the directory holds other contents than a SavedModel, so that waiting cannot help.
    """

    look: Look
    since: float
    judged: bool = False
    lacking: str | None = None
    misplaced: bool = False


@dataclass(frozen=True)
class ModelMemory:
    """Memory from one look at a model to the next.

    Attributes:
        observations: By version directory.
        aspired: None until the base path was read once.
        device: The device of the base path when the base path last held versions.
        is_model: Whether a version directory has ever been seen.
    """

    observations: Mapping[Path, Observation] = field(default_factory=dict)
    aspired: Mapping[int, VersionDirectory] | None = None
    device: int | None = None
    is_model: bool = False


@dataclass(frozen=True)
class ModelScan:
    """Findings of a look at a model.

    Attributes:
        memory: For the next look.
        found: Path of every present version.
        waiting: The reason for each wanted version that is not taken (yet).
        problem: The fault of the base path, or None.
        unreadable: Whether the base path could not be read, so that the present contents are unknown.
        gone: Whether the base path is missing.
        instead: The contents in place of versions, with advice; None for unknown contents.
        misplaced: Whether the contents must be moved or converted to become a version.
        place: Device and inode of the base path.
        notices: Texts to log once.
        due: When a waiting version will have been quiet long enough, in monotonic seconds; None without a wait.
    """

    memory: ModelMemory
    found: Mapping[int, Path] = field(default_factory=dict)
    waiting: Mapping[int, str] = field(default_factory=dict)
    problem: str | None = None
    unreadable: bool = False
    gone: bool = False
    instead: str | None = None
    misplaced: bool = False
    place: tuple[int, int] | None = None
    notices: tuple[str, ...] = ()
    due: float | None = None


@dataclass(frozen=True)
class RootMemory:
    """Memory from one look at the root to the next.

    Attributes:
        names: Directories that may be models.
        missed: When a gone directory was first missed, by name, in monotonic seconds.
        device: The device of the root when the root last held directories.
    """

    names: frozenset[str] = frozenset()
    missed: Mapping[str, float] = field(default_factory=dict)
    device: int | None = None


@dataclass(frozen=True)
class RootScan:
    """Findings of a look at the root; attributes as in `ModelScan`."""

    memory: RootMemory
    children: Sequence[Child] = ()
    problem: str | None = None
    unreadable: bool = False
    place: tuple[int, int] | None = None
    due: float | None = None


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)


# Models under the root.


def scan_root(
    memory: RootMemory, root: Path, gone: Collection[str], disk: Disk, settle: float, absent: AbsentVersions = "keep"
) -> RootScan:
    """List the directories that may be models.

    A gone directory is dropped only when a second look, `settle` seconds later, misses the directory again: replacing a
    directory by two renames must not unload the model.

    Args:
        memory: The last look's memory.
        root: Directory whose subdirectories are discovered as models.
        gone: Names whose base path was missing at the last look: the names may be links without a target.
        disk: The file system.
        settle: Seconds for which a directory must stay unchanged before a scan trusts the contents.
        absent: The fate of absent versions (`RegistryOptions.absent_versions`).
    """
    try:
        listing = disk.listing(root, follow=False)
        _check_mount(root, memory.device, listing.device, any(child.is_directory for child in listing.children))
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        return RootScan(memory, problem=f"models directory {root} {what}{_meant(root, error, disk)}", unreadable=True)
    directories = {
        child.name
        for child in listing.children
        if child.is_directory and not child.name.startswith(".") and name_problem(child.name) is None
    }
    directories -= {name for name in directories.intersection(gone) if disk.leads_nowhere(root / name)}
    patience = math.inf if absent == "last" else settle
    now = disk.time()
    missed: dict[str, float] = {}
    for name in memory.names - directories:
        since = memory.missed.get(name, now)
        if now < since + patience:
            missed[name] = since
    return RootScan(
        RootMemory(
            frozenset(directories | missed.keys()),
            missed,
            listing.device if directories else memory.device,
        ),
        listing.children,
        place=(listing.device, listing.inode),
        due=_earliest(since + patience for since in missed.values() if patience < math.inf),
    )


def _meant(path: Path, error: OSError, disk: Disk) -> str:
    """Explain an unreadable directory: the directory probably meant, or the way from a file to a version."""
    if isinstance(error, FileNotFoundError):
        beside = [child.name for child in _entries(disk, path.parent) if child.is_directory]
        return misplaced.nearly(path, beside)
    found = misplaced.instead_of_directory(path) if isinstance(error, NotADirectoryError) else None
    return f": {found}" if found else ""


def _entries(disk: Disk, path: Path) -> Sequence[Child]:
    try:
        return disk.listing(path).children
    except OSError:
        return ()


def _check_mount(path: Path, before: int | None, device: int, holds: bool) -> None:
    """Reject a directory that lost contents and device together: a mount point without the mount.

    Raises:
        OSError: The directory is empty now, and on another device.
    """
    if before is not None and device != before and not holds:
        raise OSError(errno.ENODEV, "it is empty now and on another device: its mount is gone", str(path))


def diagnose(root: Path, children: Sequence[Child], instead: Iterable[str]) -> tuple[str, bool]:
    """Explain why a readable root holds no model, with advice for the usual mistakes.

    Args:
        root: The root.
        children: The root's entries.
        instead: For each directory that holds no versions, the contents found.

    Returns:
        The text, and whether the root must be a mistake; an empty root is merely early.
    """
    found = misplaced.in_root(root, children, instead)
    if found is not None:
        return found, True
    return (
        f"no models found under {root}; expected {root}/<model name>/<version number>/saved_model.pb, "
        f"as tf.saved_model.save(model, {str(root / 'my_model' / '1')!r}) makes it"
    ), False


# Versions of a model.


def scan_model(
    config: ModelConfig,
    policy: VersionPolicy,
    memory: ModelMemory,
    disk: Disk,
    settle: float,
    absent: AbsentVersions = "keep",
) -> ModelScan:
    """Look at a model.

    Args:
        config: The model's name and base path.
        policy: Chooses the wanted versions.
        memory: The last look's memory.
        disk: The file system.
        settle: Seconds for which a directory must stay unchanged before a scan trusts the contents.
        absent: The fate of absent versions (`RegistryOptions.absent_versions`).
    """
    try:
        listing = disk.listing(config.directory)
        names, duplicates = find_versions((child.name for child in listing.children), policy)
        _check_mount(config.directory, memory.device, listing.device, bool(names))
    except OSError as error:
        return _unreadable(config, memory, error, disk)
    found = {number: config.directory / name for number, name in names.items()}
    examination = _Examination(memory, found, disk, settle)
    slip = absent != "unload" and names_only_absent(policy, found)
    aspired: Mapping[int, VersionDirectory] = examination.kept() if slip else examination.aspire(policy)
    if absent == "last" and not aspired and memory.aspired and not asks_for_none(policy):
        aspired = memory.aspired
    notices = _notices(config, policy, duplicates, examination)
    if slip and aspired:
        notices.append(_changes_nothing(config, aspired))
    instead = None if found else misplaced.in_base_path(config.directory, listing.children, partial(_entries, disk))
    problem = None if found else _no_versions(config, instead, empty=not listing.children)
    is_model = any(child.is_directory and version_number(child.name) is not None for child in listing.children)
    device = listing.device if found else memory.device
    return ModelScan(
        ModelMemory(examination.observations(), aspired, device, is_model or memory.is_model),
        found,
        examination.waiting,
        problem,
        instead=instead,
        misplaced=instead is not None or (examination.misplaced and not aspired),
        place=(listing.device, listing.inode),
        notices=tuple(notices if problem is None else [*notices, problem]),
        due=examination.due,
    )


def _notices(
    config: ModelConfig, policy: VersionPolicy, duplicates: Iterable[Duplicate], examination: _Examination
) -> list[str]:
    notices = [
        f"Duplicate version directories detected. Version {version} will be loaded from {used}, "
        f"{ignored} will be ignored. (model {config.name}, {config.directory})"
        for version, used, ignored in duplicates
    ]
    notices += _unserved(config, policy, examination.found)
    notices += [
        f"Servable version {ServableId(config.name, number)} is not taken yet: {why}"
        for number, why in examination.lacking
    ]
    return notices


def _unreadable(config: ModelConfig, memory: ModelMemory, error: OSError, disk: Disk) -> ModelScan:
    problem = f"{base_path_problem(config, error)}{_meant(config.directory, error, disk)}"
    return ModelScan(
        memory,
        problem=problem,
        unreadable=True,
        gone=isinstance(error, FileNotFoundError),
        misplaced=isinstance(error, NotADirectoryError),
        notices=(problem,),
    )


def _changes_nothing(config: ModelConfig, aspired: Mapping[int, VersionDirectory]) -> str:
    return (
        f"The version policy of servable {config.name} names only versions that are not there, so it changes "
        f"nothing: versions {', '.join(map(str, sorted(aspired)))} go on serving until one of those appears"
    )


def base_path_problem(config: ModelConfig, error: OSError) -> str:
    """Word an unreadable base path as TensorFlow Serving does."""
    path = config.directory
    reason = f"NOT_FOUND: {path} not found" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
    return (
        "FileSystemStoragePathSource encountered a filesystem access error: "
        f"Could not find base path {path} for servable {config.name} with error {reason}"
    )


def _no_versions(config: ModelConfig, instead: str | None, empty: bool) -> str:
    path = config.directory
    made = f"tf.saved_model.save(model, {str(path / '1')!r}) makes version 1" if empty else ""
    hint = f" {instead or made}" if instead or made else ""
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
    """A scan's look at the versions of a model; only versions that the policy asks about are looked at."""

    def __init__(self, memory: ModelMemory, found: Mapping[int, Path], disk: Disk, settle: float) -> None:
        self.waiting: dict[int, str] = {}
        self.lacking: list[tuple[int, str]] = []
        self.misplaced = False
        self.due: float | None = None
        self._before = memory.observations
        self._emitted: Mapping[int, VersionDirectory] = memory.aspired or {}
        self.found = found
        self._disk = disk
        self._settle = settle
        self._seen: dict[Path, Observation] = {}

    def aspire(self, policy: VersionPolicy) -> dict[int, VersionDirectory]:
        """Choose the policy's versions among the loadable versions."""
        candidates = dict(self.found)
        while True:
            chosen = {number: self._examine(number) for number in choose(policy, candidates)}
            aspired = {number: directory for number, directory in chosen.items() if directory is not None}
            if len(aspired) == len(chosen):
                return aspired or self._held(policy)
            for number in chosen.keys() - aspired.keys():
                del candidates[number]

    def _held(self, policy: VersionPolicy) -> dict[int, VersionDirectory]:
        """Choose the versions to keep while no wanted version is loadable: a copy in progress must not stop a model.

        A version whose directory is gone is kept only until the successor has been quiet for long enough.
        """
        if not choose(policy, self.found):
            return {}
        return {
            number: directory
            for number, directory in self._emitted.items()
            if number in self.found or self.due is not None
        }

    def kept(self) -> dict[int, VersionDirectory]:
        """The versions that were aspired before and are still present."""
        return {number: self._emitted[number] for number in self._emitted if number in self.found}

    def _examine(self, number: int) -> VersionDirectory | None:
        """The servable state of a version: the new contents, else the last whole contents, else None."""
        path = self.found[number]
        emitted = self._emitted.get(number)
        observation = self._seen.get(path) or self._observe(path)
        fingerprint = observation.look.fingerprint
        if emitted is not None and (emitted.path, emitted.fingerprint) == (path, fingerprint):
            return emitted
        if observation.lacking is not None:
            self.waiting[number] = observation.lacking
            self.lacking.append((number, observation.lacking))
            self.misplaced = self.misplaced or observation.misplaced
        elif observation.judged:
            return VersionDirectory(number, path, fingerprint)
        else:
            self.waiting[number] = f"{path} changed less than {self._settle:g} s ago"
        return emitted

    def _observe(self, path: Path) -> Observation:
        begin = self._disk.time()
        try:
            look = self._disk.look(path)
        except OSError as error:  # Other versions are still examined.
            self._seen[path] = Observation(Look((), ()), begin, lacking=f"{path}: {error.strerror or error}")
            return self._seen[path]
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
            lacking, list_ = self._disk.check(path), partial(_entries, self._disk)
            instead = lacking and misplaced.in_version(path, list_(path), list_)
            return replace(observation, judged=True, lacking=lacking, misplaced=bool(instead))
        except OSError as error:  # No verdict: the next scan asks again.
            return replace(observation, lacking=f"{error.filename or path} cannot be read: {error.strerror or error}")

    def observations(self) -> dict[Path, Observation]:
        """Observations for the next scan; versions without a look keep the earlier observation."""
        kept = {path: self._before[path] for path in self.found.values() if path in self._before}
        return kept | self._seen
