"""What follows from what a store holds and what the cache has, as tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.config import AllVersions, LatestVersions, SpecificVersions, VersionPolicy
from embedserve.lifecycle.version_policy import choose, names_only_absent
from embedserve.remote.contents import RemoteFile, RemoteVersion
from embedserve.remote.plan import Known, Plan, decide, next_delay, superfluous

LATEST = LatestVersions()


def contents(version: int, revision: int = 1, lacking: str | None = None) -> RemoteVersion:
    return RemoteVersion((RemoteFile("saved_model.pb", version, f"{revision}"),), lacking)


def digest(version: int, revision: int = 1) -> str:
    return contents(version, revision).digest


def planned(
    policy: VersionPolicy,
    store: Mapping[int, RemoteVersion],
    cached: Mapping[int, list[str]] | None = None,
    served: Mapping[int, str] | None = None,
    findings: Mapping[tuple[int, str], str] | None = None,
    without_room: Collection[tuple[int, str]] = (),
) -> Plan:
    """Decides until nothing has to be looked at any more."""
    used = {v: {digest: when for when, digest in enumerate(digests)} for v, digests in (cached or {}).items()}
    looked: dict[int, RemoteVersion] = {}
    while (plan := decide(policy, store, Known(looked, used, findings or {}, served or {}, without_room))).look:
        assert plan == Plan(look=plan.look), "nothing else is said before all is known"
        looked |= {version: store[version] for version in plan.look}
    return plan


def test_only_what_the_policy_can_want_is_looked_at() -> None:
    found = range(1, 100)
    assert decide(LATEST, found, Known()).look == (99,)
    assert decide(LatestVersions(num_versions=2), found, Known()).look == (99, 98)
    assert decide(SpecificVersions(versions=(7, 200)), found, Known()).look == (7,)
    assert len(decide(AllVersions(), found, Known()).look) == 99


@pytest.mark.parametrize(
    ("policy", "fetch"),
    [(LATEST, (3,)), (LatestVersions(num_versions=2), (3, 2)), (AllVersions(), (3, 2, 1))],
)
def test_what_is_wanted_and_not_cached_is_fetched_the_largest_first(
    policy: VersionPolicy, fetch: tuple[int, ...]
) -> None:
    plan = planned(policy, {v: contents(v) for v in (1, 2, 3)})
    assert plan == Plan(fetch=fetch, serve={}, waiting=dict.fromkeys(fetch))


def test_what_is_cached_as_the_store_has_it_is_served() -> None:
    plan = planned(LATEST, {1: contents(1), 2: contents(2)}, {2: [digest(2)]})
    assert plan == Plan(serve={2: digest(2)})


def test_the_version_served_stays_while_its_successor_is_fetched() -> None:
    plan = planned(LATEST, {1: contents(1), 2: contents(2)}, {1: [digest(1)]}, {1: digest(1)})
    assert plan == Plan(fetch=(2,), serve={1: digest(1)}, waiting={2: None})


def test_a_cached_version_is_served_meanwhile_after_a_restart() -> None:
    plan = planned(LATEST, {1: contents(1), 2: contents(2)}, {1: [digest(1)]})
    assert plan == Plan(fetch=(2,), serve={1: digest(1)}, waiting={2: None})


def test_a_version_overwritten_in_place_serves_its_old_contents_until_the_new_ones_are_there() -> None:
    cached, served = {1: [digest(1)]}, {1: digest(1)}
    assert planned(LATEST, {1: contents(1, 2)}, cached, served) == Plan((), (1,), {1: digest(1)}, {1: None})
    cached[1].append(digest(1, 2))
    assert planned(LATEST, {1: contents(1, 2)}, cached, served) == Plan(serve={1: digest(1, 2)})


def test_of_old_contents_those_used_last_are_served_after_a_restart() -> None:
    plan = planned(LATEST, {1: contents(1, 3)}, {1: [digest(1, 2), digest(1, 1)]})
    assert (plan.serve, plan.fetch) == ({1: digest(1, 1)}, (1,))


def test_a_version_that_is_not_whole_is_passed_over_and_its_reason_told() -> None:
    torn = contents(3, lacking="saved_model.pb is missing")
    plan = planned(LATEST, {1: contents(1), 2: contents(2), 3: torn}, {1: [digest(1)]})
    assert plan == Plan(fetch=(2,), serve={1: digest(1)}, waiting={3: "saved_model.pb is missing", 2: None})
    found = planned(LATEST, {2: contents(2), 3: contents(3)}, findings={(3, digest(3)): "it lacks a shard"})
    assert found == Plan(fetch=(2,), waiting={3: "it lacks a shard", 2: None})


def test_a_directory_of_other_things_is_not_looked_through_to_its_end() -> None:
    store = {day: contents(day, lacking="saved_model.pb is missing") for day in range(1, 1000)}
    plan = planned(LATEST, store)
    assert (plan.fetch, plan.serve, len(plan.waiting)) == ((), {}, 10)
    store[3] = contents(3)
    assert planned(LATEST, store, {3: [digest(3)]}).serve == {3: digest(3)}, "what is in the cache needs no search"


def test_a_finding_is_about_contents_and_not_about_the_version() -> None:
    plan = planned(LATEST, {3: contents(3, 2)}, findings={(3, digest(3, 1)): "it lacks a shard"})
    assert plan == Plan(fetch=(3,), waiting={3: None})


def test_a_version_whose_new_contents_are_torn_keeps_its_old_ones_and_its_place() -> None:
    store = {1: contents(1), 2: contents(2, 2, lacking="x is missing")}
    plan = planned(LATEST, store, {2: [digest(2)]}, {2: digest(2)})
    assert plan == Plan(serve={2: digest(2)}, waiting={2: "x is missing"})


def test_a_successor_that_replaced_what_is_served_does_not_make_the_model_go_dark() -> None:
    plan = planned(LATEST, {2: contents(2)}, {1: [digest(1)]}, {1: digest(1)})
    assert plan == Plan(fetch=(2,), serve={1: digest(1)}, waiting={2: None})
    torn = planned(LATEST, {2: contents(2, lacking="x is missing")}, {1: [digest(1)]}, {1: digest(1)})
    assert torn == Plan(serve={1: digest(1)}, waiting={2: "x is missing"})
    large = 2, digest(2)
    crowded = planned(LATEST, {2: contents(2)}, {1: [digest(1)]}, {1: digest(1)}, {large: "no room"}, {large})
    assert crowded == Plan(waiting={2: "no room"}), "what is gone from the store goes, for there is no other room"
    pinned = planned(
        SpecificVersions(versions=(1,)), {1: contents(1), 2: contents(2)}, {2: [digest(2)]}, {2: digest(2)}
    )
    assert (pinned.fetch, pinned.serve) == ((1,), {2: digest(2)})


def test_an_empty_store_serves_nothing_and_so_does_a_policy_that_wants_nothing() -> None:
    assert planned(LATEST, {}, {1: [digest(1)]}, {1: digest(1)}) == Plan()
    assert planned(SpecificVersions(), {1: contents(1)}, {1: [digest(1)]}, {1: digest(1)}) == Plan()


def test_a_policy_that_names_only_absent_versions_changes_nothing_unless_that_is_asked_for() -> None:
    policy, found = SpecificVersions(versions=(9,)), {1: contents(1)}
    cached, served = {1: {digest(1): 0}}, {1: digest(1), 2: digest(2)}
    assert decide(policy, found, Known({}, cached, {}, served)) == Plan(serve={1: digest(1)})
    assert decide(policy, found, Known({}, cached, {}, served), absent="unload") == Plan()


def test_with_last_a_store_that_lists_nothing_takes_nothing_away() -> None:
    served = {1: "a", 2: "b"}
    for policy in (LatestVersions(), AllVersions(), SpecificVersions(versions=(9,))):
        assert decide(policy, (), Known(served=served), absent="last").serve == served
        assert decide(policy, (), Known(served=served)).serve == {}
    assert decide(SpecificVersions(), (1, 2), Known(served=served), absent="last").serve == {}


def test_a_version_that_is_gone_from_the_store_is_not_served() -> None:
    plan = planned(AllVersions(), {1: contents(1)}, {1: [digest(1)], 2: [digest(2)]}, {1: digest(1), 2: digest(2)})
    assert plan == Plan(serve={1: digest(1)})


def test_what_was_wiped_from_the_cache_is_served_on_and_fetched_again() -> None:
    plan = planned(LATEST, {1: contents(1)}, {}, {1: digest(1)})
    assert plan == Plan(fetch=(1,), serve={1: digest(1)}, waiting={1: None})


def test_contents_handed_over_from_elsewhere_are_served_until_the_store_s_are_there() -> None:
    plan = planned(LATEST, {1: contents(1)}, {}, {1: "elsewhere"})
    assert plan == Plan(fetch=(1,), serve={1: "elsewhere"}, waiting={1: None})


def test_what_is_neither_served_nor_current_nor_kept_is_superfluous() -> None:
    looked = {2: contents(2, 2), 3: contents(3)}
    cached = {1: {digest(1): 0}, 2: {digest(2): 0, digest(2, 2): 1}, 3: {digest(3): 0}}
    serve = {3: digest(3)}
    assert superfluous((), looked, cached, serve) == [(1, digest(1)), (2, digest(2)), (2, digest(2, 2))]
    assert superfluous((1, 2, 3), looked, cached, serve) == [(2, digest(2))]
    assert superfluous((), looked, cached, {2: digest(2), 3: digest(3)}) == [(1, digest(1)), (2, digest(2, 2))]


@pytest.mark.parametrize(
    ("interval", "failing_for", "least", "most"),
    [
        (10.0, None, 9.0, 11.0),
        (10.0, 0.0, 0.5, 1.0),
        (10.0, 8.0, 4.0, 8.0),
        (10.0, 5000.0, 30.0, 60.0),
        (300.0, 5000.0, 150.0, 300.0),
        (0.1, 0.0, 0.05, 0.1),
        (inf, None, inf, inf),
        (inf, 0.0, 0.5, 1.0),
        (inf, 5000.0, 30.0, 60.0),
    ],
)
def test_a_pause_is_as_long_as_the_outage_so_far_within_bounds(
    interval: float, failing_for: float | None, least: float, most: float
) -> None:
    assert next_delay(interval, failing_for, 0.0) == pytest.approx(least)
    assert next_delay(interval, failing_for, 1.0) == pytest.approx(most)
    assert least <= next_delay(interval, failing_for) <= most


NUMBERS = st.integers(1, 6)
POLICIES = st.one_of(
    st.integers(1, 3).map(lambda n: LatestVersions(num_versions=n)),
    st.just(AllVersions()),
    st.lists(NUMBERS, max_size=3).map(lambda versions: SpecificVersions(versions=tuple(versions))),
)
HELD = st.dictionaries(NUMBERS, st.integers(1, 3))


@given(
    policy=POLICIES,
    store=st.dictionaries(NUMBERS, st.tuples(st.integers(1, 3), st.booleans())),
    cache=st.dictionaries(NUMBERS, st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True)),
    serving=HELD,
    torn=st.sets(st.tuples(NUMBERS, st.integers(1, 3))),
)
def test_whatever_is_planned_can_be_had_and_nothing_is_given_up_without_need(
    policy: VersionPolicy,
    store: dict[int, tuple[int, bool]],
    cache: dict[int, list[int]],
    serving: dict[int, int],
    torn: set[tuple[int, int]],
) -> None:
    listed = {v: contents(v, revision, None if whole else "torn") for v, (revision, whole) in store.items()}
    cached = {v: [digest(v, r) for r in revisions if (v, r) not in torn] for v, revisions in cache.items()}
    served = {v: digest(v, r) for v, r in serving.items()}
    findings = {(v, digest(v, r)): "torn" for v, r in torn}
    plan = planned(policy, listed, cached, served, findings)
    wanted = choose(policy, dict.fromkeys(listed))
    for version, chosen in plan.serve.items():
        assert chosen in [*cached.get(version, []), served.get(version)]
        assert version in listed or plan.waiting
    for version in plan.fetch:
        assert listed[version].lacking is None
        assert (version, listed[version].digest) not in findings
        assert listed[version].digest not in cached.get(version, [])
    if names_only_absent(policy, listed):
        assert plan.serve == {v: served[v] for v in served if v in listed}, "a slip of the pen changes nothing"
        assert not plan.fetch
    elif not wanted:
        assert plan == Plan()
    elif served:
        assert plan.serve, "a model does not go dark while a version that is wanted is in the store"
    assert set(plan.waiting) >= set(plan.fetch)
