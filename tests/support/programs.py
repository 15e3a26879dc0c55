"""Runs the project's programs as their users run them; for the tests of examples, demo and documentation."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ports import free_port as free_port

ROOT = Path(__file__).parents[2]
# What the processes that tests start find first: this repository, and a quicker Keras.
PYTHONPATH = os.pathsep.join(map(str, (ROOT, Path(__file__).parent / "site")))


def run_program(*arguments: object, timeout: float = 300, cwd: Path = ROOT) -> str:
    """Run `python ARGUMENTS` to its end and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


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
    *arguments: object, until: Callable[[], bool], cwd: Path = ROOT, within: float = 90, **environment: str
) -> Iterator[None]:
    """Run `python ARGUMENTS` while the body runs, which starts when `until()` is true; then end it with SIGTERM."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": PYTHONPATH} | environment,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )

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
