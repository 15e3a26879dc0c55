"""`.ci/fresh` keeps what this machine has gathered from the tests that CI runs."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from tests.support.programs import ROOT

FRESH = ROOT / ".ci" / "fresh"


def fresh(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FRESH, "bash", "-c", script], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_a_fresh_command_sees_neither_home_nor_temporary_files_nor_variables(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "left").touch()
    with tempfile.NamedTemporaryFile(prefix="left-") as left:
        found = fresh('ls -A ~ "${TMPDIR:-/tmp}"; echo "[${LEFT:-}]"', HOME=str(home), LEFT="over")
        assert found.returncode == 0, found.stderr
        assert "left" not in found.stdout
        assert "[]" in found.stdout
        assert Path(left.name).exists()


def test_a_fresh_command_runs_in_the_repository_and_its_status_is_passed_on() -> None:
    found = fresh("pwd; exit 7")
    assert (found.stdout.strip(), found.returncode) == (str(ROOT), 7)


def test_nothing_of_a_fresh_machine_is_left_behind() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:  # `/tmp` is another one in there.
        assert fresh("touch ~/some /tmp/some", FRESH_PLACE=place).returncode == 0
        assert list(Path(place).iterdir()) == []
