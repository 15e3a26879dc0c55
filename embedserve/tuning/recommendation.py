"""Recommends a setting from the results of a sweep.

With a target for the latency: the highest throughput among the cells with a p99 within the target. Without a target:
the setting with the highest power, throughput ÷ p99 (Kleinrock's measure of the knee). The power is the geometric mean
over all numbers of callers, for a server does not choose its load. Settings within `TIE` of the best are equal, and the
simplest of the equal settings wins. A setting with a failed request, or not measured under every load, is never
recommended. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from embedserve.tuning.plan import Setting
from embedserve.tuning.sweep import Result

__all__ = ["TIE", "Choice", "recommend"]

TIE = 0.1
"""Relative difference below which figures count as equal: figures of runs of some seconds differ by about 10 %."""


@dataclass(frozen=True)
class Choice:
    """A recommended setting.

    Attributes:
        setting: The setting.
        at: The decisive cell: the cell within the target, or the knee.
        reason: The reason, in one or two sentences.
        holds_target: False if no cell is within a given target.
    """

    setting: Setting
    at: Result
    reason: str
    holds_target: bool = True


def recommend(results: Sequence[Result], target: float | None) -> Choice | None:
    """Choose a setting, or None if every setting has a failure.

    Args:
        results: The measured cells.
        target: Seconds for the p99, or None.
    """
    settings = _sound(results)
    if not settings:
        return None
    return _knee(settings) if target is None else _within(settings, target)


def _sound(results: Iterable[Result]) -> dict[Setting, list[Result]]:
    """Results by setting, of the settings without failures and with the most loads measured."""
    settings: dict[Setting, list[Result]] = {}
    for result in results:
        settings.setdefault(result.cell.setting, []).append(result)
    clean = {
        setting: found
        for setting, found in settings.items()
        if all(result.measured.answered and not result.measured.failures for result in found)
    }
    most = max(map(len, clean.values()), default=0)
    return {setting: found for setting, found in clean.items() if len(found) == most}


def _knee(settings: Mapping[Setting, Sequence[Result]]) -> Choice:
    powers = {
        setting: math.exp(sum(math.log(_power(result)) for result in found) / len(found))
        for setting, found in settings.items()
    }
    best = max(powers.values())
    chosen = min(setting for setting, power in powers.items() if power >= best * (1 - TIE))
    at = max(settings[chosen], key=_power)
    loads = ", ".join(str(result.cell.concurrency) for result in settings[chosen])
    equal = sum(power >= best * (1 - TIE) for power in powers.values())
    knee = f"Its knee is at {_told(at)}"
    if at is settings[chosen][-1] and len(settings[chosen]) > 1:
        knee += "; as these are the most callers that were measured, it may lie beyond"
    return Choice(chosen, at, f"The best throughput for its p99 at {loads} callers{_simplest(equal)}. {knee}.")


def _within(settings: Mapping[Setting, Sequence[Result]], target: float) -> Choice:
    every = [result for found in settings.values() for result in found]
    holding = [result for result in every if _p99(result) <= target]
    if not holding:
        nearest = min(every, key=_p99)
        reason = f"No cell holds a p99 of {target * 1e3:g} ms; the nearest is {_told(nearest)}."
        return Choice(nearest.cell.setting, nearest, reason, holds_target=False)
    best = max(result.measured.throughput for result in holding)
    equal = [result for result in holding if result.measured.throughput >= best * (1 - TIE)]
    at = min(equal, key=lambda result: (result.cell.setting, -result.measured.throughput))
    count = len({result.cell.setting for result in equal})
    return Choice(
        at.cell.setting,
        at,
        f"The highest throughput whose p99 holds {target * 1e3:g} ms{_simplest(count)}: {_told(at)}.",
    )


def _simplest(equal: int) -> str:
    return f", and the simplest of {equal} settings within {TIE:.0%}" if equal > 1 else ""


def _told(result: Result) -> str:
    callers = result.cell.concurrency
    return (
        f"{callers} caller{'s' * (callers > 1)}, {result.measured.throughput:,.0f} requests/s with a p99 of "
        f"{_p99(result) * 1e3:.3g} ms"
    )


def _power(result: Result) -> float:
    return result.measured.throughput / _p99(result)


def _p99(result: Result) -> float:
    assert result.measured.p99 is not None
    return result.measured.p99
