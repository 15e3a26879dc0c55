"""A hang-up does not end a server's process, however early the signal comes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support.programs import ROOT

# Hangs up at the first import of asyncio or of a further module of the server, and ends the process there.
HANGS_UP = """
import os, runpy, signal, sys

class HangUp:
    def find_spec(self, name, path, target=None):
        if name == "asyncio" or name.startswith("embedserve.server.") and name not in EARLY:
            os.kill(os.getpid(), signal.SIGHUP)
            print("outlived", name, flush=True)
            os._exit(0)

EARLY = ("embedserve.server.hangups", "embedserve.server.workers", "embedserve.server.workers.__main__")
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.meta_path.insert(0, HangUp())
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["embedserve", "models/"], 0),
        (["embedserve", "--port=1"], 0),
        (["embedserve"], 0),
        (["embedserve.server.workers", "3", "4"], 0),
        (["embedserve", "live"], -signal.SIGHUP),
        (["embedserve", "tune", "models/m"], -signal.SIGHUP),
    ],
)
def test_a_hang_up_during_the_imports_ends_a_command_and_no_server(arguments: list[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS_UP, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert done.stdout.startswith("outlived") is (status == 0)
