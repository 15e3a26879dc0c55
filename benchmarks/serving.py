"""A server process for the benchmarks: one registry with both adapters on one loop, and how to start and stop it.

Options as in the standalone server.

As a program: python -m benchmarks.serving REST_PORT GRPC_PORT MODELS_JSON   (a list of ModelConfig)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ports import free_port


@dataclass(frozen=True)
class Server:
    """Where a server process answers, and the process."""

    rest_port: int
    grpc_port: int
    process: subprocess.Popen[bytes]

    @property
    def rest(self) -> str:
        return f"http://127.0.0.1:{self.rest_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


def rss_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


@contextlib.asynccontextmanager
async def server_process(models: Sequence[dict[str, object]], *, web: bool = False) -> AsyncIterator[Server]:
    """A server of `models` (the fields of ModelConfig), ready to answer; ended with SIGTERM.

    `web` adds gRPC-Web to the REST port.
    """
    rest_port, grpc_port = free_port(), free_port()
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving",
        str(rest_port),
        str(grpc_port),
        json.dumps(models),
        *["web"] * web,
    ]
    process = subprocess.Popen(command, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    server = Server(rest_port, grpc_port, process)
    try:
        async with asyncio.timeout(120):
            while not await asyncio.to_thread(ready, server):
                assert process.poll() is None, "the server ended while starting"
                await asyncio.sleep(0.1)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, 60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.rest}/-/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def ended_by(*signals: signal.Signals) -> Iterator[asyncio.Event]:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in signals:
        loop.add_signal_handler(number, ended.set)
    try:
        yield ended
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def main(rest_port: int, grpc_port: int, models: list[dict[str, object]], web: bool) -> None:
    import uvicorn

    from embedserve import ModelConfig, ModelRegistry
    from embedserve.grpc import serve
    from embedserve.rest import create_app

    async with (
        ModelRegistry(models=[ModelConfig.model_validate(model) for model in models], gc_freeze=True) as registry,
        serve(registry, port=grpc_port),
    ):
        config = uvicorn.Config(
            create_app(registry, grpc=True) if web else create_app(registry),
            port=rest_port,
            lifespan="off",
            log_level="warning",
            access_log=False,
        )
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        running = asyncio.create_task(server.serve())
        with ended_by(signal.SIGTERM, signal.SIGINT) as ended:
            await ended.wait()
        server.should_exit = True
        await running


if __name__ == "__main__":
    runner = asyncio.Runner()
    with contextlib.suppress(ImportError):
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with runner:
        runner.run(main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4:] == ["web"]))
