"""Runs pytest, and then the few tests that failed once more, each alone on the machine.

Hundreds of tests wait for real servers, kernels and time-outs while four processes share the machine. A test that
fails there and passes alone is listed as unsteady; a test that fails twice fails the run. Many failures are not tried
again.

usage: python -m scripts.two_tries [ARGUMENT OF PYTEST ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# How many failed tests are few: more have one cause, which a second try would only hide.
FEW = 5
# Names the file that `tests/conftest.py` writes the failed tests of a finished run to.
FAILED_TESTS = "FAILED_TESTS"


def main(arguments: Sequence[str]) -> int:
    """Return pytest's exit status: that of the second try where there was one."""
    with tempfile.TemporaryDirectory() as place:
        failed = Path(place) / "failed"
        status = _pytest(arguments, failed)
        names = failed.read_text().splitlines() if status == 1 and failed.exists() else []
        if not 0 < len(names) <= FEW:
            return status
        print(f"\n{len(names)} failed; once more, alone:", flush=True)
        again = Path(place) / "again"
        # A line per name, since names of parametrised tests have blanks.
        status = _pytest(["-n", "0", "--durations=0", f"@{failed}"], again)
        steady = set(again.read_text().splitlines()) if again.exists() else set()
    for name in names:
        print(f"FAILED TWICE {name}" if name in steady or status not in (0, 1) else f"UNSTEADY {name}", flush=True)
    return status


def _pytest(arguments: Sequence[str], failed: Path) -> int:
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.run(command, env=os.environ | {FAILED_TESTS: str(failed)}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
