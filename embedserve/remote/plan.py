"""What a store holds + what is cached → what to look at, to fetch, to serve and to say. Plain functions over data.

Called by `follower` after every look at its store; the rules are those of `lifecycle.scan` for local directories. Knows
no store, no disk and no clock.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf

from embedserve.config import AbsentVersions, VersionPolicy
from embedserve.lifecycle.version_policy import asks_for_none, choose, names_only_absent
from embedserve.remote.contents import RemoteVersion

__all__ = ["Plan", "decide", "next_delay", "superfluous"]

# Seconds between attempts at a store that does not answer: at first, and in the end.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0

# Versions that are not whole; beyond them only those are considered that are in the cache.
MOST_PASSED_OVER = 10


@dataclass(frozen=True)
class Plan:
    """What follows from one look.

    Attributes:
        look: Versions whose contents have to be listed before anything can be said; the rest is then empty.
        fetch: Versions to fetch, the most wanted first.
        serve: Digest of the contents to serve, by version.
        waiting: Why a version that the policy wants is not served with its current contents: a finding about them, or
            None where they only have to be fetched.
    """

    look: tuple[int, ...] = ()
    fetch: tuple[int, ...] = ()
    serve: Mapping[int, str] = field(default_factory=dict)
    waiting: Mapping[int, str | None] = field(default_factory=dict)


def decide(
    policy: VersionPolicy,
    found: Collection[int],
    looked: Mapping[int, RemoteVersion],
    cached: Mapping[int, Mapping[str, int]],
    findings: Mapping[tuple[int, str], str],
    served: Mapping[int, str],
    without_room: Collection[tuple[int, str]] = (),
    absent: AbsentVersions = "keep",
) -> Plan:
    """Choose versions.

    Args:
        policy: The model's.
        found: Versions in the store.
        looked: Contents of those that were looked at.
        cached: Digests of the whole versions in the cache, with when each was last used.
        findings: Why the contents of a version cannot be served, by version and digest.
        served: Digests of what is served now.
        without_room: Contents that come only when others go.
        absent: What becomes of versions that are not there (`RegistryOptions.absent_versions`).
    """
    last = dict(served) if absent == "last" and not asks_for_none(policy) else {}
    if absent != "unload" and names_only_absent(policy, found):
        return Plan(serve={version: digest for version, digest in served.items() if version in found} or last)

    def problem(version: int) -> str | None:
        return looked[version].lacking or findings.get((version, looked[version].digest))

    def generation(version: int) -> str | None:
        """The contents of a version that can be served now: the current ones, else the last ones that were whole."""
        digests = cached.get(version, {})
        if version in looked and looked[version].digest in digests:
            return looked[version].digest
        return served.get(version) or max(digests, key=lambda digest: digests[digest], default=None)

    candidates = dict.fromkeys(found)
    waiting: dict[int, str | None] = {}
    while True:
        chosen = choose(policy, candidates)
        unknown = tuple(version for version in chosen if version not in looked)
        if unknown:
            return Plan(look=unknown)
        # What cannot be had does not count, so that the next one takes its place.
        hopeless = {v: problem(v) for v in chosen if problem(v) and generation(v) is None}
        if not hopeless:
            break
        waiting |= hopeless
        # A directory of other things than versions must not be looked through to its end, again and again.
        looking = len(waiting) < MOST_PASSED_OVER
        candidates = {v: None for v in candidates if v not in hopeless and (looking or generation(v) is not None)}
    outdated = [v for v in chosen if looked[v].digest not in cached.get(v, {})]
    fetch = tuple(v for v in outdated if not problem(v))
    coming = bool(fetch) or any((v, looked[v].digest) not in without_room for v in waiting)
    return Plan(
        fetch=fetch,
        serve=_serve(policy, found, {v: digest for v in candidates if (digest := generation(v))}, coming, served)
        or last,
        waiting=waiting | {v: problem(v) for v in outdated},
    )


def _serve(
    policy: VersionPolicy,
    found: Collection[int],
    available: Mapping[int, str],
    coming: bool,
    served: Mapping[int, str],
) -> dict[int, str]:
    """What the policy wants of what can be had now; a model must not go dark over a version on its way.

    However long that takes: a large file is in an object store when its upload has ended, and not before.
    """
    chosen = choose(policy, available)
    if chosen or not choose(policy, dict.fromkeys(found)):
        return chosen
    return {version: digest for version, digest in served.items() if version in found or coming}


def superfluous(
    keep: Collection[int],
    looked: Mapping[int, RemoteVersion],
    cached: Mapping[int, Mapping[str, int]],
    serve: Mapping[int, str],
) -> list[tuple[int, str]]:
    """Cached contents that may go, by version and digest: neither served nor current, nor of a version to keep."""
    return [
        (version, digest)
        for version, digests in cached.items()
        for digest in digests
        if digest != serve.get(version)
        and not (version in keep and (version not in looked or digest == looked[version].digest))
    ]


def next_delay(interval: float, failing_for: float | None, spread: float | None = None) -> float:
    """Seconds until a store is asked again.

    Args:
        interval: The regular pause; infinite for a store that is asked once.
        failing_for: How long it has not answered, or None. The pause is about as long, so it doubles each time, and a
            store that is back is noticed in twice the time that it was away, but for a bound.
        spread: 0 to 1, where in the range of jitter; random if None, so that many processes do not ask as one.
    """
    place = random.random() if spread is None else spread
    if failing_for is None:
        return interval * (0.9 + 0.2 * place)
    first, longest = min(interval, _FIRST_PAUSE), interval if _LONGEST_PAUSE < interval < inf else _LONGEST_PAUSE
    return min(max(failing_for, first), longest) * (0.5 + 0.5 * place)
