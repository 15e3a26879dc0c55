"""TensorFlow's own profiler client traces a serving process through the serving port."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedserve.config import Access
from embedserve.grpc.services.profiler import message_class
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.conftest import Client, Start, failure

C = grpc.StatusCode


async def profiled(start: Start) -> Client:
    return await start(FakeRegistry({"m": {1: FakeLoader()}}), access=Access(profiler="local"))


def profile(client: Client, **fields: Any) -> Any:
    request = message_class("ProfileRequest")(**fields)
    return client.raw("/tensorflow.ProfilerService/Profile", request.SerializeToString())


async def ended(client: Client, session_id: str) -> grpc.StatusCode:
    """Terminate a session; the status of that."""
    request = message_class("TerminateRequest")(session_id=session_id)
    try:
        await client.raw("/tensorflow.ProfilerService/Terminate", request.SerializeToString())
    except grpc.RpcError as error:
        status: grpc.StatusCode = error.code()
        return status
    return C.OK


@pytest.mark.timeout(300)
async def test_tensorflows_client_writes_a_trace(start: Start, tmp_path: Path) -> None:
    import tensorflow as tf

    client = await profiled(start)
    address = f"grpc://localhost:{client.server.port}"
    await asyncio.to_thread(tf.profiler.experimental.client.trace, address, str(tmp_path), 200, num_tracing_attempts=1)
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert trace.name == f"localhost_{client.server.port}.xplane.pb"
    assert trace.stat().st_size > 0


async def test_the_trace_comes_back_in_the_answer_when_asked(start: Start) -> None:
    client = await profiled(start)
    answer = message_class("ProfileResponse").FromString(await profile(client, duration_ms=10, emit_xspace=True))
    assert answer.xspace
    assert not answer.empty_trace


async def test_a_session_can_be_ended_early(start: Start) -> None:
    client = await profiled(start)
    running = asyncio.create_task(profile(client, duration_ms=60_000, session_id="mine"))
    while (code := await ended(client, "mine")) is C.NOT_FOUND:  # Until the session has begun.
        await asyncio.sleep(0.01)
    assert code is C.OK
    await running
    assert await ended(client, "mine") is C.NOT_FOUND


async def test_a_session_is_ended_by_its_own_id_only(start: Start) -> None:
    client = await profiled(start)
    running = asyncio.create_task(profile(client, duration_ms=60_000, session_id="mine"))
    while not await busy(client):
        await asyncio.sleep(0.01)
    assert await ended(client, "another") is C.NOT_FOUND
    assert (await failure(profile(client, duration_ms=1)))[0] is C.ALREADY_EXISTS
    assert await ended(client, "mine") is C.OK
    await running


async def test_a_client_that_goes_away_ends_its_session(start: Start) -> None:
    client = await profiled(start)
    code, _ = await failure(
        client.channel.unary_unary("/tensorflow.ProfilerService/Profile")(
            message_class("ProfileRequest")(duration_ms=60_000).SerializeToString(), timeout=0.5
        )
    )
    assert code is C.DEADLINE_EXCEEDED
    while await outcome(client, duration_ms=1) is C.ALREADY_EXISTS:  # Until the profiler is free again.
        await asyncio.sleep(0.01)
    assert await outcome(client, duration_ms=1) is C.OK


async def outcome(client: Client, **fields: Any) -> grpc.StatusCode:
    """The status of a profile."""
    try:
        await profile(client, **fields)
    except grpc.RpcError as error:
        status: grpc.StatusCode = error.code()
        return status
    return C.OK


@pytest.mark.parametrize("transport", ["embedserve", "grpcio"])
async def test_a_stopping_server_ends_the_session(start: Start) -> None:
    client = await profiled(start)
    running = asyncio.create_task(profile(client, duration_ms=60_000, session_id="mine", emit_xspace=True))
    while not await busy(client):
        await asyncio.sleep(0.01)
    await client.server.aclose(30)
    assert message_class("ProfileResponse").FromString(await running).xspace


async def busy(client: Client) -> bool:
    """Whether a session runs."""
    _, message = await failure(client.raw("/tensorflow.ProfilerService/Terminate", b"\x0a\x01?"))
    return message != "no profiler session is running"


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("host_name", "../../elsewhere"),
        ("host_name", "a/b"),
        ("host_name", "a\0b"),
        ("host_name", "a\\b"),
        ("session_id", ".."),
        ("session_id", "../../elsewhere"),
        ("session_id", "/elsewhere"),
        ("session_id", "a/../../elsewhere"),
        ("session_id", "a\nb"),
        ("session_id", "x" * 300),
        ("repository_root", "/tmp/a\0b"),
    ],
)
async def test_a_profile_stays_below_its_repository_root(start: Start, tmp_path: Path, field: str, name: str) -> None:
    client = await profiled(start)
    given = {"repository_root": str(tmp_path / "root"), "session_id": "s", "host_name": "h"} | {field: name}
    code, message = await failure(profile(client, duration_ms=1, **given))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith(field)
    assert list(tmp_path.iterdir()) == []


async def test_a_profile_is_not_written_through_links(start: Start, tmp_path: Path) -> None:
    client = await profiled(start)
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "s").mkdir(parents=True)
    elsewhere.mkdir()
    (root / "linked").symlink_to(elsewhere)
    (root / "s" / "h.xplane.pb").symlink_to(elsewhere / "file")
    for session in ("linked", "s"):
        code, message = await failure(
            profile(client, duration_ms=1, repository_root=str(root), session_id=session, host_name="h")
        )
        assert code is C.INVALID_ARGUMENT
        assert "link" in message
    assert list(elsewhere.iterdir()) == []
    (tmp_path / "way").symlink_to(root)  # The root itself may be reached by a link.
    await profile(client, duration_ms=1, repository_root=str(tmp_path / "way"), session_id="t", host_name="h")
    assert (root / "t" / "h.xplane.pb").stat().st_size > 0


async def test_a_profile_is_bounded_in_time(start: Start) -> None:
    client = await profiled(start)
    code, message = await failure(profile(client, duration_ms=600_001))
    assert (code, message) == (C.INVALID_ARGUMENT, "duration_ms is 600001; 600000 is the limit")


async def test_what_cannot_be_profiled(start: Start, tmp_path: Path) -> None:
    client = await profiled(start)
    assert (await failure(profile(client)))[0] is C.INVALID_ARGUMENT
    (tmp_path / "file").write_text("")
    code, message = await failure(
        profile(client, duration_ms=1, repository_root=str(tmp_path / "file"), session_id="s")
    )
    assert message.startswith("cannot write the profile: ")
    code, _ = await failure(client.raw("/tensorflow.ProfilerService/Monitor"))
    assert code is C.UNIMPLEMENTED
