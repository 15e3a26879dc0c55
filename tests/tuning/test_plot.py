"""The plots show each setting and what is recommended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from embedserve.errors import ConfigError
from embedserve.tuning.plan import ALONE, Setting
from embedserve.tuning.plot import check_plot_file, terminal_plot, write_plot
from embedserve.tuning.recommendation import recommend
from embedserve.tuning.report import table
from tests.tuning.results import result

RESULTS = [
    result(Setting(1, ALONE), 1, 10, 0.100),
    result(Setting(1, ALONE), 8, 20, 1.0),
    result(Setting(1, 8), 1, 10, 0.100),
    result(Setting(1, 8), 8, 1000, 0.010, {}),
    result(Setting(2, 8), 1, 0, 0, {"UNAVAILABLE: full": 7}),
]


def test_the_text_plot_has_a_letter_for_each_setting_and_a_star() -> None:
    lines = terminal_plot(RESULTS, recommend(RESULTS, None)).splitlines()
    assert [line.strip() for line in lines[-3:]] == [
        "a  1 run thread, no batching",
        "b  1 run thread, batches up to 8 rows",
        "*  recommended",
    ]
    assert lines[1].startswith("     1,000 |"), "the slowest stands highest"
    assert lines[1].index("a") < lines[16].index("*"), "more requests stand further right"
    assert lines[16].startswith("        10 |")
    assert lines[16].rstrip().endswith("*")
    assert lines[18].split() == ["10", "requests/s", "1,000"]


def test_one_point_or_none_can_be_shown() -> None:
    assert "a  1 run thread" in terminal_plot(RESULTS[:1], None)
    assert terminal_plot(RESULTS[4:], None) == ""
    assert terminal_plot([], None) == ""


def test_more_settings_than_letters_can_be_shown() -> None:
    many = [result(Setting(1, limit), 1, limit, 0.1) for limit in range(1, 60)]
    assert "#  1 run thread, batches up to 59 rows" in terminal_plot(many, None)


def test_the_table_has_every_cell_and_its_failures() -> None:
    lines = table(RESULTS).splitlines()
    assert len(lines) == 2 + len(RESULTS)
    assert [cell.strip() for cell in lines[5].strip("|").split("|")] == [
        *("1", "8", "8", "1000", "2.50", "5.00", "10.00", "0")
    ]
    assert [cell.strip() for cell in lines[6].strip("|").split("|")] == ["2", "8", "1", "0.0", "-", "-", "-", "7"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".png", ".svg"])
def test_a_picture_is_written(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"plot{kind}"
    check_plot_file(file)
    write_plot(file, "m", RESULTS, recommend(RESULTS, None))
    head = file.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if kind == ".png" else b"<?xml" in head


def test_a_picture_without_matplotlib_or_of_no_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"a plot is written as \.png, \.svg or \.pdf"):
        check_plot_file(Path("plot.txt"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"needs matplotlib: pip install embedserve\[plot\]"):
        check_plot_file(Path("plot.png"))
