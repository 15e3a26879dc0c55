"""Real server processes: `python -m embedserve ...` on free ports, with what they print."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.saved_model.fixed_rows import sized
from tests.support.programs import make_certificates, start_python, wait_until
from tests.support.saved_models import endless, half_plus_two

Start = Callable[..., "ServerProcess"]


class ServerProcess:
    """One server; `log` is its stderr so far, `out` its stdout once it has ended. `cold` as in `start_python`."""

    def __init__(
        self, *arguments: object, cwd: Path, module: str = "embedserve", cold: bool = False, **environment: str
    ) -> None:
        out, their_out = os.pipe()
        log, their_log = os.pipe()
        self._out, self._log = open(out), open(log)  # noqa: SIM115
        try:
            command = ("-m", module, *arguments)
            self._process = start_python(command, their_out, their_log, cwd=cwd, cold=cold, environment=environment)
        finally:
            os.close(their_out)
            os.close(their_log)
        self._lines: list[str] = []
        self.out = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._lines.extend(iter(self._log.readline, ""))

    @property
    def log(self) -> str:
        return "".join(self._lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for_log(self, text: str, within: float = 60) -> None:
        """Return when the log has `text`; fail when the process ends without having said it."""
        wait_until(lambda: text in self.log or not self.running, within)
        if text not in self.log:
            self._reader.join(10)
        assert text in self.log, self.log[-3000:]

    def wait_until_serving(self) -> None:
        self.wait_for_log("Entering the event loop ...")

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._process.send_signal(number)

    def ended(self, within: float = 60) -> int:
        """Wait for the end and return the exit status."""
        status = self._process.wait(within)
        self._reader.join(10)
        with contextlib.suppress(ValueError):  # Read before.
            self.out = self._out.read()
        return status

    def terminate(self) -> None:
        """SIGTERM, which must end it with status 0 and without a traceback."""
        self.send()
        assert self.ended() == 0, self.log[-3000:]
        assert "Traceback" not in self.log, self.log[-3000:]

    def close(self) -> None:
        if self.running:
            self._process.kill()
        self._process.wait(30)
        self._reader.join(10)
        for stream in (self._out, self._log):
            stream.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server in `tmp_path`; what still runs at the end is killed."""
    started: list[ServerProcess] = []

    def start(*arguments: object, cold: bool = False, **environment: str) -> ServerProcess:
        started.append(ServerProcess(*arguments, cwd=tmp_path, cold=cold, **environment))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version directories to copy from: `two` (x/2 + 2), `three` (x/2 + 3), `endless`, `sized` (declares 4 rows)."""
    directory = tmp_path_factory.mktemp("saved")
    half_plus_two(directory / "two")
    half_plus_two(directory / "three", 0.5, 3.0)
    endless(directory / "endless")
    sized(directory / "sized")
    return directory


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca.crt`, and `server.key` with `server.crt` for localhost."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


ABORTS_ON_DEMAND = """
import ctypes, os, sys, threading, time

def runs_under_way():
    from embedserve.server.workers.hands import NotedServable
    frames = list(sys._current_frames().values())
    return sum(any(f.f_code is NotedServable.run.__code__ for f in up(frame)) for frame in frames)

def up(frame):
    while frame is not None:
        yield frame
        frame = frame.f_back

def watch(order):
    while not os.path.exists(order):
        time.sleep(0.01)
    runs = int(open(order).read())
    while runs_under_way() < runs:
        time.sleep(0.01)
    os.unlink(order)
    ctypes.CDLL(None).abort()

threading.Thread(target=watch, args=[os.environ["ABORT_ORDER"]], daemon=True).start()
"""
"""A module whose thread aborts its worker, as a kernel does, when as many runs are under way as `$ABORT_ORDER` says."""
