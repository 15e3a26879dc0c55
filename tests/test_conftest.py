"""The promises that hold for every test are kept: no blocking call passes, and no skip in CI."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockingError

import embedserve
from tests.support.programs import ROOT

pytestmark = pytest.mark.slow


async def test_a_blocking_call_of_ours_on_a_loop_is_an_error() -> None:
    ours = Path(embedserve.__file__).with_name("registry.py")
    code = compile("import time\n\ndef block():\n    time.sleep(0)\n", str(ours), "exec")
    names: dict[str, object] = {}
    exec(code, names)
    with pytest.raises(BlockingError):
        names["block"]()  # type: ignore[operator]


@pytest.mark.parametrize(("ci", "failed"), [("true", 1), ("", 0)])
def test_a_skip_is_a_failure_in_ci_only(ci: str, failed: int, tmp_path: Path) -> None:
    test = tmp_path / "test_skips.py"
    test.write_text("import pytest\n\ndef test_it():\n    pytest.skip('no such program')\n")
    arguments = ["-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull, str(test)]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | {"CI": ci}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == failed, done.stdout
    assert "no such program" in done.stdout or not failed


OF_TWO_KINDS = """
import subprocess, sys
import pytest

def test_light():
    pass

@pytest.mark.slow
def test_marked():
    subprocess.run([sys.executable, "-c", ""])

def test_unmarked():
    {unmarked}
"""


def run_tests(directory: Path, unmarked: str, *options: str) -> str:
    test = directory / "test_kinds.py"
    test.write_text(OF_TWO_KINDS.format(unmarked=unmarked))
    arguments = ["-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull, "-W", "ignore"]
    done = subprocess.run([sys.executable, *arguments, *options, test], cwd=ROOT, capture_output=True, text=True)
    return done.stdout


def test_a_quick_run_leaves_out_what_is_marked_slow(tmp_path: Path) -> None:
    assert "2 passed, 1 deselected" in run_tests(tmp_path, "pass", "--quick")
    assert "3 passed" in run_tests(tmp_path, "pass")


@pytest.mark.parametrize(
    "start", ["subprocess.run([sys.executable, '-c', ''])", "import os; os.fork() or os._exit(0); os.wait()"]
)
def test_a_test_that_starts_python_must_be_marked_slow(start: str, tmp_path: Path) -> None:
    said = run_tests(tmp_path, start)
    assert "test_unmarked starts Python and must be marked slow" in said
    assert "1 failed, 2 passed" in said


def test_a_module_that_is_marked_slow_is_not_imported_for_a_quick_run(tmp_path: Path) -> None:
    (tmp_path / "test_slow.py").write_text("import pytest\n\npytestmark = pytest.mark.slow\n\nraise ImportError\n")
    assert "2 passed, 1 deselected" in run_tests(tmp_path, "pass", "--quick", str(tmp_path))


def test_slow_modules_are_dealt_out_before_those_with_more_tests(tmp_path: Path) -> None:
    (tmp_path / "test_z_slow_one.py").write_text(
        "import pytest\n\npytestmark = pytest.mark.slow\n\ndef test_one():\n    pass\n"
    )
    said = run_tests(tmp_path, "pass", "-n", "1", "-v", str(tmp_path))
    assert "4 passed" in said
    ran = [line for line in said.splitlines() if "PASSED" in line]
    assert ["slow_one" in line for line in ran] == [True, False, False, False]


UNSTEADY = """
import pytest
from pathlib import Path

@pytest.mark.parametrize("name", ["a b", "c"])
def test_once(name):
    mark = Path(__file__).with_name(name)
    seen = mark.exists()
    mark.touch()
    assert seen

@pytest.mark.parametrize("number", range({always} + 1))
def test_never(number):
    assert number == {always}

def test_right():
    pass
"""


def run_twice(directory: Path, always: int, *options: str) -> subprocess.CompletedProcess[str]:
    test = directory / "test_unsteady.py"
    test.write_text(UNSTEADY.format(always=always))
    arguments = ["-m", "scripts.two_tries", "-n", "2", "-p", "no:cacheprovider", str(test), *options]
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.fixture
def inside() -> Iterator[Path]:
    """A directory in the repository, so that names of tests mean the same to both tries."""
    with tempfile.TemporaryDirectory(dir=ROOT / "tests", prefix=".unsteady-") as place:
        yield Path(place)


def test_a_test_that_passes_when_it_runs_again_alone_is_listed_and_fails_no_run(inside: Path) -> None:
    done = run_twice(inside, 0)
    assert "2 failed, 2 passed" in done.stdout
    unsteady = [line for line in done.stdout.splitlines() if line.startswith("UNSTEADY ")]
    assert [line.endswith(("test_once[a b]", "test_once[c]")) for line in unsteady] == [True, True], done.stdout
    assert done.returncode == 0


def test_a_test_that_fails_twice_fails_the_run(inside: Path) -> None:
    done = run_twice(inside, 1)
    assert done.stdout.count("UNSTEADY ") == 2
    assert done.stdout.count("FAILED TWICE ") == 1
    assert done.returncode == 1


@pytest.mark.parametrize(("always", "options"), [(4, ()), (0, ("-x",))])
def test_many_failures_and_runs_that_broke_off_are_not_tried_again(
    always: int, options: tuple[str, ...], inside: Path
) -> None:
    done = run_twice(inside, always, *options)
    assert done.returncode not in (0, None)
    assert "once more" not in done.stdout
