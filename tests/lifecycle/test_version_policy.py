from __future__ import annotations

import pytest

from embedserve.config import AllVersions, LatestVersions, SpecificVersions, VersionPolicy
from embedserve.lifecycle.version_policy import Duplicate, choose, find_versions, version_number


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("0", 0),
        ("1", 1),
        ("0001", 1),
        ("00000123", 123),
        ("20170111173521", 20170111173521),
        ("9223372036854775807", 2**63 - 1),
        ("0000000000009223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("9" * 10_000, None),
        ("", None),
        ("v1", None),
        ("1.0", None),
        ("1_0", None),
        ("2.denied", None),
        ("0x1", None),
        ("+5", None),
        ("-1", None),
        (" 7", None),
        ("7\n", None),
        ("१", None),  # A decimal digit, but not of ASCII.
        ("..data", None),
    ],
)
def test_names_that_are_versions(name: str, number: int | None) -> None:
    assert version_number(name) == number


NAMES = ["1", "001", "01", "2", "notes", "10"]


@pytest.mark.parametrize("policy", [LatestVersions(), SpecificVersions(versions=(1,))])
def test_of_names_for_one_number_the_lexicographically_last_counts(policy: VersionPolicy) -> None:
    assert find_versions(NAMES, policy) == (
        {1: "1", 2: "2", 10: "10"},
        [Duplicate(1, "1", "01"), Duplicate(1, "1", "001")],
    )


def test_for_all_versions_the_lexicographically_first_counts() -> None:
    assert find_versions(NAMES, AllVersions()) == (
        {1: "001", 2: "2", 10: "10"},
        [Duplicate(1, "001", "01"), Duplicate(1, "001", "1")],
    )


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (LatestVersions(), [10]),
        (LatestVersions(num_versions=2), [10, 9]),
        (LatestVersions(num_versions=9), [10, 9, 1]),
        (AllVersions(), [10, 9, 1]),
        (SpecificVersions(versions=(1, 9)), [9, 1]),
        (SpecificVersions(versions=(1, 7)), [1]),
        (SpecificVersions(versions=(1, 1)), [1]),
        (SpecificVersions(), []),
    ],
)
def test_policies_choose_by_number(policy: VersionPolicy, chosen: list[int]) -> None:
    found = {number: f"dir{number}" for number in (1, 10, 9)}
    assert choose(policy, found) == {number: f"dir{number}" for number in chosen}
    assert choose(policy, {}) == {}
