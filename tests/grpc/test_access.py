"""Who may reload, run a graph and profile: by option, and the same words on every transport."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import model_management_pb2, session_service_pb2

from embedserve.asgi.clients import is_loopback
from embedserve.config import Access
from embedserve.grpc.transports import asgi as asgi_transport
from embedserve.grpc.transports import grpcio as grpcio_transport
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.conftest import Start, failure

C = grpc.StatusCode
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
SESSION_RUN = "/tensorflow.serving.SessionService/SessionRun"
PROFILE = "/tensorflow.ProfilerService/Profile"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("fe80::1%lo", False),
        ("localhost", False),  # A name is no address: nobody has looked it up.
        ("", False),
    ],
)
def test_loopback_addresses_are_told_by_their_number(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def registry() -> FakeRegistry:
    return FakeRegistry({"m": {1: FakeLoader()}})


def reload_request() -> bytes:
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="m", base_path="/m", model_platform="tensorflow")
    body: bytes = request.SerializeToString()
    return body


def session_request() -> bytes:
    body: bytes = session_service_pb2.SessionRunRequest(model_spec={"name": "m"}, fetch=["y:0"]).SerializeToString()
    return body


async def test_session_run_is_off_unless_asked_for(start: Start) -> None:
    client = await start(registry())
    code, message = await failure(client.raw(SESSION_RUN, session_request()))
    assert (code, message) == (C.UNIMPLEMENTED, "SessionRun is off; --session_run_clients=local or all turns it on")


@pytest.mark.parametrize("clients", ["local", "all"])
async def test_session_run_answers_where_it_was_asked_for(start: Start, clients: Any) -> None:
    client = await start(registry(), access=Access(session_run=clients))
    code, message = await failure(client.raw(SESSION_RUN, session_request()))
    assert code is C.UNIMPLEMENTED
    assert message.startswith("version 1 of m runs as 'fake'")


@pytest.fixture
def from_afar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client looks as one of another machine."""
    for transport in (grpcio_transport, asgi_transport):
        monkeypatch.setattr(transport, "is_loopback", lambda host: False)


@pytest.mark.usefixtures("from_afar")
@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        (RELOAD, reload_request(), "HandleReloadConfigRequest answers clients on its own machine only"),
        (SESSION_RUN, session_request(), "SessionRun answers clients on its own machine only"),
        (PROFILE, b"\x08\x01", "the profiler answers clients on its own machine only"),
    ],
)
async def test_other_machines_are_refused_where_only_this_one_may(
    start: Start, path: str, body: bytes, what: str
) -> None:
    client = await start(registry(), access=Access(reload="local", session_run="local", profiler="local"))
    code, message = await failure(client.raw(path, body))
    assert code is C.PERMISSION_DENIED
    assert message.startswith(what)


@pytest.mark.usefixtures("from_afar")
async def test_other_machines_are_answered_where_all_may(start: Start) -> None:
    client = await start(registry(), access=Access(reload="all", session_run="all", profiler="all"))
    await client.raw(RELOAD, reload_request())
    await client.raw(PROFILE, b"\x08\x01")
    assert "runs as 'fake'" in (await failure(client.raw(SESSION_RUN, session_request())))[1]


async def test_a_reload_can_be_off(start: Start) -> None:
    client = await start(registry(), access=Access(reload="none"))
    code, _ = await failure(client.raw(RELOAD, reload_request()))
    assert code is C.UNIMPLEMENTED


@pytest.mark.parametrize("transport", ["embedserve", "grpcio"])
async def test_a_client_of_the_unix_socket_is_local(start: Start, tmp_path: Any) -> None:
    client = await start(registry(), port=None, socket_path=str(tmp_path / "s"), access=Access(reload="local"))
    await client.raw(RELOAD, reload_request())


async def test_reflection_shows_session_run_only_where_it_answers(start: Start) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async def services(**options: Any) -> set[str]:
        client = await start(registry(), reflection=True, **options)
        stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
        calls = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        async for answer in calls:
            return {service.name for service in answer.list_services_response.service}
        raise AssertionError("no answer")

    assert "tensorflow.serving.SessionService" not in await services()
    assert "tensorflow.serving.SessionService" in await services(access=Access(session_run="local"))
