"""Threads are chosen by the CPUs a process may use: those it may run on, as far as its control group pays for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedserve.concurrency.cpus import usable_cpus
from embedserve.config import RegistryOptions

PRESENT = 64


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(PRESENT)))


def machine(root: Path, cgroup: str, **files: str) -> Path:
    """A file system with the process in `cgroup` and files by their path under /sys/fs/cgroup, `__` for a slash."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        *folders, file = name.split("__")
        path = root.joinpath("sys", "fs", "cgroup", *folders, file.replace("_", ".", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CLASSIC = "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        ("0::/\n", {"cpu_max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu_max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu_max": "max 100000\n"}, PRESENT),
        ("0::/\n", {"cpu_max": "99900000 100000\n"}, PRESENT),
        ("0::/pods/one\n", {"pods__cpu_max": "300000 100000", "pods__one__cpu_max": "max 100000"}, 3),
        ("0::/pods/one\n", {"pods__cpu_max": "300000 100000", "pods__one__cpu_max": "100000 50000"}, 2),
        ("0::/gone/from/here\n", {"cpu_max": "400000 100000"}, 4),
        ("0::/\n", {"cpu_max": "broken"}, PRESENT),
        ("0::/\n", {}, PRESENT),
        (CLASSIC, {"cpu,cpuacct__cpu_cfs_quota_us": "250000", "cpu,cpuacct__cpu_cfs_period_us": "100000"}, 3),
        (CLASSIC, {"cpu__docker__abc__cpu_cfs_quota_us": "50000", "cpu__docker__abc__cpu_cfs_period_us": "50000"}, 1),
        (CLASSIC, {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"}, PRESENT),
        ("2:memory:/\n", {"cpu_max": "200000 100000"}, PRESENT),
    ],
)
def test_a_quota_counts(tmp_path: Path, cgroup: str, files: dict[str, str], cpus: int) -> None:
    assert usable_cpus(machine(tmp_path, cgroup, **files)) == cpus


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cpus(tmp_path) == PRESENT
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert usable_cpus(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cpus(tmp_path) == os.cpu_count()


def test_there_are_as_many_run_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RegistryOptions().num_batch_threads == usable_cpus()
