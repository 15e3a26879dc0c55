"""One process of each kind of server for the whole session, over the same few real models."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.conftest import ServerProcess
from tests.interop.clients import CLIENTS, Client
from tests.interop.rpcs import ENDLESS, MODEL, SESSION
from tests.interop.server import PORTS
from tests.support import saved_models
from tests.support.programs import free_port

Connect = Callable[..., Client]

# npm's packages are not on PyPI or in Debian, so that the machine says where they are.
collect_ignore = [] if "EMBEDSERVE_NODE_MODULES" in os.environ else ["test_npm_clients.py"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("interop") / "models"
    saved_models.examples(directory / MODEL / "1")
    saved_models.endless(directory / ENDLESS / "1")
    saved_models.tf1_ref_variables(directory / SESSION / "1")
    return directory


@pytest.fixture(scope="session")
def ports(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, int]]:
    """The port of each server; both processes start at the same time."""
    grpc, rest = free_port(), free_port()
    services = (
        "--enable_grpc_healthcheck_service",
        "--grpc_reflection",
        "--session_run_clients=local",
        "--rest_api_enable_cors_support",
    )
    flags = (*services, "--num_batch_threads=1", "--watch=false")
    directory = tmp_path_factory.mktemp("servers")
    with contextlib.ExitStack() as stack:

        def started(*arguments: object, module: str = "embedserve") -> ServerProcess:
            server = ServerProcess(*arguments, cwd=directory, module=module)
            stack.callback(server.close)
            return server

        together = started(models, module="tests.interop.server")
        alone = started(models, f"--port={grpc}", f"--rest_api_port={rest}", *flags)
        alone.wait_for_log("Entering the event loop ...", 200)
        together.wait_for_log(PORTS, 200)
        (line,) = (line for line in together.log.splitlines() if line.startswith(PORTS))
        ports = json.loads(line.removeprefix(PORTS))
        yield {**ports, "port 8500": grpc, "port 8501": rest}
        for server in (together, alone):
            server.terminate()


@pytest.fixture
def connect(ports: Mapping[str, int]) -> Connect:
    """`connect(client, server)` makes a client of a server, both by their names."""
    return lambda client, server: CLIENTS[client](ports[server])
