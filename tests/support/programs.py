"""Runs the project's programs as their users run them; for the tests of examples, demo and documentation."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from benchmarks.ports import free_port as free_port
from tests.support import warm

ROOT = Path(__file__).parents[2]
# What the processes that tests start find first: this repository with the client, and a quicker Keras.
PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "clients" / "python", Path(__file__).parent / "site")))


def start_python(
    arguments: Iterable[object],
    stdout: int,
    stderr: int,
    *,
    cwd: Path = ROOT,
    cold: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> warm.Process:
    """Start `python ARGUMENTS` on two descriptors: warm, or `cold` where the start itself is what is tested.

    `environment` is added to this process's.
    """
    return warm.start(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment},
        stdout=stdout,
        stderr=stderr,
        warm=not cold,
    )


def run_program(*arguments: object, timeout: float = 300, cwd: Path = ROOT, cold: bool = False) -> str:
    """Run `python ARGUMENTS` to its end and return what it printed; `cold` as in `start_python`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = start_python(arguments, out.fileno(), log.fileno(), cwd=cwd, cold=cold)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
            process.wait(60)
        log.seek(0)
        assert status == 0, log.read()[-3000:]
        out.seek(0)
        return out.read()


def fetch(url: str, body: object = None) -> tuple[int, Any]:
    """GET, or POST `body` as JSON; status and parsed answer, also of an error."""
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


@contextlib.contextmanager
def program(
    *arguments: object,
    until: Callable[[], bool],
    cwd: Path = ROOT,
    within: float = 90,
    cold: bool = False,
    **environment: str,
) -> Iterator[None]:
    """Run `python ARGUMENTS` while the body runs, which starts when `until()` is true; then end it with SIGTERM."""
    with tempfile.TemporaryFile("w+") as log, open(os.devnull, "w") as nowhere:
        files = nowhere.fileno(), log.fileno()
        process = start_python(arguments, *files, cwd=cwd, cold=cold, environment=environment)

        def said() -> str:
            log.seek(0)
            return log.read()[-3000:]

        try:
            wait_until(lambda: process.poll() is not None or until(), within)
            assert process.poll() is None, said()
            yield
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert "Traceback" not in said(), said()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def wait_until(condition: Callable[[], bool], within: float = 60, every: float = 0.05) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(every)


def answers(url: str) -> Callable[[], bool]:
    def up() -> bool:
        try:
            return fetch(url)[0] == 200
        except (OSError, ValueError):
            return False

    return up


def make_certificates(directory: Path) -> Path:
    """`ca.key`, `ca.crt`, and `server.key` with `server.crt`, signed by it, for localhost."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=test ca")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.crt", *signed)
    return directory
