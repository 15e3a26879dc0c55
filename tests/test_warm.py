"""A warm start is a start: what a program sees, and what its starter sees of it; and when it is a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.programs import PYTHONPATH, ROOT, run_program, start_python, wait_until

pytestmark = pytest.mark.slow

SEEN = """
import json, os, sys
file = globals().get("__file__")
print(json.dumps([__name__, sys.argv[1:], os.getcwd(), os.environ["GIVEN"], sys.path[0], file, sys.stdin.read()]))
print("tensorflow" in sys.modules, "embedserve" in sys.modules, file=sys.stderr)
raise SystemExit(7)
"""


@pytest.mark.parametrize("kind", ["-c", "-m", "script"])
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_a_program_sees_the_same_warm_and_cold(tmp_path: Path, kind: str, cold: bool) -> None:
    (tmp_path / "seen.py").write_text(SEEN)
    words = {"-c": ("-c", SEEN), "-m": ("-m", "seen"), "script": ("seen.py",)}[kind]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        files = out.fileno(), log.fileno()
        command = (*words, "a b", "-c")
        process = start_python(command, *files, cwd=tmp_path, cold=cold, environment={"GIVEN": "é\n"})
        assert process.wait(60) == 7
        assert process.poll() == 7
        out.seek(0)
        log.seek(0)
        place, file = ("", None) if kind == "-c" else (str(tmp_path), str(tmp_path / "seen.py"))
        assert json.loads(out.read()) == ["__main__", ["a b", "-c"], str(tmp_path), "é\n", place, file, ""]
        assert log.read() == f"{not cold} False\n"


@pytest.mark.parametrize(("code", "said"), [("import sys; sys.exit('alas')", "alas"), ("1 / 0", "ZeroDivisionError")])
def test_a_program_that_fails_says_why(code: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        run_program("-c", code)


def test_the_interpreter_ends_as_ever() -> None:
    thread = "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()"
    code = f"import atexit, threading, time; atexit.register(print, 'at exit'); {thread}"
    assert run_program("-c", code) == "thread\nat exit\n"


def test_tensorflow_runs_and_random_numbers_differ() -> None:
    code = (
        "import random, numpy, tensorflow as tf; print(int(tf.constant(1) + 1), random.random(), numpy.random.rand())"
    )
    first, second = (run_program("-c", code).split() for _ in range(2))
    assert first[0] == second[0] == "2"
    assert not {*first[1:]} & {*second[1:]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_ends_a_program_and_is_told(tmp_path: Path, number: signal.Signals) -> None:
    code = "import pathlib, signal, time; pathlib.Path('up').touch(); signal.pause()"
    process = start_python(["-c", code], 1, 2, cwd=tmp_path)
    wait_until((tmp_path / "up").exists)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(number)
    assert process.wait(60) == -number


NESTED = """
import asyncio, os, subprocess, sys, uvloop

warm = "print('tensorflow' in sys.modules)"
child = f"import os, sys; {warm}; print(os.getppid(), os.getsid(0) == os.getpid(), sys.stdin.read())"
done = subprocess.run([sys.executable, "-c", child], input="hi", capture_output=True, text=True, start_new_session=True)
assert (done.stdout, done.returncode) == (f"True\\n{os.getpid()} True hi\\n", 0), done

async def main():
    reading, writing = os.pipe()
    code = f"import os, sys; print(os.write({writing}, b'x')); sys.stdout.flush(); os.abort()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, pass_fds=[writing])
    os.close(writing)
    assert (await process.wait(), os.read(reading, 9), os.read(reading, 9)) == (-6, b"x", b"")
    assert process.returncode == -6

uvloop.run(main())
real = subprocess.run([sys.executable, "-S", "-c", f"import sys; {warm}"], capture_output=True)
assert real.stdout == b"False\\n"
"""


POOL = """
from multiprocessing import get_context

def double(number):
    return 2 * number

if __name__ == "__main__":
    with get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1, 2]))
"""


@pytest.mark.parametrize("words", [["pool.py"], ["-m", "pool"]])
def test_a_program_has_pools_of_processes(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    assert run_program(*words, cwd=tmp_path) == "[2, 4]\n"


def test_processes_of_a_program_are_its_children_and_warm_too() -> None:
    assert run_program("-c", NESTED) == "1\n"


@pytest.mark.parametrize("variable", ["TF_CPP_VMODULE", "PYTHONWARNINGS", "OMP_NUM_THREADS"])
def test_a_variable_that_is_read_at_the_start_takes_a_real_start(variable: str) -> None:
    with tempfile.TemporaryFile("w+") as out:
        code = "import os, sys; print('tensorflow' in sys.modules, os.environ[sys.argv[1]])"
        process = start_python(["-c", code, variable], out.fileno(), 2, environment={variable: "1"})
        assert isinstance(process, subprocess.Popen)
        assert process.wait(60) == 0
        out.seek(0)
        assert out.read() == "False 1\n"


LEFT = """
import os, sys, time
from pathlib import Path
from tests.support import warm
process = warm.start(["-c", "import time; time.sleep(600)"], cwd=Path.cwd(), env=os.environ, stdout=1, stderr=2)
print(process.pid, flush=True)
time.sleep(600)
"""


def test_nothing_is_left_of_a_starter_that_is_killed() -> None:
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", LEFT]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        started = int(starter.stdout.readline())
        os.kill(started, 0)
        starter.kill()
    wait_until(lambda: not Path(f"/proc/{started}").exists())


def test_nothing_is_left_of_a_run_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(warm.SOCKET)
    with warm.offered(PYTHONPATH):
        process = start_python(["-c", "import time; time.sleep(600)"], 1, 2)
        assert isinstance(process, warm.WarmProcess)
    assert process.wait(0) == -signal.SIGKILL
    assert warm.SOCKET not in os.environ
