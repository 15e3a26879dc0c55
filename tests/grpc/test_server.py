"""Ports, sockets, TLS, start and stop of `serve`, on the own listener and on grpcio."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tensorflow_serving.apis import prediction_service_pb2_grpc

from embedserve.errors import ConfigError, RegistryStateError
from embedserve.grpc import TlsConfig, serve
from embedserve.http.sockets import bound_socket
from embedserve.testing import FakeRegistry
from tests.grpc.conftest import Client, Start, answers, failure, gated, predict_request, registry, until_running

C = grpc.StatusCode


@pytest.fixture(params=["embedserve", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Where it runs.


async def test_a_registry_that_was_not_entered_is_refused_with_the_remedy() -> None:
    with pytest.raises(RegistryStateError, match="async with registry"):
        async with serve(registry(), port=0):
            pass


@pytest.mark.may_block
async def test_a_registry_on_another_loop_is_refused_with_the_remedy() -> None:
    reg = registry()
    await asyncio.to_thread(reg.__enter__)
    try:
        with pytest.raises(RegistryStateError, match="another event loop"):
            async with serve(reg, port=0):
                pass
    finally:
        await asyncio.to_thread(reg.__exit__, None, None, None)


async def test_two_servers_over_one_registry(start: Start) -> None:
    reg = registry()
    first = await start(reg)
    second = await start(reg)
    assert first.server.port != second.server.port
    assert await answers(first)
    assert await answers(second)


# Where it listens.


async def test_a_taken_port_is_an_error_that_names_it(start: Start) -> None:
    reg = registry()
    client = await start(reg)
    port = client.server.port
    with pytest.raises(OSError, match=rf"port {port} of 127\.0\.0\.1: already in use") as raised:
        await start(reg, port=port)
    assert raised.value.errno == errno.EADDRINUSE
    assert await answers(client)


async def test_a_port_taken_by_something_else_is_the_same_error(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="already in use"):
            await start(registry(), port=other.getsockname()[1])


async def test_a_host_that_is_not_here_is_an_error(start: Start) -> None:
    async with registry() as reg:
        with pytest.raises(OSError, match=r"gRPC cannot listen on port 0 of no-such-host\.invalid"):
            async with serve(reg, host="no-such-host.invalid", port=0):
                pass


async def test_nothing_to_listen_on_is_an_error() -> None:
    async with registry() as reg:
        with pytest.raises(ConfigError, match="nothing to listen on"):
            async with serve(reg, port=None):
                pass


async def test_ipv6(start: Start) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    async with registry() as reg, serve(reg, host="::1", port=0) as server:
        async with grpc.aio.insecure_channel(f"[::1]:{server.port}") as channel:
            assert await answers(Client(server, channel, reg))
        assert "[::1]:" in repr(server)


async def test_a_unix_socket_beside_the_port_or_alone(start: Start, tmp_path: Path) -> None:
    reg = registry()
    path = str(tmp_path / "serving.sock")
    alone = await start(reg, port=None, socket_path=path)
    assert (alone.server.port, alone.server.socket_path) == (None, path)
    assert await answers(alone)
    both = await start(reg, socket_path=str(tmp_path / "both.sock"))
    assert both.server.port
    assert await answers(both)


async def test_a_stale_socket_is_taken_over(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "serving.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert await answers(await start(registry(), port=None, socket_path=str(path)))


async def test_the_last_server_on_a_socket_wins_and_keeps_it(tmp_path: Path) -> None:
    path = str(tmp_path / "serving.sock")

    async def ask() -> bool:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            return await answers(Client(second, channel, reg))

    async with registry() as reg:
        async with serve(reg, port=None, socket_path=path) as first:
            context = serve(reg, port=None, socket_path=path)
            second = await context.__aenter__()
            assert await ask()
            assert first.socket_path == second.socket_path
        assert await ask(), "the first server's end must not take the second one's path away"
        await context.__aexit__(None, None, None)
    assert os.listdir(tmp_path) == []


async def test_a_file_in_the_sockets_place_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    async with registry() as reg:
        with pytest.raises(OSError, match="not a socket") as raised:
            async with serve(reg, port=None, socket_path=str(path)):
                pass
    assert raised.value.filename == str(path)
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    ("path", "message"),
    [("x" * 200, "must not be longer than"), ("no/such/directory.sock", "no such directory")],
)
async def test_a_socket_path_that_cannot_be_says_why(tmp_path: Path, path: str, message: str) -> None:
    async with registry() as reg:
        with pytest.raises(OSError, match=message):
            async with serve(reg, port=None, socket_path=str(tmp_path / path)):
                pass


async def test_a_relative_socket_path_is_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with registry() as reg, serve(reg, port=None, socket_path="s.sock") as server:
        assert server.socket_path == str(tmp_path / "s.sock")
        async with grpc.aio.insecure_channel(f"unix:{server.socket_path}") as channel:
            assert await answers(Client(server, channel, reg))


async def test_channel_arguments_of_any_kind_start_and_serve(start: Start) -> None:
    arguments = [
        ("grpc.max_connection_age_ms", 2000),
        ("grpc.lb_policy_name", "grpclb"),
        ("grpc.so_reuseaddr", 1),
        ("made.up", "x"),
        ("made.up", "y"),
    ]
    assert await answers(await start(registry(), channel_arguments=arguments))


# Stop.


async def test_leaving_waits_for_the_calls_in_flight(start: Start) -> None:
    reg, _, gate = gated(drain_timeout=30)
    async with reg:
        async with serve(reg, host="127.0.0.1", port=0) as server:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
            gate.close()
            call = Client(server, channel, reg).prediction.Predict(predict_request(x=[1]))
            await until_running(gate)
            threading.Timer(0.1, gate.open).start()
        assert list((await call).outputs["y"].float_val) == [11]
        await server.wait()
        assert "closed" in repr(server)
        await channel.close()


async def test_clients_that_ask_without_pause_lose_no_call_to_a_stop(start: Start) -> None:
    reg = registry()
    server = (await start(reg)).server
    answered, failed = [0] * 4, list[grpc.RpcError]()
    busy, request = threading.Event(), predict_request(x=[1.0])

    def ask(number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
            predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
            try:
                while True:
                    predict(request, timeout=30)
                    answered[number] += 1
                    if min(answered) > 20:
                        busy.set()
            except grpc.RpcError as error:
                failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert await asyncio.to_thread(busy.wait, 60)
    await server.aclose(30)
    for thread in threads:
        await asyncio.to_thread(thread.join, 30)
    # The only failure of each is that nobody listens any more.
    assert [(error.code(), "refused" in (error.details() or "")) for error in failed] == [(C.UNAVAILABLE, True)] * 4


async def test_the_grace_of_a_stop_is_bounded(start: Start) -> None:
    reg, _, gate = gated(drain_timeout=0.1)
    client = await start(reg)
    gate.close()
    call = client.prediction.Predict(predict_request(x=[1]))
    await until_running(gate)
    await client.server.aclose(0.1)
    code, _ = await failure(call)
    assert code in (C.CANCELLED, C.UNAVAILABLE)
    gate.open()


# TLS.


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca`, `server` (for localhost) and `client`, each as .key and .crt."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=test ca")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)
    return directory


@asynccontextmanager
async def secure_client(
    registry: FakeRegistry, certificates: Path, tls: TlsConfig, client: str | None = None, **options: Any
) -> AsyncIterator[Client]:
    pair = [(certificates / f"{client}.{part}").read_bytes() if client else None for part in ("key", "crt")]
    credentials = grpc.ssl_channel_credentials((certificates / "ca.crt").read_bytes(), *pair)
    arguments: dict[str, Any] = {"host": "127.0.0.1", "port": 0} | options
    async with registry, serve(registry, tls=tls, **arguments) as server:
        target = f"localhost:{server.port}" if server.port else f"unix:{server.socket_path}"
        async with grpc.aio.secure_channel(
            target, credentials, options=(("grpc.ssl_target_name_override", "localhost"),)
        ) as channel:
            yield Client(server, channel, registry)


def tls_config(certificates: Path, **options: Any) -> TlsConfig:
    return TlsConfig((certificates / "server.key").read_text(), (certificates / "server.crt").read_text(), **options)


@pytest.mark.may_block
async def test_tls(certificates: Path) -> None:
    async with secure_client(registry(), certificates, tls_config(certificates)) as client:
        assert await answers(client)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{client.server.port}") as plain:
            code, _ = await failure(
                Client(client.server, plain, client.registry).prediction.Predict(predict_request(x=[1]))
            )
            assert code is C.UNAVAILABLE


@pytest.mark.may_block
async def test_tls_on_the_unix_socket_too(certificates: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = {"port": None, "socket_path": str(tmp_path / "s")}
    async with secure_client(registry(), certificates, tls_config(certificates), **where) as client:
        assert await answers(client)


@pytest.mark.may_block
async def test_mutual_tls_asks_the_client_for_its_certificate(certificates: Path, transport: str) -> None:
    tls = tls_config(certificates, custom_ca=(certificates / "ca.crt").read_bytes(), client_verify=True)
    async with secure_client(registry(), certificates, tls, "client", transport=transport) as client:
        assert await answers(client)
    async with secure_client(registry(), certificates, tls, transport=transport) as client:
        code, _ = await failure(client.prediction.Predict(predict_request(x=[1])))
        assert code is C.UNAVAILABLE


@pytest.mark.may_block
async def test_unusable_tls_material_says_so(certificates: Path, transport: Any) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n"
    async with registry() as reg:
        with pytest.raises(ConfigError, match="server_key must hold a PEM text"):
            async with serve(reg, transport=transport, port=0, tls=TlsConfig("/etc/key.pem", pem)):
                pass
        with pytest.raises(OSError, match="the TLS key or certificate is not usable"):
            async with serve(reg, transport=transport, host="127.0.0.1", port=0, tls=TlsConfig(pem, pem)):
                pass


@pytest.mark.may_block
async def test_unusable_tls_material_on_a_port_of_many_processes_says_so(certificates: Path) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nbm8=\n-----END CERTIFICATE-----\n"
    with bound_socket(socket.AF_INET, "127.0.0.1", 0, shared=True) as supervisor:
        place = {"host": "127.0.0.1", "port": supervisor.getsockname()[1], "transport": "grpcio"}
        shared = {"channel_arguments": (("grpc.so_reuseport", 1),)}
        async with registry() as reg:
            with pytest.raises(OSError, match="the TLS key or certificate is not usable"):
                async with serve(reg, **place, **shared, tls=TlsConfig(pem, pem)):  # type: ignore[arg-type]
                    pass


def test_a_private_key_is_not_shown(certificates: Path) -> None:
    assert "PRIVATE" not in repr(tls_config(certificates))
