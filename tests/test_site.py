"""The documentation site builds without a warning, and its reference holds every public name."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import embedserve
from tests.support.programs import ROOT

pytestmark = pytest.mark.slow

PUBLIC_MODULES = ("rest", "grpc", "http", "testing", "ray")


def test_the_site_builds_and_the_reference_holds_each_public_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "architecture" / "index.html").read_text().count('class="mermaid"') == 3
    page = (tmp_path / "reference" / "index.html").read_text()
    headings = {anchor.rsplit(".", 1)[-1] for anchor in re.findall(r'<h3 id="embedserve\.([\w.]+)"', page)}
    assert {name for name in embedserve.__all__ if name != "__version__"} <= headings
    twin = page.partition('id="embedserve.registry.ModelRegistry.predict_sync"')[2]
    assert "max_stuck_runs" in page, "the rows of the options"
    assert "output_filter" in twin[: twin.index("<h4")], "the parameters of predict"


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_the_reference_names_what_a_public_module_offers(name: str) -> None:
    module = importlib.import_module(f"embedserve.{name}")
    page = (ROOT / "docs" / "reference.md").read_text()
    listed = set(re.findall(r"^::: [\w.]+\.(\w+)$", page, re.MULTILINE))
    # An application made at import, and a path, are values without a docstring.
    assert set(module.__all__) - {"app", "DEFAULT_METRICS_PATH"} <= listed


def test_the_index_of_decisions_lists_each_record() -> None:
    records = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (records / "index.md").read_text())
    assert listed == sorted(path.name for path in records.glob("[0-9]*.md"))
