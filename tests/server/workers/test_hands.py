"""What runs leave in shared memory for whoever reads it after their process has died, and what makes a suspect."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from embedserve.concurrency.load_pool import LoadPool
from embedserve.servable import Array, ServableId
from embedserve.server.workers.hands import PLACES, TABLE_BYTES, Hands, NotedServable, Places, Suspect, Suspects
from embedserve.testing import FakeLoader, Gate

POISON = Suspect("m", 3, "serving_default", "x float32[?]")


@pytest.fixture
def hands() -> Hands:
    return Hands(2)


def servable(hands: Hands, gate: Gate | None = None, worker: int = 1) -> NotedServable:
    loader = FakeLoader(gate=gate)
    loader.id = ServableId("m", 3)
    return NotedServable(loader.load(), loader.id, Places(hands, worker))


def rows(count: int) -> dict[str, Array]:
    return {"x": np.zeros(count, np.float32)}


async def test_a_run_is_written_down_while_it_lasts_and_by_its_own_worker(hands: Hands) -> None:
    gate = Gate()
    noted = servable(hands, gate)
    other = Hands(2, hands.fd)  # As the supervisor has it.
    pool = LoadPool(asyncio.get_running_loop(), 2)
    runs = [asyncio.create_task(pool.run(noted.run, "serving_default", rows(n))) for n in (1, 2)]
    while gate.waiting < 2:
        await asyncio.sleep(0)
    assert other.take(0) == []
    assert other.take(1) == [POISON, POISON], "rows do not tell requests apart: others share the run"
    assert other.take(1) == [], "what was taken is gone"
    gate.open()
    await asyncio.gather(*runs)
    gate.close()
    last = asyncio.create_task(pool.run(noted.run, "serving_default", rows(1)))
    while gate.waiting < 1:
        await asyncio.sleep(0)
    gate.open()
    await last
    assert other.take(1) == []
    pool.close()


def test_a_run_that_fails_is_not_in_hand_any_more(hands: Hands) -> None:
    noted = servable(hands)
    with pytest.raises(KeyError):
        noted.run("no such signature", rows(1))
    noted.run("serving_default", rows(1))
    assert hands.take(1) == []


def test_more_runs_than_places_are_run_all_the_same(hands: Hands) -> None:
    noted = servable(hands)
    noted._free.clear()
    assert noted.run("serving_default", rows(1))["y"].shape == (1,)
    assert hands.take(1) == []


def test_a_table_that_is_full_leaves_the_rest_unwritten(hands: Hands) -> None:
    places = Places(hands, 0)
    long = [POISON._replace(inputs=f"{number:060000d}") for number in range(TABLE_BYTES // 60_000 + 1)]
    words = [places.describe(each) for each in long]
    assert words[-1] == 0
    assert 0 not in words[:-1]
    places.words[0], places.words[1] = words[1], words[0]
    assert hands.take(0) == [long[1], long[0]]
    assert places.describe(POISON._replace(inputs="x" * 70_000)) == 0
    assert places.describe(long[0]) == words[0], "the same description is written once"


def test_a_new_process_finds_empty_places(hands: Hands) -> None:
    places = Places(hands, 0)
    places.words[3] = places.describe(POISON)
    assert len(Places(hands, 0).free) == PLACES
    assert hands.take(0) == []


def test_the_servable_is_otherwise_itself(hands: Hands) -> None:
    noted = servable(hands)
    assert noted.kind == "fake"
    assert "serving_default" in noted.signatures


def test_the_second_death_makes_a_suspect_which_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    suspects = Suspects()
    neighbour = POISON._replace(model="n")
    suspects.died([POISON, neighbour])
    assert suspects.listed() == ()
    assert "Suspect" not in caplog.text
    with caplog.at_level(logging.ERROR, "embedserve"):
        suspects.died([POISON, POISON])
        suspects.died([POISON])
    assert suspects.listed() == ((POISON, 3),)
    assert caplog.text.count("Suspect: ") == 1
    assert "model m, version 3, signature serving_default, inputs x float32[?]" in caplog.text
