"""gRPC channel arguments on the own listener: what has a meaning is followed, the rest is named."""

from __future__ import annotations

import asyncio
import logging
import math

import grpc
import grpc.aio
import pytest

from embedserve.errors import ConfigError
from embedserve.grpc import serve
from embedserve.grpc.transports.channel_arguments import MAX_MESSAGE_BYTES, connection_policy
from embedserve.http.listener import KEEP_ALIVE
from tests.grpc.conftest import Client, Start, answers, failure, predict_request, registry

C = grpc.StatusCode


@pytest.fixture
def transport() -> str:
    return "embedserve"


def test_numbers_and_times_become_limits() -> None:
    policy = connection_policy(
        {
            "grpc.max_concurrent_streams": 7,
            "grpc.max_metadata_size": 1000,
            "grpc.absolute_max_metadata_size": 2000,
            "grpc.max_connection_idle_ms": 1500,
            "grpc.max_connection_age_ms": 2000,
            "grpc.max_connection_age_grace_ms": 2**31 - 1,
            "grpc.max_receive_message_length": -1,
            "grpc.max_send_message_length": 5,
            "grpc.http2.min_recv_ping_interval_without_data_ms": 10_000,
            "grpc.http2.max_ping_strikes": 1,
            "grpc.so_reuseport": 1,
        }
    )
    limits = policy.limits
    assert (limits.max_streams, limits.max_header_bytes, limits.ping_interval, limits.max_ping_strikes) == (
        7,
        2000,
        10.0,
        1,
    )
    assert (policy.keep_alive, policy.ages) == (1.5, (2.0, math.inf))
    assert (policy.max_receive_bytes, policy.max_send_bytes, policy.shared) == (MAX_MESSAGE_BYTES, 5, True)
    assert connection_policy({}).keep_alive == KEEP_ALIVE


def test_arguments_without_a_meaning_are_named_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    connection_policy({"made.up": "x", "grpc.max_connection_age_ms": 1, "grpc.lb_policy_name": "grpclb"})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "ignores these channel arguments: grpc.lb_policy_name, made.up; grpcio's server has them" in record.message


def test_an_impossible_value_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match="max_streams is 0, expected 1 to"):
        connection_policy({"grpc.max_concurrent_streams": 0})


async def test_a_message_over_the_bound_is_refused_both_ways(start: Start) -> None:
    client = await start(registry(), channel_arguments=[("grpc.max_receive_message_length", 200)])
    assert await answers(client)
    code, _ = await failure(client.prediction.Predict(predict_request(x=[1] * 1000)))
    assert code is C.RESOURCE_EXHAUSTED
    client = await start(registry(), channel_arguments=[("grpc.max_send_message_length", 10)])
    code, message = await failure(client.prediction.Predict(predict_request(x=[1])))
    assert (code, message.startswith("Sent message larger than max")) == (C.RESOURCE_EXHAUSTED, True)


async def test_a_connection_over_its_age_ends_in_good_order(start: Start) -> None:
    client = await start(registry(), channel_arguments=[("grpc.max_connection_age_ms", 50)])
    # A call without a pause between two: the connections that end meanwhile lose none.
    channel = client.channel
    states = set()
    async with asyncio.timeout(30):
        while grpc.ChannelConnectivity.IDLE not in states:
            assert await answers(client)
            states.add(channel.get_state())


async def test_values_that_only_grpcio_has_choose_grpcio_or_are_refused() -> None:
    async with registry() as reg:
        serving = serve(reg, host="127.0.0.1", port=0, compression="deflate")
        async with serving as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert await answers(Client(server, channel, reg))
        with pytest.raises(ConfigError, match=r"compression='deflate' needs transport=\"grpcio\""):
            async with serve(reg, port=0, compression="deflate", transport="embedserve"):
                pass
        with pytest.raises(ConfigError, match="transport is 'x', expected one of embedserve, grpcio"):
            async with serve(reg, port=0, transport="x"):  # type: ignore[arg-type]
                pass
