"""Store contents + cache contents → versions to look at, to fetch, to serve and to report.

Plain functions over data, with the rules of `lifecycle.scan` for local directories. Knows no store, no disk and no
clock.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf

from embedserve.config import AbsentVersions, VersionPolicy
from embedserve.lifecycle.version_policy import asks_for_none, choose, names_only_absent
from embedserve.remote.contents import RemoteVersion

__all__ = ["Known", "Plan", "decide", "next_delay", "superfluous"]

# Seconds between attempts at a silent store: the first pause and the longest pause.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0

# Unusable versions that a plan passes over, at most; beyond the limit a plan considers only cached versions.
MOST_PASSED_OVER = 10


@dataclass(frozen=True)
class Plan:
    """The consequences of a look.

    Attributes:
        look: Versions whose contents must be listed first; the rest of the plan is then empty.
        fetch: Versions to fetch, the most wanted first.
        serve: Digest of the contents to serve, by version.
        waiting: Wanted versions without service of the current contents, with a finding about the contents. None stands
            for contents that only need fetching.
    """

    look: tuple[int, ...] = ()
    fetch: tuple[int, ...] = ()
    serve: Mapping[int, str] = field(default_factory=dict)
    waiting: Mapping[int, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """The facts about a model's versions, besides the versions in the store.

    Attributes:
        looked: Contents of the versions already listed.
        cached: Digests of the whole versions in the cache, with the time of the last use.
        findings: Reasons why contents cannot be served, by version and digest.
        served: Digests of the contents served now.
        without_room: Contents that fit only after the removal of others.
    """

    looked: Mapping[int, RemoteVersion] = field(default_factory=dict)
    cached: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    findings: Mapping[tuple[int, str], str] = field(default_factory=dict)
    served: Mapping[int, str] = field(default_factory=dict)
    without_room: Collection[tuple[int, str]] = ()

    def problem(self, version: int) -> str | None:
        """The reason why the current contents of a listed version cannot be served, or None."""
        return self.looked[version].lacking or self.findings.get((version, self.looked[version].digest))

    def generation(self, version: int) -> str | None:
        """The servable contents of a version: the current contents, else the last whole contents."""
        digests = self.cached.get(version, {})
        if version in self.looked and self.looked[version].digest in digests:
            return self.looked[version].digest
        return self.served.get(version) or max(digests, key=lambda digest: digests[digest], default=None)


def decide(policy: VersionPolicy, found: Collection[int], known: Known, absent: AbsentVersions = "keep") -> Plan:
    """Choose versions.

    Args:
        policy: The model's policy.
        found: Versions in the store.
        known: All else that is known of the versions.
        absent: The fate of absent versions (`RegistryOptions.absent_versions`).
    """
    looked, served, problem, generation = known.looked, known.served, known.problem, known.generation
    last = dict(served) if absent == "last" and not asks_for_none(policy) else {}
    if absent != "unload" and names_only_absent(policy, found):
        return Plan(serve={version: digest for version, digest in served.items() if version in found} or last)
    candidates = dict.fromkeys(found)
    waiting: dict[int, str | None] = {}
    while True:
        chosen = choose(policy, candidates)
        unknown = tuple(version for version in chosen if version not in looked)
        if unknown:
            return Plan(look=unknown)
        # An unavailable version does not count, so that the next version takes its place.
        hopeless = {v: problem(v) for v in chosen if problem(v) and generation(v) is None}
        if not hopeless:
            break
        waiting |= hopeless
        # A directory of other things than versions must not be searched to the end, again and again.
        looking = len(waiting) < MOST_PASSED_OVER
        candidates = {v: None for v in candidates if v not in hopeless and (looking or generation(v) is not None)}
    outdated = [v for v in chosen if looked[v].digest not in known.cached.get(v, {})]
    fetch = tuple(v for v in outdated if not problem(v))
    coming = bool(fetch) or any((v, looked[v].digest) not in known.without_room for v in waiting)
    available = {v: digest for v in candidates if (digest := generation(v))}
    return Plan(
        fetch=fetch,
        serve=_serve(policy, found, available, coming, served) or last,
        waiting=waiting | {v: problem(v) for v in outdated},
    )


def _serve(
    policy: VersionPolicy,
    found: Collection[int],
    available: Mapping[int, str],
    coming: bool,
    served: Mapping[int, str],
) -> dict[int, str]:
    """Choose among the available versions; a model must not go dark over a version on the way.

    The wait has no limit: a large file appears in an object store only at the end of the upload.
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
    """Find cached contents to remove: neither served nor current, nor of a version to keep."""
    return [
        (version, digest)
        for version, digests in cached.items()
        for digest in digests
        if digest != serve.get(version)
        and not (version in keep and (version not in looked or digest == looked[version].digest))
    ]


def next_delay(interval: float, failing_for: float | None, spread: float | None = None) -> float:
    """Seconds until the next query of a store.

    Args:
        interval: The regular pause; infinite for a store with a single query.
        failing_for: Seconds without an answer, or None. The pause is about as long, so pauses double up to a bound. A
            returning store is therefore noticed within twice the downtime.
        spread: 0 to 1, the place in the range of jitter; random if None, so that many processes do not query at once.
    """
    place = random.random() if spread is None else spread
    if failing_for is None:
        return interval * (0.9 + 0.2 * place)
    first, longest = min(interval, _FIRST_PAUSE), interval if _LONGEST_PAUSE < interval < inf else _LONGEST_PAUSE
    return min(max(failing_for, first), longest) * (0.5 + 0.5 * place)
