"""One look at a model, or at the root: what was remembered + what the directory holds now → what is aspired, and what
is remembered next.

Plain functions over frozen values, called by `source` in a thread with the real `Disk` and by tests with a made-up
one. Knows no loop, no event and no model that is loaded; directory state is the only truth.
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
from embedserve.lifecycle.version_policy import asks_for_none, choose, find_versions, names_only_absent, version_number
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
    """A version that is whole and quiet: where it is, and the contents it was judged by."""

    version: int
    path: Path
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Listing:
    """A directory as of one moment: which one it is, and its entries."""

    device: int
    inode: int
    children: Sequence[Child]


class Disk(Protocol):
    """What a scan asks the file system; every call may block."""

    def time(self) -> float:
        """Monotonic seconds."""

    def listing(self, path: Path, follow: bool = True) -> Listing:
        """List a directory.

        Args:
            path: The directory.
            follow: Look where links lead, and leave out those that lead nowhere.

        Raises:
            OSError: It is gone, unreadable or too large.
        """

    def leads_nowhere(self, path: Path) -> bool:
        """Whether there is no such path, or a link to one that is not there."""

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
        misplaced: Whether something else than a SavedModel stands there, which no time makes one.
    """

    look: Look
    since: float
    judged: bool = False
    lacking: str | None = None
    misplaced: bool = False


@dataclass(frozen=True)
class ModelMemory:
    """What one look at a model leaves to the next.

    Attributes:
        observations: By version directory.
        aspired: None until the base path was read once.
        device: Which one held the base path when it last held versions.
        is_model: Whether there has been a version directory.
    """

    observations: Mapping[Path, Observation] = field(default_factory=dict)
    aspired: Mapping[int, VersionDirectory] | None = None
    device: int | None = None
    is_model: bool = False


@dataclass(frozen=True)
class ModelScan:
    """What a look found out about one model.

    Attributes:
        memory: For the next look.
        found: Path of every version there is.
        waiting: Why a version that the policy wants is not taken (yet).
        problem: What is wrong with its base path, or None.
        unreadable: Whether the base path could not be read, so that nothing is known of what is there now.
        gone: Whether there is no base path.
        instead: What the base path holds in place of versions, and what to do about it; None where nothing is known.
        misplaced: Whether what is there has to be moved or converted before any of it is a version.
        place: Device and inode of the base path.
        notices: Texts to log once.
        due: When a version will have been quiet long enough, if one is being waited for.
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
    """What one look at the root leaves to the next.

    Attributes:
        names: Directories that may be models.
        missed: When one of them was first seen to be gone.
        device: Which one held the root when it last held directories.
    """

    names: frozenset[str] = frozenset()
    missed: Mapping[str, float] = field(default_factory=dict)
    device: int | None = None


@dataclass(frozen=True)
class RootScan:
    """What a look at the root found out; the attributes are as those of `ModelScan`."""

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
    """Look which directories there are.

    A directory that is gone is dropped only when a second look, `settle` later, finds the same: replacing a
    directory by two renames must not unload it.

    Args:
        memory: What the last look left.
        root: Directory whose subdirectories are discovered as models.
        gone: Names under which the last look at a model found nothing: they may be links that lead nowhere.
        disk: The file system.
        settle: Seconds for which a directory must not change before it is believed.
        absent: What becomes of versions that are not there (`RegistryOptions.absent_versions`).
    """
    try:
        listing = disk.listing(root, follow=False)
        _check_mount(root, memory.device, listing.device, any(child.is_directory for child in listing.children))
    except OSError as error:
        what = "does not exist (yet)" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
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
    """After the error of a directory that is none: which may have been meant, or what the file becomes a version by."""
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
    """Refuse to believe a directory that lost its contents and its device together: a mount point without its mount.

    Raises:
        OSError: That is so.
    """
    if before is not None and device != before and not holds:
        raise OSError(errno.ENODEV, "it is empty now and on another device: its mount is gone", str(path))


def diagnose(root: Path, children: Sequence[Child], instead: Iterable[str]) -> tuple[str, bool]:
    """Why there is no model under a readable root, and what to do about the usual mistakes.

    Args:
        root: The root.
        children: What it holds.
        instead: What its directories hold in place of versions.

    Returns:
        The text, and whether the root cannot have been what was meant; an empty one is merely early.
    """
    found = misplaced.in_root(root, children, instead)
    if found is not None:
        return found, True
    return (
        f"no models found under {root}; expected {root}/<model name>/<version number>/saved_model.pb, "
        f"as tf.saved_model.save(model, {str(root / 'my_model' / '1')!r}) makes it"
    ), False


# Versions of one model.


def scan_model(
    config: ModelConfig,
    policy: VersionPolicy,
    memory: ModelMemory,
    disk: Disk,
    settle: float,
    absent: AbsentVersions = "keep",
) -> ModelScan:
    """Look at one model.

    Args:
        config: Its name and base path.
        policy: Which versions are wanted.
        memory: What the last look left.
        disk: The file system.
        settle: Seconds for which a directory must not change before it is believed.
        absent: What becomes of versions that are not there (`RegistryOptions.absent_versions`).
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
    notices = [
        f"Duplicate version directories detected. Version {version} will be loaded from {used}, "
        f"{ignored} will be ignored. (model {config.name}, {config.directory})"
        for version, used, ignored in duplicates
    ]
    notices += _unserved(config, policy, found)
    if slip and aspired:
        notices.append(_changes_nothing(config, aspired))
    notices += [
        f"Servable version {ServableId(config.name, number)} is not taken yet: {why}"
        for number, why in examination.lacking
    ]
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
    """That a base path cannot be read, in TensorFlow Serving's words."""
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
    """One scan's look at the versions of one model; only those that the policy asks about are looked at."""

    def __init__(self, memory: ModelMemory, found: Mapping[int, Path], disk: Disk, settle: float) -> None:
        self.waiting: dict[int, str] = {}
        self.lacking: list[tuple[int, str]] = []
        self.misplaced = False
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
        except OSError as error:  # No concern of the other versions.
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
        except OSError as error:  # Not a verdict: asked again by the next scan.
            return replace(observation, lacking=f"{error.filename or path} cannot be read: {error.strerror or error}")

    def observations(self) -> dict[Path, Observation]:
        """For the next scan; versions that were not looked at keep what was known of them."""
        kept = {path: self._before[path] for path in self._found.values() if path in self._before}
        return kept | self._seen
