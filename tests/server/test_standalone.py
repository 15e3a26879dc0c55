"""The standalone server's event loop and garbage collector."""

from __future__ import annotations

import gc

from embedserve.server.standalone import YOUNG_OBJECTS, run


def test_a_process_collects_after_batches_and_leaves_the_collector_as_it_was() -> None:
    async def life() -> tuple[int, int, int]:
        return gc.get_threshold()

    before = gc.get_threshold()
    assert run(life()) == (YOUNG_OBJECTS, *before[1:])
    assert gc.get_threshold() == before
