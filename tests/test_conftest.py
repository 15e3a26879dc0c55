"""The promises that hold for every test are kept: no blocking call passes, and no skip in CI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from blockbuster import BlockingError

import embedserve
from tests.support.programs import ROOT


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
