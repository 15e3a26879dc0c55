"""What a request costs a cluster: processor time of every process it passes, on each way through Ray Serve.

python -m benchmarks.ray_serve [--ways standalone,proxies,ingress,direct] [--requests 1000]

`standalone` is a server without Ray; `proxies` the way through Serve's proxies, with every model on every replica;
`ingress` the same with a deployment per model; `direct` the replicas' own ports (`RAY_SERVE_ENABLE_DIRECT_INGRESS=1`).
`generated` is `proxies` with the generated gRPC functions. Processor time, because all of it is on one machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from benchmarks.callers import Ask, grpc_caller, rest_caller
from benchmarks.ports import free_port
from benchmarks.serving import rss_megabytes, server_process
from benchmarks.suite.processes import stat

WAYS = ("standalone", "proxies", "generated", "ingress", "direct")
OURS = ["embedserve.ray.add_services_to_server"]
GENERATED = ["tensorflow_serving.apis.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server"]
DIRECT_REST, DIRECT_GRPC = 30000, 40000
X = np.ones((1, 4), np.float32)


async def measure(ports: tuple[int, int], pids: dict[str, int], requests: int, callers: int) -> None:
    """Print what each protocol costs each process."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
        for protocol in ("REST", "gRPC"):
            asks = [
                rest_caller(ports[0], "tiny", {"x": X})
                if protocol == "REST"
                else grpc_caller(channel, "tiny", {"x": X})
                for _ in range(callers)
            ]
            await ask_all(asks, requests // 10)
            before = cpu(pids)
            await ask_all(asks, requests)
            used = {name: 1e3 * (after - before[name]) / requests for name, after in cpu(pids).items()}
            parts = ", ".join(f"{name} {milliseconds:.2f}" for name, milliseconds in used.items())
            print(f"  {protocol} {sum(used.values()):6.2f} ms of processor time a request: {parts}", flush=True)
    print("  memory, MB: " + ", ".join(f"{name} {rss_megabytes(pid):.0f}" for name, pid in pids.items()), flush=True)


async def ask_all(asks: Sequence[Ask], requests: int) -> None:
    async def caller(ask: Ask) -> None:
        for _ in range(requests // len(asks)):
            await ask()

    await asyncio.gather(*map(caller, asks))


def cpu(pids: dict[str, int]) -> dict[str, float]:
    found = {name: stat(pid) for name, pid in pids.items()}
    return {name: process.cpu for name, process in found.items() if process is not None}


def ray_processes() -> dict[str, int]:
    """Serve's processes below this one, named as people would."""
    names = {"ray::ProxyActor": "proxy", "ray::ServeReplica:default:embedserve": "replica"}
    names |= {"ray::ServeReplica:default:tiny": "model's replica"}
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (entry / "cmdline").read_bytes().split(b"\0")[0].decode().partition(".")[0]
            if title in names and below(int(entry.name), os.getpid()):
                found[names[title]] = int(entry.name)
    return found


def below(pid: int, ancestor: int) -> bool:
    while (process := stat(pid)) is not None and pid > 1:
        if (pid := process.parent) == ancestor:
            return True
    return False


@contextlib.asynccontextmanager
async def cluster(way: str, models: Path) -> AsyncIterator[tuple[int, int]]:
    """The application on a cluster of its own; yields the REST and the gRPC port to ask."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from embedserve.ray import build_app

    logs = tempfile.mkdtemp(prefix="ray-")
    os.environ["RAY_TMPDIR"] = logs  # Not `temp_dir`: `Cluster` writes its address below Ray's own default.
    head: dict[str, Any] = {"num_cpus": 8, "include_dashboard": False}
    node = Cluster(initialize_head=True, head_node_args=head | {"dashboard_agent_listen_port": 0})
    ray.init(address=node.address, log_to_driver=False, configure_logging=False)
    rest, grpc_port = free_port(), free_port()
    functions = GENERATED if way == "generated" else OURS
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": rest},
        grpc_options={"port": grpc_port, "grpc_servicer_functions": functions},
    )
    one = {"name": "tiny", "base_path": str(models / "tiny")}
    quiet = {"num_replicas": 1, "logging_config": {"enable_access_log": False}}
    try:
        serve.run(build_app([one], per_model=way == "ingress", deployment=quiet))
        yield (DIRECT_REST, DIRECT_GRPC) if way == "direct" else (rest, grpc_port)
    finally:
        serve.shutdown()
        ray.shutdown()
        node.shutdown()
        shutil.rmtree(logs, ignore_errors=True)


async def run(way: str, requests: int, callers: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        code = "import sys; from benchmarks.models import Tiny, save; from pathlib import Path; "
        code += "save(Tiny(1), Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, models / "tiny" / "1"], check=True, stderr=subprocess.DEVNULL)
        print(f"{way}, {callers} callers", flush=True)
        if way == "standalone":
            async with server_process([{"name": "tiny", "base_path": str(models / "tiny")}]) as server:
                pids = {"server": server.process.pid}
                await measure((server.rest_port, server.grpc_port), pids, requests, callers)
        else:
            async with cluster(way, models) as ports:
                await measure(ports, ray_processes(), requests, callers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=8)
    arguments = parser.parse_args()
    ways = arguments.ways.split(",")
    if len(ways) == 1:
        warnings.simplefilter("ignore")  # Of Ray's own models.
        asyncio.run(run(ways[0], arguments.requests, arguments.callers))
        return
    for way in ways:  # Each in a process of its own: Ray reads its settings when it is imported.
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        settings |= {"TF_CPP_MIN_LOG_LEVEL": "3", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
        # Niceness is 15 unless told otherwise: on a busy machine nothing would start.
        settings |= {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0", "RAY_worker_niceness": "0"}
        settings |= {"RAY_SERVE_ENABLE_DIRECT_INGRESS": str(int(way == "direct"))}
        settings |= {"PYTHONPATH": str(Path(__file__).parents[1])}
        numbers = ["--requests", str(arguments.requests), "--callers", str(arguments.callers)]
        command = [sys.executable, "-m", "benchmarks.ray_serve", "--ways", way, *numbers]
        subprocess.run(command, check=True, env=os.environ | settings)


if __name__ == "__main__":
    main()
