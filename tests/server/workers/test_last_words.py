"""A process that a thread aborts says its last words on its loop, and ends by the same signal whatever it says."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, ctypes, sys, threading
from embedserve.server.workers import worker

worker.ABORT_PATIENCE = 0.2

async def speak():
    print("last words", flush=True)
    if sys.argv[1] == "hangs":
        await asyncio.sleep(60)
    if sys.argv[1] == "fails":
        raise RuntimeError("a bug")

async def main():
    worker.answer_before_an_abort(speak)
    end = ctypes.CDLL(None).abort
    if sys.argv[1] == "loop":
        end()
    threading.Thread(target=end).start()
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"), [("speaks", "last words\n"), ("hangs", "last words\n"), ("fails", "last words\n"), ("loop", "")]
)
def test_the_loop_speaks_before_the_end_unless_it_is_what_ends(words: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, words], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == (said, -signal.SIGABRT), done.stderr
