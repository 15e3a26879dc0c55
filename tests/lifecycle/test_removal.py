"""What becomes of a model's load when the model leaves the configuration meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from embedserve import ModelConfig, State
from embedserve.testing import FakeLoader, FakeRegistry, Gate


async def test_a_model_that_is_removed_while_it_loads_ends_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    loader = FakeLoader(load_gate=gate)
    kept = ModelConfig(name="kept", base_path="/fake/kept")
    registry = FakeRegistry({"kept": {1: FakeLoader()}, "m": {1: loader}}, start_requires="any")
    await registry.start(wait=False)
    try:
        while not gate.waiting:
            await asyncio.sleep(0)
        await registry.reconfigure([kept])
        gate.open()
        assert registry._runtime is not None
        assert await registry._runtime.monitor.wait_until(
            lambda: registry.status("m")["m"][0].state is State.END, 30
        ), registry.status()
    finally:
        gate.open()
        await registry.aclose()
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]
