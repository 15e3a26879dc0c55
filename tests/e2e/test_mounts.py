"""Servers whose directory of models is on a FUSE mount that stops answering, at their start, later and at their end."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.clients import publish
from tests.e2e.conftest import Start
from tests.support.mounts import FuseMount, fuse
from tests.support.programs import answers, fetch, free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DRAIN_TIMEOUT, GRACE = 5.0, 10.0


@pytest.fixture
def mount(tmp_path: Path, saved: Path) -> Iterator[FuseMount]:
    with fuse(tmp_path / "fuse") as mount:
        publish(saved / "two", mount.backing / "two" / "1")
        yield mount


@pytest.mark.parametrize("workers", [0, 1])
def test_a_root_that_hangs_is_named_keeps_what_serves_and_ends_with_the_process(
    start: Start, mount: FuseMount, workers: int
) -> None:
    rest = free_port()
    url = f"http://127.0.0.1:{rest}"
    mount.stop_answering()
    process = start(
        mount.path,
        *(f"--port={free_port()}", f"--rest_api_port={rest}", f"--workers={workers}", "--rest_early"),
        f"--drain_timeout={DRAIN_TIMEOUT:g}",
        cold=True,
    )
    wait_until(answers(f"{url}/-/live"))
    wait_until(lambda: "has not come back" in fetch(f"{url}/-/ready")[1]["reason"])
    assert fetch(f"{url}/-/ready")[0] == 503
    mount.answer_again()
    process.wait_until_serving()
    assert fetch(f"{url}/v1/models/two:predict", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    mount.stop_answering()
    process.wait_for_log(f"{mount.path} is left alone")
    process.wait_for_log(f"{mount.path / 'two'} is left alone")
    assert fetch(f"{url}/v1/models/two:predict", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    assert fetch(f"{url}/-/ready")[0] == 200
    began = time.monotonic()
    try:
        process.terminate()
    except subprocess.TimeoutExpired:
        # The kernel lets nobody end a process whose last close of a file waits for the mount's daemon.
        assert held_by_the_kernel()
        mount.answer_again()
        assert process.ended() == 0
    else:
        assert time.monotonic() - began < DRAIN_TIMEOUT + GRACE


def held_by_the_kernel() -> bool:
    """Whether a thread of a server waits in the kernel, and no signal reaches it."""
    for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state = stat.read_text().rpartition(")")[2].split()[0]
            if state == "D" and b"embedserve" in (stat.parents[2] / "cmdline").read_bytes():
                return True
    return False


def test_a_server_that_waits_for_a_root_that_hangs_ends_when_it_is_told_to(start: Start, mount: FuseMount) -> None:
    mount.stop_answering()
    flags = (f"--port={free_port()}", "--workers=0", f"--drain_timeout={DRAIN_TIMEOUT:g}")
    process = start(mount.path, *flags, cold=True)
    process.wait_for_log("is left alone")
    began = time.monotonic()
    process.terminate()
    assert time.monotonic() - began < DRAIN_TIMEOUT + GRACE
