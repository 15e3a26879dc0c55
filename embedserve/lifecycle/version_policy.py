"""Names under a base path to version numbers, and version numbers to a policy's choice.

Pure functions over names and numbers. The functions know no directory, and treat incomplete versions like complete
versions (TF Serving: file_system_storage_path_source.cc).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeVar

from embedserve.config import AllVersions, LatestVersions, SpecificVersions, VersionPolicy
from embedserve.tfs.constants import MAX_VERSION

__all__ = ["Duplicate", "asks_for_none", "choose", "find_versions", "names_only_absent", "version_number"]

T = TypeVar("T")

_DIGITS = re.compile(r"[0-9]+")


class Duplicate(NamedTuple):
    """Two names of the same version; only `used` counts."""

    version: int
    used: str
    ignored: str


def version_number(name: str) -> int | None:
    """Parse a directory name as a version: decimal digits within int64; None for other names."""
    if not _DIGITS.fullmatch(name) or len(name.lstrip("0")) > 19:
        return None
    number = int(name)
    return number if number <= MAX_VERSION else None


def find_versions(names: Iterable[str], policy: VersionPolicy) -> tuple[dict[int, str], list[Duplicate]]:
    """Find the versions among the names of a base path's children.

    Several names may mean the same number (`1` and `001`). The lexicographically last name counts. The policy for all
    versions takes the first name instead, as TF Serving does.

    Returns:
        Name by version, and the names left out as duplicates.
    """
    versions: dict[int, str] = {}
    duplicates: list[Duplicate] = []
    for name in sorted(names, reverse=not isinstance(policy, AllVersions)):
        number = version_number(name)
        if number is None:
            continue
        if number in versions:
            duplicates.append(Duplicate(number, versions[number], name))
        else:
            versions[number] = name
    return versions, duplicates


def choose(policy: VersionPolicy, found: Mapping[int, T]) -> dict[int, T]:
    """Choose the versions that `policy` wants among the found versions, descending."""
    match policy:
        case LatestVersions(num_versions=count):
            wanted = sorted(found, reverse=True)[:count]
        case AllVersions():
            wanted = sorted(found, reverse=True)
        case SpecificVersions(versions=versions):
            wanted = sorted(set(versions).intersection(found), reverse=True)
    return {number: found[number] for number in wanted}


def asks_for_none(policy: VersionPolicy) -> bool:
    """Whether the policy asks to serve no version."""
    return isinstance(policy, SpecificVersions) and not policy.versions


def names_only_absent(policy: VersionPolicy, found: Collection[int]) -> bool:
    """Whether a policy names versions and all are absent: a slip rather than the wish to serve no version."""
    return (
        isinstance(policy, SpecificVersions) and bool(policy.versions) and not set(policy.versions).intersection(found)
    )
