"""A record is one line of the log, whatever a client has put into it."""

from __future__ import annotations

import logging
import sys

import pytest

from embedserve.errors import one_line
from embedserve.server.log import _LogFormatter

FORGED = "a\nE 2026-01-01 forged\r\x1b[2Jb\u2028c\x85d\x00e"


def formatted(message: str, *args: object, error: Exception | None = None) -> str:
    info = None
    if error is not None:
        try:
            raise error
        except Exception:
            info = sys.exc_info()
    record = logging.LogRecord("embedserve", logging.ERROR, "/x/embedserve/rest/app.py", 1, message, args, info)
    formatter = _LogFormatter("%(asctime)s.%(micros)06d: %(letter)s %(place)s:%(lineno)d] %(message)s")
    return formatter.format(record)


@pytest.mark.parametrize("args", [(), (FORGED,)])
def test_a_record_is_one_line(args: tuple[str, ...]) -> None:
    text = formatted("%s" if args else FORGED, *args)
    assert len(text.splitlines()) == 1
    assert text.endswith(r"rest/app.py:1] a\nE 2026-01-01 forged\r\x1b[2Jb\u2028c\x85d\x00e")


def test_lines_of_a_traceback_are_indented() -> None:
    first, *rest = formatted("failed", error=ValueError(FORGED)).split("\n")
    assert first.endswith("failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in rest)
    assert len(rest) == len("\n".join(rest).splitlines())


def test_tabs_and_letters_of_all_languages_stay() -> None:
    assert one_line("größe\t→ 模型") == "größe\t→ 模型"
    assert one_line("\udcff") == r"\udcff"
