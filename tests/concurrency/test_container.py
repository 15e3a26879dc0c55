"""CPUs and memory of a container: the machine's, or what the control group pays for. Threads and bounds follow them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from embedserve.concurrency import container
from embedserve.concurrency.container import usable_cpus, usable_memory
from embedserve.concurrency.inflight import InflightBytes, default_limit
from embedserve.config import RegistryOptions
from embedserve.server.config import ServerConfig
from embedserve.server.workers.worker_limits import worker_config

PAGE, PAGES = 4096, 1 << 22
PRESENT = PAGE * PAGES  # 16 GiB
CPUS = 64
NO_LIMIT = 9223372036854771712  # As version 1 writes it.


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CPUS)))
    sizes, real = {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": PAGES}, os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: sizes.get(name) or real(name))


def machine(root: Path, cgroup: str, files: dict[str, object]) -> Path:
    """A file system with the process in `cgroup`, and files by their path under /sys/fs/cgroup."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


CLASSIC = "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"memory.max": 1500 << 20}, 1500 << 20),
        ("0::/\n", {"memory.max": "max"}, PRESENT),
        ("0::/\n", {"memory.max": PRESENT * 2}, PRESENT),
        ("0::/pods/one\n", {"pods/memory.max": 3 << 30, "pods/one/memory.max": "max"}, 3 << 30),
        ("0::/pods/one\n", {"pods/memory.max": 3 << 30, "pods/one/memory.max": 2 << 30}, 2 << 30),
        ("0::/gone/from/here\n", {"memory.max": 1 << 30}, 1 << 30),
        ("0::/\n", {"memory.max": "broken"}, PRESENT),
        ("0::/\n", {}, PRESENT),
        (CLASSIC, {"memory/memory.limit_in_bytes": 2 << 30}, 2 << 30),
        (CLASSIC, {"memory/docker/abc/memory.limit_in_bytes": 1 << 30}, 1 << 30),
        (CLASSIC, {"memory/memory.limit_in_bytes": NO_LIMIT}, PRESENT),
        (CLASSIC, {"cpu,cpuacct/memory.limit_in_bytes": 1 << 30}, PRESENT),
        ("2:cpu:/\n", {"memory.max": 1 << 30}, PRESENT),
    ],
)
def test_a_control_groups_limit_counts(tmp_path: Path, cgroup: str, files: dict[str, object], expected: int) -> None:
    assert usable_memory(machine(tmp_path, cgroup, files)) == expected


def test_without_control_groups_the_machines_memory_counts(tmp_path: Path) -> None:
    assert usable_memory(tmp_path) == PRESENT


def test_a_machine_whose_memory_cannot_be_read_has_16_gib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert usable_memory(tmp_path) == 16 << 30


def test_requests_in_flight_and_workers_get_their_part_of_a_containers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_limits", lambda root: (float(1500 << 20),))
    quarter = (1500 << 20) // 4
    assert default_limit() == quarter
    options = RegistryOptions()
    assert InflightBytes(options.max_inflight_bytes, options.max_request_bytes).limit == quarter
    assert worker_config(ServerConfig(workers=3), cpus=2).options.max_inflight_bytes == quarter // 3


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, CPUS),
        ("0::/\n", {"cpu.max": "99900000 100000\n"}, CPUS),
        ("0::/pods/one\n", {"pods/cpu.max": "300000 100000", "pods/one/cpu.max": "max 100000"}, 3),
        ("0::/pods/one\n", {"pods/cpu.max": "300000 100000", "pods/one/cpu.max": "100000 50000"}, 2),
        ("0::/gone/from/here\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "broken"}, CPUS),
        ("0::/\n", {}, CPUS),
        (CLASSIC, {"cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 3),
        (CLASSIC, {"cpu/docker/abc/cpu.cfs_quota_us": "50000", "cpu/docker/abc/cpu.cfs_period_us": "50000"}, 1),
        (CLASSIC, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CPUS),
        ("2:memory:/\n", {"cpu.max": "200000 100000"}, CPUS),
    ],
)
def test_a_quota_counts(tmp_path: Path, cgroup: str, files: dict[str, object], cpus: int) -> None:
    assert usable_cpus(machine(tmp_path, cgroup, files)) == cpus


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cpus(tmp_path) == CPUS
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert usable_cpus(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cpus(tmp_path) == os.cpu_count()


def test_there_are_as_many_run_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RegistryOptions().num_batch_threads == usable_cpus()
