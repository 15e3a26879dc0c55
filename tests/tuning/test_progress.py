"""A terminal sees how far the sweep is; a file or a pipe sees nothing."""

from __future__ import annotations

import io
import sys

import pytest

from embedserve.tuning.command import ProgressBar
from embedserve.tuning.plan import ALONE, Cell, Setting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    setting = Setting(2, ALONE)
    with ProgressBar() as bar:
        bar.planned(3)
        bar.loading(setting)
        bar.measuring(Cell(setting, 1))
        bar.measured()
        bar.measuring(Cell(setting, 16))
    return stderr.getvalue()


def test_a_terminal_is_told_the_cell_and_how_many_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(Terminal(), monkeypatch)
    assert "loading for 2 run threads, no batching" in text
    assert "2 run threads, no batching, 16 callers" in text
    assert "1/3" in text


def test_what_is_no_terminal_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(io.StringIO(), monkeypatch) == ""
