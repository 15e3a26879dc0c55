"""The table of docs/grpc.md: each kind of client, on each server that can serve it, makes each kind of call.

The servers are real processes, the models are real SavedModels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from embedserve.errors import Code
from tests.examples.test_browser import shown
from tests.interop.clients import CLIENTS, Blocking, Client
from tests.interop.conftest import Connect
from tests.interop.rpcs import UNARY, halves, predict, predicted, steps
from tests.support.programs import ROOT

pytestmark = pytest.mark.timeout(240)

NATIVE, WEB = ("blocking", "aio", "h2"), ("web", "web-text")
TABLE: Mapping[str, tuple[str, ...]] = {
    "grpcio": NATIVE,
    "HttpProtocol": (*NATIVE, *WEB, "web over HTTP/2"),
    "hypercorn": (*NATIVE, *WEB, "web over HTTP/2"),
    "port 8500": (*NATIVE, *WEB, "web over HTTP/2"),
    "port 8501": (*NATIVE, *WEB, "web over HTTP/2"),
    "uvicorn": WEB,
}
PAIRS = [(client, server) for server, clients in TABLE.items() for client in clients]

each_pair = pytest.mark.parametrize(("client", "server"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])

# Numbers of 4 bytes: more than the 4 MiB that gRPC takes by default, and 64 MiB for each client and each server once.
BIG, LARGEST = 2**21, 2**24
LARGEST_BETWEEN = {
    ("blocking", "grpcio"),
    ("blocking", "HttpProtocol"),
    ("aio", "port 8501"),
    ("h2", "hypercorn"),
    ("web", "port 8500"),
    ("web-text", "uvicorn"),
    ("web over HTTP/2", "hypercorn"),
}
ENDLESS_STEPS = 10**12


@pytest.fixture
def asked(client: str, server: str, connect: Connect) -> Client:
    return connect(client, server)


@each_pair
@pytest.mark.parametrize("method", UNARY)
def test_a_call(method: str, asked: Client, models: Path) -> None:
    outcome = asked.call(method, UNARY[method].request(models))
    assert (outcome.code, outcome.text) == (Code.OK, "")
    assert UNARY[method].is_right(outcome.response)


@each_pair
def test_a_watch_of_health(asked: Client) -> None:
    (answer,) = asked.stream("Watch", [health_pb2.HealthCheckRequest()], 1)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(("client", "server"), [pair for pair in PAIRS if pair[0] in NATIVE])
def test_reflection_answers_each_question_as_it_comes(asked: Client) -> None:
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    for answer in asked.stream("ServerReflectionInfo", [ask, ask], 2):
        names = [service.name for service in answer.list_services_response.service]
        assert "tensorflow.serving.PredictionService" in names


@each_pair
def test_an_error_has_its_code_and_words(asked: Client) -> None:
    outcome = asked.call("Predict", predict("né ☃%", x=np.zeros((1, 1), np.float32)))
    assert outcome.code is Code.NOT_FOUND
    assert outcome.text.startswith("Servable not found for request: Latest(né ☃%)")
    outcome = asked.call("Predict", predict(x=np.zeros((1, 1), np.int32)))
    assert outcome.code is Code.INVALID_ARGUMENT
    assert outcome.text.startswith("Expects arg[0] to be float but int32 is provided")


def assert_the_thread_is_free(client: Client) -> None:
    """The one thread that runs models runs again: nobody else could be answered otherwise."""
    outcome = client.call("Predict", steps(1), timeout=60)
    assert (outcome.code, outcome.text) == (Code.OK, "")


@each_pair
def test_a_deadline_ends_the_run(client: str, server: str, connect: Connect) -> None:
    outcome = connect(client, server).call("Predict", steps(ENDLESS_STEPS), timeout=0.3)
    assert outcome.code is Code.DEADLINE_EXCEEDED
    assert_the_thread_is_free(connect(client, server))


@each_pair
def test_a_client_that_leaves_ends_the_run(client: str, server: str, connect: Connect) -> None:
    connect(client, server).leave("Predict", steps(ENDLESS_STEPS))
    assert_the_thread_is_free(connect(client, server))


@each_pair
def test_a_large_message_both_ways(client: str, server: str, asked: Client) -> None:
    count = LARGEST if (client, server) in LARGEST_BETWEEN else BIG
    outcome = asked.call("Predict", halves(count))
    assert (outcome.code, outcome.text) == (Code.OK, "")
    found = predicted(outcome.response)
    assert found.nbytes == 4 * count
    np.testing.assert_array_equal(found, np.arange(count, dtype=np.float32) * np.float32(0.5) + 2)


def test_each_client_and_each_server_has_a_message_of_64_mib() -> None:
    assert {client for client, _ in LARGEST_BETWEEN} == set(CLIENTS)
    assert {server for _, server in LARGEST_BETWEEN} == set(TABLE)


@each_pair
def test_compressed_requests_and_answers(client: str, server: str, connect: Connect) -> None:
    """The standalone server has no flag that would compress its answers."""
    alone = server.startswith("port ")
    asked = connect(client, server if alone else f"{server}+gzip")
    outcome = asked.call("Predict", halves(1000), zipped=True)
    assert (outcome.code, outcome.text) == (Code.OK, "")
    assert predicted(outcome.response)[:3].tolist() == [2.0, 2.5, 3.0]
    assert outcome.zipped in (None, not alone)


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """Where the page of the browser example is, apart from what it calls."""

    class Page(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    handler = partial(Page, directory=str(ROOT / "examples" / "browser"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/page.html"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("server", [server for server, clients in TABLE.items() if "web" in clients])
def test_a_page_in_a_browser(server: str, page: str, ports: Mapping[str, int], tmp_path: Path) -> None:
    """From another origin, so the browser asks before it calls."""
    called = quote(f"http://127.0.0.1:{ports[server]}", safe="")
    assert shown(f"{page}?x=1,2,5&server={called}", tmp_path) == "2.5, 3, 4.5"


def test_a_grpc_client_cannot_connect_to_uvicorns_own_protocols(ports: Mapping[str, int]) -> None:
    outcome = Blocking(ports["uvicorn"]).call("Predict", halves())
    assert outcome.code is Code.UNAVAILABLE


def test_the_page_has_this_table() -> None:
    page = (ROOT / "docs" / "grpc.md").read_text()
    _, table = page.split("## Who can call whom")
    rows = re.findall(r"^\| `?([^|]+?)`? \|(.*)\|$", table.partition("\n## ")[0], re.MULTILINE)
    heads = [cell.strip().strip("`") for cell in rows[0][1].split("|")]
    assert rows[0][0] == "client"
    found = {
        (name, server)
        for name, cells in rows[2:]
        for server, cell in zip(heads, cells.split("|"), strict=True)
        if cell.strip() == "yes"
    }
    assert {name for name, _ in rows[2:]} == {"page in a browser"} | set(CLIENTS)
    assert found == set(PAIRS) | {("page in a browser", server) for client, server in PAIRS if client == "web"}
