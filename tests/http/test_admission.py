"""Who may connect, the reasons of refusals in the metrics, and clients that go away without a word."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from embedserve import Metrics
from embedserve.http import frames
from embedserve.http.admission import Admission, allowed_connections
from embedserve.http.frames import frame
from embedserve.http.limits import Limits
from embedserve.http.protocol import HttpProtocol
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry
from tests.http.http2_peer import HANDSHAKE, PING, WHOLE, block, headers
from tests.http.test_account import LOOPS, POST, OwnHost, connected, given_back, run, small
from tests.http.test_protocol import Host, serving

GET = b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"


class CountingHost(OwnHost):
    """An application that notes the reasons of refusals."""

    def __init__(self, limit: int = 1 << 30) -> None:
        super().__init__(limit)
        self.reasons: list[str] = []

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)


@asynccontextmanager
async def clients(port: int, count: int) -> AsyncIterator[list[socket.socket]]:
    """Connections that the server has accepted."""
    found = []
    loop = asyncio.get_running_loop()
    try:
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, GET)
            assert (await loop.sock_recv(client, 12)) == b"HTTP/1.1 200"
            found.append(client)
        yield found
    finally:
        for client in found:
            client.close()


@pytest.mark.parametrize("limits", [{"max_connections": 2}, {"max_connections_per_address": 2}], ids=["all", "address"])
async def test_a_connection_over_a_limit_gets_503_at_once_and_a_free_place_is_given_again(limits: Any) -> None:
    host = CountingHost()
    async with serving(host, small(**limits)) as port:
        async with clients(port, 2), connected(port) as (reader, _):
            answer = await reader.read()  # Nothing was sent.
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in answer
            assert host.reasons == ["connections" if "max_connections" in limits else "connections_of_address"]
        async with asyncio.timeout(30):
            answer = b"503"
            while b"503" in answer:
                async with connected(port) as (reader, writer):
                    writer.write(GET)
                    answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")


def test_addresses_are_counted_apart_and_forgotten() -> None:
    admission = Admission(None, Limits(max_connections=3, max_connections_per_address=2))
    assert [admission.enter(address) for address in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]
    for address in ("a", "a", "b"):
        admission.leave(address)
    assert repr(admission) == "<Admission of 0 connections from 0 addresses>"
    unix = Admission(None, Limits(max_connections_per_address=1))
    assert unix.enter("")
    assert unix.enter(""), "clients of a Unix socket have no address"


def test_connections_leave_files_for_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, 4_096))
    assert allowed_connections(Limits()) == 768
    assert allowed_connections(Limits(max_connections=10)) == 10
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert allowed_connections(Limits()) == Limits().max_connections


async def test_an_application_without_an_account_is_bounded_by_the_limits() -> None:
    async with serving(Host(), small(max_held_bytes=50_000)) as port, connected(port) as (reader, writer):
        writer.write(POST % (b"echo", 500_000) + bytes(500_000))
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")


LONG = b"x" * 10_000
REFUSALS: dict[str, tuple[bytes, str]] = {
    "malformed": (b"no\r\n\r\n", "501"),
    "a bare line feed": (b"GET / HTTP/1.1\n\n", "400"),
    "a long target": (b"GET /" + LONG + b" HTTP/1.1\r\nHost: h\r\n\r\n", "414"),
    "many fields": (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"a: b\r\n" * 200 + b"\r\n", "431"),
    "a stalled head": (b"GET / HTTP/1.1\r\n", "408"),
    "no HTTP/2": (HANDSHAKE + frame(frames.DATA, 0, 0), "protocol_error"),
    "a malformed stream": (HANDSHAKE + headers(1, block([(b":method", b"GET")])), "protocol_error"),
    "many fields of HTTP/2": (HANDSHAKE + headers(1, block((), *[(b"a%d" % i, b"b") for i in range(200)])), "431"),
    "too many streams": (
        HANDSHAKE + b"".join(headers(number, flags=WHOLE) for number in (1, 3, 5)),
        "refused_stream",
    ),
    "a flood": (HANDSHAKE + PING * 5_000, "enhance_your_calm"),
    "a stalled body of HTTP/2": (HANDSHAKE + headers(1, flags=WHOLE), "body_timeout"),
    "a stalled body": (POST % (b"echo", 100), "408"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_each_refusal_is_counted_with_its_reason_and_without_a_traceback(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent, reason = REFUSALS[case]
    host = CountingHost()
    host.a = host.echo  # type: ignore[attr-defined]
    kind = small(head_timeout=0.5, body_timeout=0.5, max_streams=2)
    async with serving(host, kind) as port, connected(port) as (_, writer):
        writer.write(sent)
        async with asyncio.timeout(30):
            while not host.reasons:
                await asyncio.sleep(0.005)
            assert host.reasons[0] == reason
    assert not [record for record in caplog.records if record.exc_info]


async def test_the_metrics_page_counts_refusals_with_a_line_of_help() -> None:
    metrics = Metrics()
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    async with registry:
        app = create_app(registry, metrics=metrics, grpc=True)
        async with serving(app, small(max_connections=1)) as port:  # type: ignore[arg-type]
            async with connected(port) as (reader, writer):
                writer.write(b"GET /" + LONG)
                assert (await reader.read()).startswith(b"HTTP/1.1 414")
            async with connected(port) as (reader, writer):
                writer.write(b"GET /monitoring/prometheus/metrics HTTP/1.1\r\nHost: h\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                async with connected(port) as (refused, _):
                    assert (await refused.read()).startswith(b"HTTP/1.1 503")
        assert registry.inflight.reserved == 0
    page = metrics.exposition().decode()
    assert 'embedserve_listener_refusals_total{reason="414"} 1' in page
    assert 'embedserve_listener_refusals_total{reason="connections"} 1' in page
    assert "# HELP embedserve_listener_refusals_total " in page


# Clients that go.


class Patient(HttpProtocol):
    limits = Limits(half_closed_timeout=600, head_timeout=600, body_timeout=600, write_timeout=600)


@pytest.mark.parametrize("body", [b"", b"abc"], ids=["GET", "POST"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_closes_is_noticed_without_the_bound_of_half_closed_clients(loop: str, body: bytes) -> None:
    async def scenario() -> None:
        host = OwnHost()
        async with serving(host, Patient) as port:
            async with connected(port) as (_, writer):
                writer.write(POST % (b"wait", len(body)) + body)
                await host.entered.wait()
            await host.left.wait()
            assert host.disconnects == 1
            await given_back(host.bytes)

    run(loop, scenario)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_half_closed_client_that_waits_gets_its_answer_after_any_bound(loop: str) -> None:
    async def scenario() -> None:
        host = OwnHost()
        checked = asyncio.Event()

        class Quick(HttpProtocol):
            limits = Limits(half_closed_timeout=0.0)

            def _check_time(self) -> None:
                super()._check_time()
                checked.set()

        async with serving(host, Quick) as port, connected(port) as (reader, writer):
            writer.write(POST % (b"hold", 3) + b"abc")
            await host.entered.wait()
            writer.write_eof()
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            checked.clear()
            await checked.wait()
            host.left.set()
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"held")

    run(loop, scenario)


async def test_http_1_0_clients_get_no_interim_response_and_their_bound() -> None:
    host = CountingHost()
    async with serving(host, small(half_closed_timeout=0.0)) as port, connected(port) as (reader, writer):
        writer.write(b"GET /wait HTTP/1.0\r\n\r\n")
        await host.entered.wait()
        writer.write_eof()
        assert not await reader.read()
        await host.left.wait()
    assert host.reasons == ["half_closed_timeout"]
