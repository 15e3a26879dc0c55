"""One real Ray cluster for the session, with Serve in it."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

# Nothing but loopback, and nothing sent home; read when Ray is imported.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Pydantic's, of Ray's own models.
    import ray
    import ray.serve.schema
    from ray.cluster_utils import Cluster

from benchmarks.suite.processes import stat
from tests.support import saved_models
from tests.support.programs import PYTHONPATH, wait_until

SERVE = {
    # How often the autoscaler hears how many requests there are, in seconds.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.2",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.2",
    # Ray's own would be 15: on a busy machine its processes would hardly run at all.
    "RAY_worker_niceness": "0",
    # A slow machine is not a sick proxy.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
}


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A model that tells its version: `y = version`, whatever `x` is."""
    root = tmp_path_factory.mktemp("line")

    def path_of(version: int) -> Path:
        path = root / str(version)
        return path if path.exists() else saved_models.half_plus_two(path, a=0.0, b=float(version))

    return path_of


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of one node on loopback, with more CPUs than there are: its replicas are tiny."""
    with ExitStack() as stack:
        logs = tempfile.mkdtemp(prefix="ray-")  # Short, because sockets are in it.
        stack.callback(shutil.rmtree, logs, ignore_errors=True)
        # Not `temp_dir`: `Cluster` writes its address below Ray's own default, which must exist, whatever that says.
        environment = {"PYTHONPATH": PYTHONPATH, "RAY_TMPDIR": logs} | SERVE
        stack.enter_context(mock.patch.dict(os.environ, environment))
        head: dict[str, Any] = {"num_cpus": 16, "object_store_memory": 100 * 2**20}
        head |= {"include_dashboard": False, "dashboard_agent_listen_port": 0}
        before = set(processes_below(os.getpid()))
        rays: set[int] = set()
        stack.callback(lambda: wait_until(lambda: not any(map(stat, rays))))
        cluster = Cluster(initialize_head=True, head_node_args=head)
        stack.callback(cluster.shutdown)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        stack.callback(ray.shutdown)
        yield cluster
        rays |= set(processes_below(os.getpid())) - before


def processes_below(ancestor: int) -> Iterator[int]:
    """Children, and theirs."""
    parents = {one.pid: one.parent for entry in Path("/proc").glob("[0-9]*") if (one := stat(int(entry.name)))}
    for pid in parents:
        above = parents[pid]
        while above in parents and above != ancestor:
            above = parents[above]
        if above == ancestor:
            yield pid
