"""The lines that ran are known of every process, however it ended."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.programs import PYTHONPATH, ROOT
from tests.support.site import line_coverage

pytestmark = pytest.mark.slow

Run = Callable[[str], int]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lines")
    line_coverage.prepare(directory)
    return directory


@pytest.fixture
def run(prepared: Path) -> Run:
    """Run a program; its exit status."""
    (prepared / line_coverage.RAN).write_bytes(bytes(len((prepared / line_coverage.RAN).read_bytes())))
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, line_coverage.DIRECTORY: str(prepared)}
    return lambda code: subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode


def ran(directory: Path, path: str) -> set[int]:
    """The lines of a module whose statements ran."""
    hits = (directory / line_coverage.RAN).read_bytes()
    statements = (directory / line_coverage.STATEMENTS).read_text().split("\n")
    return {int(one.partition(":")[2]) for one, hit in zip(statements, hits, strict=True) if hit and f"{path}:" in one}


def lines_of(path: str, function: str) -> set[int]:
    """The lines of a function's own statements, its docstring left out."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    (found,) = (node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function)
    return {statement.lineno for statement in found.body if not isinstance(statement, ast.Expr)}


URLS = "embedserve/store_url.py"
CALLED = "from embedserve.store_url import is_url; is_url(str())"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("; import os; os._exit(3)", 3),
        ("; import os; os.kill(os.getpid(), 9)", -9),
    ],
)
def test_what_ran_is_known_however_a_process_ends(run: Run, prepared: Path, end: str, status: int) -> None:
    inside = lines_of(URLS, "is_url")
    assert run(CALLED.partition(";")[0]) == 0
    assert not inside & ran(prepared, URLS)
    assert run(CALLED + end) == status
    assert min(inside) in ran(prepared, URLS)


def test_processes_of_processes_count_too(run: Run, prepared: Path) -> None:
    assert run(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CALLED!r}])") == 0
    assert ran(prepared, URLS)


def test_a_module_that_is_run_as_a_program_counts(run: Run, prepared: Path) -> None:
    assert (
        run("import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('embedserve', run_name='__main__')") == 0
    )
    assert ran(prepared, "embedserve/__main__.py")


def test_the_report_names_what_did_not_run_and_fails_below_the_floor(
    run: Run, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("import embedserve")
    assert line_coverage.report(prepared, 0.01) == 0
    assert line_coverage.report(prepared, 99.9) == 1
    *modules, last = capsys.readouterr().out.splitlines()
    assert last.endswith("the floor is 99.90 %")
    assert modules[0].startswith("   0.0 %  embedserve/")
