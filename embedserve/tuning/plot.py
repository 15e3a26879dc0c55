"""Throughput against p99, a curve for each setting: as text, or by matplotlib (`pip install embedserve[plot]`)."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from pathlib import Path

from embedserve.errors import Code, ConfigError
from embedserve.tuning.plan import Setting
from embedserve.tuning.recommendation import Choice
from embedserve.tuning.sweep import Result

__all__ = ["check_plot_file", "terminal_plot", "write_plot"]

# Characters: width and height of the text plot, and width of the labels at its left.
_WIDTH, _HEIGHT = 64, 16
_LABEL = 10
_KINDS = (".png", ".svg", ".pdf")


def terminal_plot(results: Sequence[Result], choice: Choice | None) -> str:
    """Plot both axes logarithmic, a letter per setting, `*` for the recommendation; empty without answers."""
    curves = _curves(results)
    if not curves:
        return ""
    letters = dict(zip(curves, string.ascii_letters + "#" * len(curves), strict=False))
    points = [
        (letters[setting], result.measured.throughput, _milliseconds(result))
        for setting, curve in curves.items()
        for result in curve
    ]
    if choice is not None:
        points.append(("*", choice.at.measured.throughput, _milliseconds(choice.at)))
    x_ends, y_ends = _ends([x for _, x, _ in points]), _ends([y for _, _, y in points])
    rows = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for letter, x, y in points:
        rows[_HEIGHT - 1 - _place(y, y_ends, _HEIGHT)][_place(x, x_ends, _WIDTH)] = letter
    labels = {0: _figure(y_ends[1]), _HEIGHT - 1: _figure(y_ends[0])}
    lines = [f"{labels.get(number, ''):>{_LABEL}} |{''.join(row).rstrip()}" for number, row in enumerate(rows)]
    left, right = map(_figure, x_ends)
    return "\n".join(
        [
            f"{'p99 ms':>{_LABEL}}",
            *lines,
            f"{'':>{_LABEL}} +{'-' * _WIDTH}",
            f"{'':>{_LABEL}}  {left}{'requests/s':^{_WIDTH - len(left) - len(right)}}{right}",
            *(f"  {letters[setting]}  {setting}" for setting in curves),
            *(["  *  recommended"] if choice is not None else []),
        ]
    )


def check_plot_file(file: Path) -> None:
    """Check before the sweep that the plot can be written.

    Raises:
        ConfigError: matplotlib is not installed, or the suffix is no known kind of picture.
    """
    if file.suffix.lower() not in _KINDS:
        raise ConfigError(f"--plot={file}: a plot is written as {', '.join(_KINDS[:-1])} or {_KINDS[-1]}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"--plot={file} needs matplotlib: pip install embedserve[plot]. The report has a plot of text without it",
            code=Code.FAILED_PRECONDITION,
        ) from None


def write_plot(file: Path, title: str, results: Sequence[Result], choice: Choice | None) -> None:
    """Draw the plot of `terminal_plot` into a file, with the number of callers at each point.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for setting, curve in _curves(results).items():
        x, y = [result.measured.throughput for result in curve], [_milliseconds(result) for result in curve]
        axes.plot(x, y, marker="o", markersize=4, linewidth=1, label=str(setting))
        for result, left, bottom in zip(curve, x, y, strict=True):
            axes.annotate(
                str(result.cell.concurrency), (left, bottom), xytext=(4, 4), textcoords="offset points", fontsize=7
            )
    if choice is not None:
        at = [choice.at.measured.throughput], [_milliseconds(choice.at)]
        axes.plot(*at, marker="*", markersize=16, linestyle="none", color="black", label="recommended", zorder=0)
    axes.set(title=title, xlabel="requests/s (labels: callers)", ylabel="p99 in ms", xscale="log", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.25)
    if axes.lines:
        axes.legend(fontsize=8)
    figure.savefig(file)


def _curves(results: Sequence[Result]) -> dict[Setting, list[Result]]:
    curves: dict[Setting, list[Result]] = {}
    for result in results:
        if result.measured.answered:
            curves.setdefault(result.cell.setting, []).append(result)
    return curves


def _milliseconds(result: Result) -> float:
    assert result.measured.p99 is not None
    return result.measured.p99 * 1e3


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _place(value: float, ends: tuple[float, float], size: int) -> int:
    low, high = ends
    share = math.log(value / low) / math.log(high / low) if high > low else 0.5
    return round(share * (size - 1))
