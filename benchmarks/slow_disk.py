"""The longest stall of the event loop while a slow tree of versions is watched and looked at.

`python -m benchmarks.slow_disk --versions 200 --milliseconds 2`. The tree is on a FUSE file system that takes so long
for each look at a file or directory; where none can be mounted, `os.stat` does. FUSE mounts are polled; `--watch` has
file events set on it all the same, which walks the tree.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from embedserve import AllVersions, ModelConfig
from embedserve.config import RegistryOptions
from embedserve.lifecycle import watch
from embedserve.lifecycle.source import FileSystemSource, VersionDirectory
from tests.support.mounts import can_mount_fuse, fuse


class Listener:
    """Knows how many versions are aspired."""

    def __init__(self) -> None:
        self.count = 0

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        """Not counted."""

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory]) -> None:
        """Count."""
        self.count = len(aspired)

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        """Not counted."""

    def on_trouble(self, name: str, trouble: str | None) -> None:
        """Not counted."""


@contextlib.asynccontextmanager
async def stalls() -> AsyncIterator[Callable[[], float]]:
    """The longest time between two turns of the loop so far, in seconds, while another task is always ready."""
    longest, running = 0.0, True

    async def turn() -> None:
        nonlocal longest
        last = time.perf_counter()
        while running:
            await asyncio.sleep(0.0005)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    turning = asyncio.create_task(turn())
    yield lambda: longest
    running = False
    await turning


@contextlib.contextmanager
def slow_tree(versions: int, seconds: float) -> Iterator[tuple[Path, str]]:
    """A model with so many versions on a disk that is as slow, and what makes it slow."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        if can_mount_fuse() is None:
            mount = stack.enter_context(fuse(Path(directory)))
            fill(mount.backing / "m", versions)
            mount.set(delay=seconds)
            yield mount.path / "m", "FUSE"
            mount.set()
        else:
            fill(Path(directory) / "m", versions)
            stack.enter_context(slow_stat(seconds))
            yield Path(directory) / "m", "a patched os.stat"


def fill(path: Path, versions: int) -> None:
    """Versions as a copy leaves them that is under way: whole in number, and not worth a load."""
    for number in range(1, versions + 1):
        (path / str(number) / "variables").mkdir(parents=True)
        for name in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
            (path / str(number) / name).write_bytes(b"x" * 100)


@contextlib.contextmanager
def slow_stat(seconds: float) -> Iterator[None]:
    """Have `os.stat` take so long."""
    real = os.stat

    def stat(*args: Any, **options: Any) -> os.stat_result:
        time.sleep(seconds)
        return real(*args, **options)

    os.stat = stat
    try:
        yield
    finally:
        os.stat = real


async def measure(path: Path) -> None:
    """Follow the tree, and print how long each step takes and the longest stall meanwhile."""
    import tensorflow  # noqa: F401  # Its import stalls any thread; a server has done it before it looks at a model.

    async with stalls() as longest:
        await asyncio.sleep(1.0)
        print(f"idle            {1.0:7.2f} s   longest stall {1000 * longest():6.1f} ms")
    source = FileSystemSource(RegistryOptions(poll_interval=1.0), None, Listener())
    config = ModelConfig(name="m", base_path=path, version_policy=AllVersions())
    source.set_models([config])

    async def arm() -> None:
        await source.start()
        await source.scan_now()

    async def reload() -> None:
        source.set_models([config.model_copy(update={"version_policy": AllVersions(), "version_labels": {"a": 1}})])
        await source.scan_now()

    async def rearm() -> None:
        """The directory is made anew, so that it needs another watch."""
        backing = path.parent.parent / "backing" / "m" if path.parent.name == "mount" else path
        await asyncio.to_thread(shutil.move, backing, backing.with_name("old"))
        await source.scan_now()
        await asyncio.to_thread(shutil.copytree, backing.with_name("old"), backing)
        await source.scan_now()

    steps: dict[str, Callable[[], Awaitable[None]]] = {
        "start, arm": arm,
        "look again": source.scan_now,
        "reload": reload,
        "re-arm": rearm,
        "leave": source.aclose,
    }
    for name, step in steps.items():
        async with stalls() as longest:
            began = time.perf_counter()
            await step()
            seconds = time.perf_counter() - began
            print(f"{name:15} {seconds:7.2f} s   longest stall {1000 * longest():6.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=200)
    parser.add_argument("--milliseconds", type=float, default=2.0)
    parser.add_argument("--watch", action="store_true", help="set file events also where polling is better")
    arguments = parser.parse_args()
    if arguments.watch:
        watch._POLLED = re.compile("none of all")
    with slow_tree(arguments.versions, arguments.milliseconds / 1000) as (path, how):
        print(f"{arguments.versions} versions, {arguments.milliseconds:g} ms per look, by {how}")
        asyncio.run(measure(path))


if __name__ == "__main__":
    main()
