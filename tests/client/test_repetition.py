"""What is tried again, where and when; and what is never repeated."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedserve_client import (
    AsyncClient,
    Client,
    Code,
    DeadlineExceededError,
    InvalidInputError,
    Retry,
    ServingError,
)
from embedserve_client.exchange import RESTING, Addresses, Exchange, Failure, Pause, Reply, Request, attempts
from tests.client.serving import Act, Scripted

X = {"x": np.zeros(1, np.float32)}
UNAVAILABLE: Act = "unavailable"
QUICK = Retry(initial=0.001)
REFUSED = Failure(ServingError("no", code=Code.UNAVAILABLE), repeatable=True)


def steps(outcomes: list[Reply | Failure], count: int = 1, **options: Any) -> tuple[list[Any], Any]:
    """The addresses and pauses of a call whose exchanges end with the outcomes, and its result or error."""
    flow = attempts(
        options.pop("addresses", None) or Addresses(count),
        count,
        options.pop("retry", Retry()),
        options.pop("deadline", None),
        Request("/", []),
        draw=lambda: 0.5,
    )
    seen: list[Any] = []
    send: Callable[[Any], Any] = flow.send
    given: Any = None
    try:
        while True:
            step = send(given)
            send, given = flow.send, None
            if isinstance(step, Pause):
                seen.append(f"pause {step.seconds:g}")
            else:
                assert isinstance(step, Exchange)
                seen.append(step.address)
                outcome = outcomes.pop(0)
                send, given = (flow.throw, outcome) if isinstance(outcome, Failure) else (flow.send, outcome)
    except StopIteration as stop:
        return seen, stop.value
    except ServingError as error:
        return seen, error


def test_pauses_grow_and_are_drawn_from_zero_on() -> None:
    seen, error = steps([REFUSED] * 4, retry=Retry(attempts=4, initial=0.1, multiplier=4, maximum=1.0))
    assert seen == [0, "pause 0.05", 0, "pause 0.2", 0, "pause 0.5", 0]
    assert error is REFUSED.error
    assert Retry().pause(0, 0.0) == 0.0


def test_another_address_is_tried_at_once_and_a_pause_comes_after_all_of_them() -> None:
    seen, _ = steps([REFUSED] * 4, count=3)
    assert seen == [0, 1, 2, "pause 0.025", 0]


def test_a_failure_that_the_server_may_have_begun_to_answer_is_not_repeated() -> None:
    seen, error = steps([Failure(ServingError("cut", code=Code.UNAVAILABLE))])
    assert seen == [0]
    assert str(error) == "cut"


def test_no_pause_goes_beyond_the_deadline() -> None:
    deadline = time.monotonic() + 50
    seen, error = steps([REFUSED] * 4, retry=Retry(initial=1000, maximum=1000), deadline=deadline)
    assert seen == [0]
    assert isinstance(error, DeadlineExceededError)
    assert "the last attempt failed: no" in str(error)


def test_addresses_take_turns_and_one_that_could_not_be_reached_comes_last_for_a_while() -> None:
    now = 0.0
    addresses = Addresses(3, clock=lambda: now)
    assert [addresses.choose(()) for _ in range(4)] == [0, 1, 2, 0]
    addresses.unreachable(1)
    assert 1 not in [addresses.choose(()) for _ in range(6)]
    assert addresses.choose((0, 2)) == 1, "the last resort"
    now = RESTING + 1
    assert 1 in [addresses.choose(()) for _ in range(3)]


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"initial": -1}, {"maximum": -0.5}])
def test_a_senseless_repetition_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidInputError):
        Retry(**wrong)


ONE_EACH: list[Act] = ["unavailable", "refuse", "go away", "html"]
REPEATED: list[tuple[Act, ...]] = [*[(act,) for act in ONE_EACH], ("unavailable", "refuse", "go away")]


@pytest.mark.parametrize("script", REPEATED, ids=lambda script: ", ".join(script))
def test_what_the_server_surely_did_not_do_is_sent_again(script: tuple[Act, ...]) -> None:
    with Scripted(*script) as server, Client(server.url, retry=QUICK) as client:
        assert client.predict("m", X) == {}
        assert len(server.calls) == len(script) + 1


@pytest.mark.parametrize(
    ("act", "code", "words"),
    [
        ("close", Code.UNAVAILABLE, "before the answer"),
        ("invalid", Code.INVALID_ARGUMENT, "as scripted!"),
    ],
)
def test_what_the_server_may_have_done_is_not_sent_again(act: Act, code: Code, words: str) -> None:
    with Scripted(act) as server, Client(server.url, retry=QUICK) as client:
        with pytest.raises(ServingError, match=words) as raised:
            client.status("m")
        assert raised.value.code == code
        assert len(server.calls) == 1


def test_the_last_attempts_error_is_raised() -> None:
    with Scripted(*[UNAVAILABLE] * 9) as server, Client(server.url, retry=QUICK) as client:
        with pytest.raises(ServingError, match="as scripted!") as raised:
            client.predict("m", X)
        assert raised.value.code == Code.UNAVAILABLE
        assert len(server.calls) == QUICK.attempts


@pytest.mark.parametrize("script", REPEATED, ids=lambda script: ", ".join(script))
@pytest.mark.may_block
async def test_awaited_calls_are_repeated_alike(script: tuple[Act, ...]) -> None:
    with Scripted(*script) as server:
        async with AsyncClient(server.url, retry=QUICK) as client:
            assert await client.predict("m", X) == {}
        assert len(server.calls) == len(script) + 1


def unused_port() -> int:
    """A port of this machine on which nobody listens while the socket of the test is bound."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_one_dead_address_of_several_costs_no_call(scheme: str, port: int) -> None:
    targets = [f"{scheme}://127.0.0.1:{unused_port()}", f"{scheme}://127.0.0.1:{port}"]
    with Client(targets) as client:
        for _ in range(6):
            assert client.predict("half", [[1.0]], version=1)["y"].tolist() == [[2.5]]
    with Client(targets[:1], retry=QUICK) as client:
        with pytest.raises(ServingError, match="cannot be reached") as raised:
            client.status("half")
        assert raised.value.code == Code.UNAVAILABLE
        assert not client.health()


def test_calls_go_to_the_addresses_in_turn() -> None:
    with Scripted() as first, Scripted() as second, Client([first.url, second.url]) as client:
        for _ in range(6):
            client.predict("m", X)
        assert (len(first.calls), len(second.calls)) == (3, 3)


def test_a_deadline_covers_all_attempts() -> None:
    with Scripted(*[UNAVAILABLE] * 50) as server:
        retry = Retry(attempts=50, initial=0.2, maximum=0.2)
        with Client(server.url, retry=retry, timeout=0.3) as client, pytest.raises(DeadlineExceededError):
            client.predict("m", X)
        assert len(server.calls) < 50
        sent = [int(call["grpc-timeout"][:-1]) for call in server.calls]
        assert sent == sorted(sent, reverse=True), "each attempt is given the time that is left"


def test_a_call_without_an_answer_ends_at_its_deadline_and_the_server_is_told() -> None:
    with Scripted("wait", "answer") as server, Client(server.url) as client:
        with pytest.raises(DeadlineExceededError):
            client.predict("m", X, timeout=0.2)
        assert client.predict("m", X) == {}
        server.wait_for_reset()


def test_a_new_connection_follows_one_that_the_server_closes_in_order() -> None:
    with Scripted("go away later", "go away later") as server, Client(server.url, retry=Retry(attempts=1)) as client:
        for _ in range(3):
            assert client.predict("m", X) == {}
        assert len(server.calls) == 3


def test_threads_share_a_client(port: int) -> None:
    with Client(f"grpc://127.0.0.1:{port}") as client:
        found: dict[int, list[float]] = {}

        def ask(number: int) -> None:
            values = [float(number * 100 + each) for each in range(30)]
            found[number] = [client.predict("half", [[value]], version=1)["y"].item() for value in values]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == {number: [(number * 100 + each) / 2 + 2 for each in range(30)] for number in range(8)}
