"""A virtual environment for each peer, made when it is first asked for and kept in the suite's cache.

What a peer needs is one requirements file in `benchmarks/peers`, by ranges; a changed file is another environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.suite.workloads import cache_directory

PEERS = Path(__file__).parents[1] / "peers"
LIMIT = 1800


class NotInstallable(Exception):
    """A peer cannot be had here; the message is pip's."""


def python_of(requirements: str) -> Path:
    """The interpreter of an environment that holds what `peers/<requirements>` lists.

    Raises:
        NotInstallable: pip could not, in its words.
    """
    listed = (PEERS / requirements).read_bytes()
    digest = hashlib.sha256(listed + sys.version.encode()).hexdigest()[:12]
    directory = cache_directory() / f"{requirements.removesuffix('.txt')}-{digest}"
    python, done = directory / "bin" / "python", directory / "done"
    with alone(directory.with_suffix(".lock")):
        if not done.exists():
            print(f"Making an environment for {requirements.removesuffix('.txt')} in {directory}", file=sys.stderr)
            _make(directory)
            _pip(python, "install", "--quiet", "--requirement", str(PEERS / requirements))
            done.touch()
    return python


@contextlib.contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other run makes the same environment."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)


def _pip(python: Path, *arguments: str) -> None:
    """By the pip of the environment that runs this: some interpreters come without ensurepip."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise NotInstallable(f"pip did not end within {LIMIT} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise NotInstallable(" / ".join(errors)[:500])


def version_of(python: Path, package: str) -> str:
    """The installed version of a peer, for the report."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or "?"
