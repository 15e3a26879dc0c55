"""The commands on the pages for users of other servers are command lines that this server takes."""

from __future__ import annotations

import shlex

import pytest

from embedserve.server.flags import FLAGS, parse
from tests.support.pages import blocks
from tests.support.programs import ROOT

PAGES = sorted((ROOT / "docs").glob("from-*.md"))
COMMANDS = [
    (page.name, line.split("#")[0].strip())
    for page in PAGES
    for block in blocks(page.read_text(), "sh")
    for line in block.splitlines()
    if line.startswith(("python -m embedserve -", "python -m embedserve /", "tensorflow_model_server"))
]


def test_each_page_shows_a_command() -> None:
    assert {name for name, _ in COMMANDS} >= {page.name for page in PAGES if page.name != "from-triton.md"}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_understood_and_no_flag_of_it_is_ignored(page: str, command: str) -> None:
    words = shlex.split(command)
    flags = parse(words[1:] if words[0] == "tensorflow_model_server" else words[3:])
    assert not [name for name in flags.given if FLAGS[name].support == "ignored"]
