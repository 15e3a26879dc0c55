"""Real mounts for tests: tmpfs, and a FUSE file system that is slow, hangs, changes inodes or goes away when told to.

`python -m tests.support.mounts BACKING CONTROL MOUNT_POINT` is the FUSE daemon, which `fuse` starts. `CONTROL` is a
JSON file that the daemon reads before each call.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import ROOT, wait_until


class FuseMount:
    """A mounted FUSE file system.

    Attributes:
        path: The mount point.
        backing: The directory that is shown there.
    """

    def __init__(self, directory: Path) -> None:
        self.path, self.backing = directory / "mount", directory / "backing"
        self._control = directory / "control.json"
        self.path.mkdir(parents=True)
        self.backing.mkdir()
        self._daemon: subprocess.Popen[bytes] | None = None
        self.set()

    def set(self, delay: float = 0.0, hang: tuple[str, ...] = (), inodes: bool = False) -> None:
        """Behave like this from the next call on.

        Args:
            delay: Seconds that each look at a file or directory takes.
            hang: Paths below the mount at and below which no call comes back while they are listed; `/` is the mount
                point itself, and nothing else.
            inodes: Whether a file has another inode number each time.
        """
        new = self._control.with_suffix(".new")
        new.write_text(json.dumps({"delay": delay, "hang": hang, "inodes": inodes}))
        new.replace(self._control)

    def mount(self) -> None:
        """Mount it, again after `go_away` or `die`."""
        self._daemon = subprocess.Popen(
            [sys.executable, "-m", "tests.support.mounts", self.backing, self._control, self.path],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        daemon = self._daemon
        wait_until(lambda: os.path.ismount(self.path) or daemon.poll() is not None)
        assert daemon.poll() is None, "the FUSE daemon has ended"

    def stop_answering(self) -> None:
        """As a daemon that is stuck: no call comes back, but a killed process can end."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGSTOP)

    def answer_again(self) -> None:
        """Go on after `stop_answering`."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGCONT)

    def go_away(self) -> None:
        """Leave an empty mount point behind."""
        subprocess.run(["umount", "-l", self.path], check=True, capture_output=True)

    def die(self) -> None:
        """End the daemon, so that each call fails: the transport endpoint is not connected."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def close(self) -> None:
        """Release whoever waits, and unmount."""
        self.die()
        while subprocess.run(["umount", "-l", self.path], capture_output=True).returncode == 0:
            pass


def can_mount_fuse() -> str | None:
    """Why this machine mounts no FUSE file system, or None."""
    if os.geteuid() != 0:
        return "only root can mount"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: the library that it loads is not installed.
        return f"mfusepy: {error}"
    return None


@contextlib.contextmanager
def fuse(directory: Path) -> Iterator[FuseMount]:
    """A FUSE file system at `directory`/mount; skips where the machine cannot have one."""
    reason = can_mount_fuse()
    if reason is not None:
        pytest.skip(f"no FUSE file system can be mounted here: {reason}")
    mount = FuseMount(directory)
    try:
        mount.mount()
        yield mount
    finally:
        mount.close()


@contextlib.contextmanager
def tmpfs(path: Path) -> Iterator[None]:
    """A tmpfs at `path` while the context lasts, unless it is unmounted before; skips where the machine cannot."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("no tmpfs can be mounted here: only root can")
    done = subprocess.run(["mount", "-t", "tmpfs", "tests", path], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], capture_output=True)


def _end_with(parent: int) -> None:
    """A process that is killed while a call hangs becomes no more than a zombie until the daemon ends."""
    with contextlib.suppress(OSError):
        while " Z " not in Path(f"/proc/{parent}/stat").read_text() and os.getppid() == parent:
            time.sleep(0.5)
    os._exit(1)


# FUSE_CAP_READDIRPLUS and FUSE_CAP_READDIRPLUS_AUTO of libfuse.
_READDIRPLUS = 1 << 13 | 1 << 14


def _serve(backing: str, control: str, mount_point: str) -> None:
    import mfusepy

    numbers = itertools.count(1_000_000)

    def settings() -> dict[str, Any]:
        with open(control, "rb") as file:
            read: dict[str, Any] = json.load(file)
            return read

    def wait(path: str) -> dict[str, Any]:
        while any(path == each or (each != "/" and path.startswith(f"{each}/")) for each in settings()["hang"]):
            time.sleep(0.02)
        now = settings()
        time.sleep(now["delay"])
        return now

    class Shown(mfusepy.Operations):
        use_ns = True

        def init_with_config(self, connection: Any, config: Any) -> None:
            """A listing must not look at each entry, which may hang."""
            connection.want &= ~_READDIRPLUS

        def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
            now = wait(path)
            try:
                status = os.lstat(backing + path)
            except OSError as error:
                raise mfusepy.FuseOSError(error.errno or errno.EIO) from None
            kept = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_ino")
            shown = {name: getattr(status, name) for name in kept}
            shown |= {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "amc"}
            return shown | ({"st_ino": next(numbers)} if now["inodes"] else {})

        def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
            wait(path)
            names = [".", "..", *os.listdir(backing + path)]
            statuses = [(name, os.lstat(f"{backing}{path}/{name}")) for name in names]
            return [(name, {"st_mode": status.st_mode, "st_ino": status.st_ino}, 0) for name, status in statuses]

        def readlink(self, path: str) -> str:
            return os.readlink(backing + path)

        def open(self, path: str, flags: int) -> int:
            wait(path)
            return os.open(backing + path, os.O_RDONLY)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    options = {"use_ino": True, "attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0}
    mfusepy.FUSE(Shown(), mount_point, foreground=True, nothreads=False, **options)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
