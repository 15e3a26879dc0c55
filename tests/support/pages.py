"""What the pages of the documentation hold: code by language, files by name, commands; for tests that run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Recipe", "blocks"]


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language in a page or in a part of one."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class Recipe:
    """A section of a page, with the ports of the machine in place of those that it shows.

    A block that begins with a comment of one word is the file of that name.

    Args:
        page: The page.
        headings: One or more headings without their number signs.
        ports: What each port that the section shows is to be.
    """

    def __init__(self, page: Path, *headings: str, ports: Mapping[int, int] | None = None) -> None:
        self._text = "".join(_section(page.read_text(), heading) for heading in headings)
        for shown, given in (ports or {}).items():
            self._text = re.sub(rf"\b{shown}\b", str(given), self._text)

    def files(self) -> dict[str, str]:
        """The files of the section, by name."""
        found = re.findall(r"^```\w+\n# (\S+\.\w+)\n(.*?)^```", self._text, re.MULTILINE | re.DOTALL)
        return dict(found)

    def write(self, directory: Path) -> Path:
        """Put the files into a directory, which is returned."""
        for name, text in self.files().items():
            (directory / name).write_text(text)
        return directory

    def cells(self) -> list[str]:
        """The cells of a notebook, in order."""
        return [block for block in blocks(self._text, "python") if block.startswith("# cell ")]

    def commands(self) -> list[list[str]]:
        """What a shell is given, line by line."""
        return [shlex.split(line) for block in blocks(self._text, "sh") for line in block.splitlines()]


def _section(text: str, heading: str) -> str:
    """From a heading to the next one; number signs inside code blocks are comments."""
    taken: list[str] = []
    taking = in_code = False
    for line in text.splitlines(keepends=True):
        in_code ^= line.startswith("```")
        if not in_code and line.startswith("#"):
            taking = line.strip("# \n") == heading
        elif taking:
            taken.append(line)
    assert taken, f"the page has no section {heading!r}"
    return "".join(taken)
