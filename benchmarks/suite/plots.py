"""One SVG per workload: every server's requests per second beside embedserve's, on a logarithmic axis.

Written by hand, for the pictures are bars and a few words, and small files that a diff can show. Knows no server but
by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from benchmarks.suite.bars import Samples, ours, rate_ratio
from benchmarks.suite.contenders import CONTENDERS
from benchmarks.suite.measure import Cell
from benchmarks.suite.report import PICTURE, TITLES, groups, times

WIDTH, LEFT, RIGHT = 720, 170, 60
BAR, GAP, HEAD = 11, 9, 46
LOWEST, HIGHEST = 0.01, 10.0
MARKS = (0.01, 0.1, 1.0, 10.0)
SHADES = ("#9ecae1", "#4292c6", "#08519c")
CEILINGS = ("#d9d9d9", "#969696", "#525252")


def write(samples: Samples, directory: Path) -> list[Path]:
    """Write `suite-<workload>.svg` for each workload that embedserve was measured in."""
    written = []
    for workload in dict.fromkeys(cell.workload for cell in samples):
        panels = [panel for panel in _panels(samples, workload) if panel]
        if panels:
            written.append(directory / PICTURE.format(workload))
            written[-1].write_text(_document(workload, panels))
    return written


Panel = tuple[str, list[int], list[tuple[str, list[float]]]]


def _panels(samples: Samples, workload: str) -> Iterator[Panel]:
    """Protocol, concurrencies, and each server's rate over embedserve's, for each protocol of a server."""
    for name, protocol, concurrency, servers in groups(samples):
        base = ours(Cell(workload, protocol, 1, "")).server
        if name != workload or protocol == "in-process" or base not in servers:
            continue
        rows = [
            (
                server,
                [
                    rate_ratio(samples, Cell(workload, protocol, count, server), Cell(workload, protocol, count, base))
                    for count in concurrency
                ],
            )
            for server in servers
            if server != base
        ]
        yield TITLES[protocol], concurrency, rows


def _document(workload: str, panels: Sequence[Panel]) -> str:
    parts: list[str] = []
    top = 28.0
    for panel in panels:
        parts += _panel(panel, top)
        top += _height(panel)
    title = f"{workload}: requests per second; the standalone server = 1"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" width="{WIDTH}"'
            ' font-family="sans-serif" font-size="12" fill="#222">',
            f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>',
            _text(12, 20, title, "font-size='14' font-weight='bold'"),
            *parts,
            "</svg>\n",
        ]
    )


def _height(panel: Panel) -> float:
    rows = panel[2]
    return HEAD + sum(_bars(ratios) * BAR + GAP for _, ratios in rows) + 16


def _bars(ratios: Sequence[float]) -> int:
    return sum(not math.isnan(ratio) for ratio in ratios)


def _panel(panel: Panel, top: float) -> Iterator[str]:
    protocol, concurrency, rows = panel
    bottom = top + _height(panel) - 16
    yield _text(12, top + 18, protocol, "font-weight='bold'")
    for i, count in enumerate(concurrency):
        x = LEFT + 90.0 * i
        yield f'<rect x="{x:.0f}" y="{top + 9:.1f}" width="10" height="10" fill="{SHADES[-len(concurrency) :][i]}"/>'
        yield _text(x + 15, top + 18, f"{count} at once")
    for mark in MARKS:
        x = _x(mark)
        colour = "#c0392b" if mark == 1 else "#ddd"
        yield f'<path d="M{x:.1f} {top + 38:.1f}V{bottom:.1f}" stroke="{colour}"/>'
        yield _text(x, top + 34, f"{mark:g}", "text-anchor='middle' fill='#777' font-size='10'")
    y = top + HEAD
    for server, ratios in rows:
        shades = CEILINGS if CONTENDERS[server].group in ("noop", "tensorflow") else SHADES
        count = _bars(ratios)
        yield _text(LEFT - 8, y + count * BAR / 2 + 4, server, "text-anchor='end'")
        for ratio, shade in zip(ratios, shades[-len(ratios) :], strict=True):
            if not math.isnan(ratio):
                end = _x(ratio)
                yield f'<rect x="{LEFT}" y="{y:.1f}" width="{end - LEFT:.1f}" height="{BAR - 2}" fill="{shade}"/>'
                yield _text(end + 4, y + 8, times(ratio), "font-size='9' fill='#555'")
                y += BAR
        y += GAP


def _x(ratio: float) -> float:
    """The place of a ratio on the axis; what is off it stands at its end."""
    share = math.log(min(max(ratio, LOWEST), HIGHEST) / LOWEST) / math.log(HIGHEST / LOWEST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _text(x: float, y: float, text: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
