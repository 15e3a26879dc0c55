"""Versions that cannot be loaded or warmed up, and entries that fail: what goes on, and what is said."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedserve import (
    Code,
    LoadError,
    ModelConfig,
    ModelRegistry,
    RetryPolicy,
    ServableNotFoundError,
    SpecificVersions,
    StartError,
    State,
)
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.integration.conftest import QUICK, SavedModel, deploy, overwrite
from tests.integration.waiting import state_of, status_of, until, until_state
from tests.support import saved_models

pytestmark = pytest.mark.slow

Line = Callable[[int], Path]

ONCE = {**QUICK, "retry": RetryPolicy(max_retries=0)}


@pytest.fixture(scope="session")
def needs_missing_op(saved: SavedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole SavedModel with an operation that this TensorFlow does not have."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel as Proto

    path = tmp_path_factory.mktemp("missing") / "1"
    shutil.copytree(saved("dense"), path)
    file = path / "saved_model.pb"
    proto = Proto.FromString(file.read_bytes())
    for function in proto.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            node.op = "SimpleMLInferenceOp" if node.op == "MatMul" else node.op
    for node in proto.meta_graphs[0].graph_def.node:
        node.op = "SimpleMLInferenceOp" if node.op == "StatefulPartitionedCall" else node.op
    file.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture(scope="session")
def fails_warm_up(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose recorded warm-up request asks for a signature that it does not have."""
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    path = tmp_path_factory.mktemp("cold") / "1"
    shutil.copytree(line(9), path)
    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = "not_there"
    return saved_models.add_warmup_requests(path, [log])


@pytest.mark.parametrize(
    ("broken", "code", "words"),
    [
        (
            "needs_missing_op",
            Code.NOT_FOUND,
            [
                "Op type not registered 'SimpleMLInferenceOp'",
                "pip package tensorflow-decision-forests",
                "preload_modul",
            ],
        ),
        ("fails_warm_up", Code.FAILED_PRECONDITION, ['"not_there" not found', "tf_serving_warmup_requests"]),
    ],
)
async def test_a_version_that_fails_leaves_the_old_one_and_says_what_to_do(
    models: Path,
    line: Line,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    broken: str,
    code: Code,
    words: list[str],
) -> None:
    deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **ONCE) as registry:
        target = deploy(request.getfixturevalue(broken), models / "m" / "2")
        await until_state(registry, "m", 2, State.END)
        assert (await registry.predict("m", [[0.0]]))["y"].tolist() == [[1.0]]
        status = status_of(registry, "m", 2)
        assert status is not None
        assert (status.code, status.path) == (code, str(target))
        for said in (status.message, caplog.text):
            assert all(word in said for word in [*words, str(target)]), said
        assert registry.readiness() == {"m": None}
        with pytest.raises(ServableNotFoundError, match=r"Specific\(m, 2\)"):
            await registry.predict("m", [[0.0]], version=2)
        # New contents clear the failure, and what failed before counts no more.
        overwrite(line(2), target)
        shutil.rmtree(target / "assets.extra", ignore_errors=True)
        await until_state(registry, "m", 2, State.AVAILABLE)
        assert (await registry.predict("m", [[0.0]]))["y"].tolist() == [[2.0]]
        status = status_of(registry, "m", 2)
        assert status is not None
        assert (status.code, status.message) == (Code.OK, "")


async def test_an_overwrite_that_fails_keeps_the_generation_before_it(
    models: Path, line: Line, needs_missing_op: Path
) -> None:
    target = deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **ONCE) as registry:
        overwrite(needs_missing_op, target)
        await until(registry, lambda: "new contents failed to load" in registry.status()["m"][0].note)
        assert "SimpleMLInferenceOp" in registry.status()["m"][0].note
        assert state_of(registry, "m", 1) is State.AVAILABLE
        assert (await registry.predict("m", [[0.0]], version=1))["y"].tolist() == [[1.0]]


async def test_a_failed_load_is_tried_again_for_as_long_as_it_is_wanted(
    models: Path, line: Line, needs_missing_op: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "embedserve")
    deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **QUICK) as registry:
        target = deploy(needs_missing_op, models / "m" / "2")
        await until(registry, lambda: "Retrying of Loading servable: {name: m version: 2} retry: 3" in caplog.text)
        assert state_of(registry, "m", 2) is State.LOADING
        shutil.rmtree(target)
        await until_state(registry, "m", 2, State.END)
        assert (await registry.predict("m", [[0.0]]))["y"].tolist() == [[1.0]]


async def test_entering_ends_as_soon_as_no_model_can_still_succeed(
    models: Path, line: Line, needs_missing_op: Path
) -> None:
    """It would wait for 300 s, and the loads are tried again for ever."""
    deploy(line(1), models / "good" / "1")
    deploy(needs_missing_op, models / "bad" / "1")
    registry = ModelRegistry(models, start_requires="all", **QUICK)
    with pytest.raises(StartError) as raised:
        await registry.start()
    assert str(raised.value).startswith(
        "1 of 2 model(s) did not become available: bad: version 1 is LOADING: NOT_FOUND"
    )
    assert "tensorflow-decision-forests" in str(raised.value)
    assert "good: " not in str(raised.value)
    assert not registry.started
    assert [status.state for statuses in registry.status().values() for status in statuses] == [State.END, State.END]
    with pytest.raises(StartError, match="bad: version 1"), registry:
        pass
    shutil.rmtree(models / "bad")
    async with registry:
        assert (await registry.predict("good", [[0.0]]))["y"].tolist() == [[1.0]]


async def test_a_start_serves_without_what_cannot_be_had_and_goes_on_trying(
    models: Path, line: Line, needs_missing_op: Path
) -> None:
    deploy(line(1), models / "good" / "1")
    bad = deploy(needs_missing_op, models / "bad" / "1")
    (models / "torn" / "1").mkdir(parents=True)
    async with ModelRegistry(models, **QUICK) as registry:
        assert (await registry.predict("good", [[0.0]]))["y"].tolist() == [[1.0]]
        assert registry.unready() is None
        readiness = registry.readiness()
        assert readiness["good"] is None
        assert "SimpleMLInferenceOp" in (readiness["bad"] or "")
        assert "saved_model.pb" in (readiness["torn"] or "")
        shutil.rmtree(bad)
        deploy(line(2), models / "bad" / "1")
        deploy(line(3), models / "torn" / "2")
        await until(registry, lambda: set(registry.readiness().values()) == {None})
        assert (await registry.predict("bad", [[0.0]]))["y"].tolist() == [[2.0]]


async def test_configured_models_are_all_needed_unless_any_will_do(models: Path, line: Line) -> None:
    deploy(line(1), models / "good" / "1")
    configs = [ModelConfig(name=name, base_path=models / name) for name in ("good", "missing")]
    short = {**QUICK, "start_timeout": 0.5}
    with pytest.raises(StartError, match=r"1 of 2 model.* missing: .*Could not find base path"):
        async with ModelRegistry(models=configs, **short):
            pass
    async with ModelRegistry(models=configs, start_requires="any", **QUICK) as registry:
        assert registry.unready() is None
        deploy(line(2), models / "missing" / "1")
        await until(registry, lambda: registry.readiness()["missing"] is None)


async def test_a_model_that_is_still_loading_is_waited_for_where_any_will_do_until_the_time_is_up() -> None:
    gate = Gate()
    found = {"good": {1: FakeLoader()}, "slow": {1: FakeLoader(load_gate=gate)}}
    registry = FakeRegistry(found, start_requires="any", start_timeout=0.5)
    async with registry:
        assert registry.readiness()["slow"] == "version 1 is LOADING"
        assert registry.unready() is None
        gate.open()
    gate.close()
    starting = asyncio.create_task(FakeRegistry(found, start_requires="any").start())
    while not gate.waiting:
        await asyncio.sleep(0)
    assert not starting.done()
    starting.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_nothing_that_appears_after_the_start_makes_the_process_unready(
    models: Path, line: Line, needs_missing_op: Path
) -> None:
    deploy(line(1), models / "m" / "1")
    async with ModelRegistry(models, **ONCE) as registry:
        (models / "new" / "1").mkdir(parents=True)
        deploy(needs_missing_op, models / "other" / "1")
        deploy(needs_missing_op, models / "m" / "2")
        seen: set[str | None] = set()

        def told() -> bool:
            seen.add(registry.unready())
            unready = {name for name, reason in registry.readiness().items() if reason is not None}
            return unready == {"new", "other"} and state_of(registry, "m", 2) is State.END

        await until(registry, told)
        shutil.rmtree(models / "m")
        await until(registry, lambda: "m" not in registry.models())
        assert seen | {registry.unready()} == {None}


async def test_a_version_policy_with_a_slip_changes_nothing_and_unloads_where_that_is_asked_for(
    models: Path, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    deploy(line(1), models / "m" / "1")
    config = ModelConfig(name="m", base_path=models / "m")
    slip = config.model_copy(update={"version_policy": SpecificVersions(versions=(9,))})
    async with ModelRegistry(models=[config], **QUICK) as registry:
        await registry.reconfigure([slip])
        assert (await registry.predict("m", [[0.0]]))["y"].tolist() == [[1.0]]
        assert "names only versions that are not there" in caplog.text
    async with ModelRegistry(models=[config], absent_versions="unload", **QUICK) as registry:
        await registry.reconfigure([slip])
        await until_state(registry, "m", 1, State.END)


async def test_entering_ends_at_its_time_limit_with_the_reason_for_each_model(models: Path, line: Line) -> None:
    torn = deploy(line(1), models / "torn" / "1")
    (torn / "saved_model.pb").unlink()
    (models / "empty").mkdir()
    names = ("torn", "empty", "missing")
    configs = [ModelConfig(name=name, base_path=models / name) for name in names]
    with pytest.raises(StartError) as raised:
        async with ModelRegistry(models=configs, **{**QUICK, "start_timeout": 0.5}):
            pass
    reasons = dict(part.split(": ", 1) for part in str(raised.value).split("available: ", 1)[1].split("; "))
    assert reasons.keys() == set(names)
    assert "saved_model.pb" in reasons["torn"]
    assert "No versions of servable empty found" in reasons["empty"]
    assert f"Could not find base path {models / 'missing'}" in reasons["missing"]


async def test_a_model_that_still_loads_is_waited_for_though_another_is_hopeless() -> None:
    gate = Gate()
    found = {"bad": {1: FakeLoader(failures=-1)}, "slow": {1: FakeLoader(load_gate=gate)}}
    registry = FakeRegistry(found, retry=RetryPolicy(max_retries=0))
    starting = asyncio.create_task(registry.start())
    while not gate.waiting or state_of(registry, "bad", 1) is not State.END:
        await asyncio.sleep(0)
    assert not starting.done()
    gate.open()
    with pytest.raises(StartError, match=r"^1 of 2 .* bad: version 1 is END: DATA_LOSS"):
        await starting


async def test_a_pin_on_a_version_that_fails_changes_nothing(models: Path, line: Line, needs_missing_op: Path) -> None:
    deploy(needs_missing_op, models / "m" / "1")
    deploy(line(2), models / "m" / "2")
    async with ModelRegistry(models, **QUICK) as registry:
        with pytest.raises(LoadError, match=r"version 1 of model m did not become available: .*SimpleMLInferenceOp"):
            await registry.pin("m", 1)
        with pytest.raises(ServableNotFoundError, match=f"Could not find version 7 of model m under {models / 'm'}"):
            await registry.pin("m", 7)
        assert (await registry.predict("m", [[0.0]]))["y"].tolist() == [[2.0]]
        await until_state(registry, "m", 1, State.END)
        deploy(line(3), models / "m" / "3")
        await until_state(registry, "m", 3, State.AVAILABLE)


@pytest.mark.parametrize("transition", ["availability", "resource"])
async def test_a_pin_that_fails_takes_nothing_away_while_it_is_tried(transition: Any) -> None:
    serving = FakeLoader()
    found = {"m": {1: FakeLoader(failures=-1), 2: serving}}
    async with FakeRegistry(found, transition=transition, retry=RetryPolicy(max_retries=0)) as registry:
        with pytest.raises(LoadError):
            await registry.pin("m", 1)
        assert (serving.loads, serving.unloads) == (1, 0)
        assert (await registry.predict("m", [1.0]))["y"].tolist() == [12.0]
