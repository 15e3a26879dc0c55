"""The measure of the package's structure counts what it says, and finds no import cycle in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.structure import cycles, import_graph, levels, module_names, single_importers, vague
from tests.support.programs import ROOT


def test_cycles_levels_and_single_importers_count_each_import() -> None:
    sources = {
        "p": "",
        "p.top": "from p import middle\ndef late():\n    import p.low",
        "p.middle": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.ring import Ring",
        "p.ring": "from p.middle import Middle",
        "p.low": "",
    }
    graph = import_graph({name: ast.parse(source) for name, source in sources.items()})
    assert cycles(graph) == [frozenset({"p.middle", "p.ring"})]
    assert levels(graph) == 2
    assert single_importers(graph) == 2, "low and ring; top and ring both import middle"


def test_the_package_has_no_import_cycle() -> None:
    paths = module_names(ROOT / "embedserve")
    assert not cycles(import_graph({name: ast.parse(path.read_text()) for name, path in paths.items()}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A queue holds requests.", "0.0 of 4 words"),
        ("It holds what waits `it` ok.", "33.3 of 6 words"),
        ("One\n```\nit it it\n```\n", "50.0 of 2 words"),
    ],
)
def test_vague_pronouns_are_counted_outside_code(text: str, expected: str) -> None:
    assert vague([text]) == expected


def test_the_measured_checkout_may_be_another_one(tmp_path: Path) -> None:
    (tmp_path / "embedserve").mkdir()
    (tmp_path / "embedserve" / "__init__.py").write_text("")
    assert list(module_names(tmp_path / "embedserve")) == ["embedserve"]
