"""The promises of the registry, over fake versions: swaps, failures, handles, loops, threads, pins and labels."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve import (
    AllVersions,
    Code,
    ConfigError,
    DeadlineExceededError,
    InvalidInputError,
    InvalidModelSpecError,
    LoadError,
    ModelConfig,
    ModelRegistry,
    NotReadyError,
    RegistryStateError,
    RetryPolicy,
    ServableNotFoundError,
    ServingError,
    SignatureNotFoundError,
    StartError,
    State,
)
from embedserve.testing import FakeLoader, FakeRegistry, Gate, fake_signature

X = {"x": np.array([1.0, 2.0], np.float32)}
FAST = RetryPolicy(initial=0.01, maximum=0.01)


async def until(registry: ModelRegistry, name: str, version: int, state: State) -> None:
    """Wait for a state, as `Monitor.wait_until` tells of every change."""
    assert registry._runtime is not None
    monitor = registry._runtime.monitor

    def reached() -> bool:
        return any(s.version == version and s.state is state for s in monitor.snapshot.get(name, ()))

    assert await monitor.wait_until(reached, 20), registry.status()


async def test_predicts_with_the_latest_version_or_the_one_asked_for() -> None:
    models = [ModelConfig(name="m", base_path="/fake/m", version_policy=AllVersions())]
    async with FakeRegistry({"m": {1: FakeLoader(), 2: FakeLoader()}}, models=models) as registry:
        await until(registry, "m", 1, State.AVAILABLE)
        await until(registry, "m", 2, State.AVAILABLE)
        assert (await registry.predict("m", X))["y"].tolist() == [12.0, 22.0]
        assert (await registry.predict("m", X, version=1))["y"].tolist() == [11.0, 21.0]
        await registry.set_label("m", "stable", 1)
        assert (await registry.predict("m", X, label="stable"))["y"].tolist() == [11.0, 21.0]
        with pytest.raises(InvalidModelSpecError, match="Unrecognized servable version label: canary"):
            await registry.predict("m", X, label="canary")
        with pytest.raises(ServingError) as caught:
            await registry.set_label("m", "stable", 9)
        assert caught.value.code is Code.FAILED_PRECONDITION


async def test_an_unknown_model_is_answered_with_a_near_one() -> None:
    async with FakeRegistry({"Digits": {1: FakeLoader()}, "other": {1: FakeLoader()}}) as registry:
        with pytest.raises(ServableNotFoundError, match=r"Latest\(digit\), did you mean 'Digits'\?; models served:"):
            await registry.predict("digit", X)


@pytest.mark.parametrize("timeout", [0, -1, -0.5, -math.inf])
async def test_a_timeout_that_is_over_says_so(timeout: float) -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        with pytest.raises(DeadlineExceededError, match=f"no time is left with a timeout of {timeout:g} s"):
            await registry.predict("m", X, timeout=timeout)


async def test_wrong_requests_name_what_came_and_what_was_expected() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        with pytest.raises(
            ServableNotFoundError, match=r"Servable not found for request: Latest\(n\).*models served: m"
        ):
            await registry.predict("n", X)
        with pytest.raises(ServableNotFoundError, match=r"Specific\(m, 7\); available versions of 'm': 1"):
            await registry.predict("m", X, version=7)
        with pytest.raises(InvalidModelSpecError, match="ModelSpec has no name specified"):
            await registry.predict("", X)
        with pytest.raises(SignatureNotFoundError, match='Serving signature key "s" not found'):
            await registry.predict("m", X, signature_name="s")
        with pytest.raises(InvalidInputError, match="input size does not match signature"):
            await registry.predict("m", {})
        with pytest.raises(InvalidInputError, match="Signature input alias: x"):
            await registry.predict("m", {"z": [1.0]})
        with pytest.raises(InvalidInputError, match=r"Expects arg\[0\] to be float but string is provided"):
            await registry.predict("m", {"x": ["a"]})
        with pytest.raises(InvalidInputError, match=r"has shape \[1,1\], expected \[\?\]"):
            await registry.predict("m", {"x": [[1.0]]})
        with pytest.raises(InvalidInputError, match="output tensor alias not found in signature: q"):
            await registry.predict("m", X, output_filter=["q"])
        with pytest.raises(InvalidModelSpecError, match="a version or a label, not both"):
            await registry.predict("m", X, version=1, label="l")


@pytest.mark.parametrize("batching", ["auto", False])
async def test_hot_swap_loses_no_request_and_mixes_no_versions(batching: Any) -> None:
    loaders = {n: FakeLoader() for n in range(1, 12)}
    async with FakeRegistry({"m": {1: loaders[1]}}, batching=batching) as registry:
        seen: set[int] = set()
        stop = False

        async def client() -> int:
            count = 0
            while not stop:
                async with registry.acquire("m") as handle:
                    out = await handle.predict(X)
                    assert (out["y"] % 10 == handle.version % 10).all()
                    seen.add(handle.version)
                count += 1
            return count

        clients = [asyncio.create_task(client()) for _ in range(16)]
        for n in range(2, 10):
            await registry.put("m", n, loaders[n])
            await until(registry, "m", n, State.AVAILABLE)
            await until(registry, "m", n - 1, State.END)
            assert not loaders[n - 1].loaded
        stop = True
        assert sum(await asyncio.gather(*clients)) > 0
        assert seen >= {2, 9}
    assert not any(loader.loaded for loader in loaders.values())


async def test_failed_load_keeps_the_old_version_serving_and_is_retried() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}, retry=FAST) as registry:
        await registry.put("m", 2, FakeLoader(failures=3))
        await until(registry, "m", 2, State.LOADING)
        assert (await registry.predict("m", X))["y"].tolist() == [11.0, 21.0]
        await until(registry, "m", 2, State.AVAILABLE)
        assert (await registry.predict("m", X))["y"].tolist() == [12.0, 22.0]


async def test_retries_end_where_the_policy_says_and_the_error_is_in_status() -> None:
    retry = RetryPolicy(max_retries=1, initial=0.01, maximum=0.01)
    broken = FakeLoader(failures=-1)
    async with FakeRegistry({"m": {1: FakeLoader()}}, retry=retry) as registry:
        await registry.put("m", 2, broken)
        await until(registry, "m", 2, State.END)
        assert broken.loads == 2
        status = registry.status("m")["m"]
        assert [(s.version, s.state, s.code) for s in status] == [
            (2, State.END, Code.DATA_LOSS),
            (1, State.AVAILABLE, Code.OK),
        ]
        assert "told to fail" in status[0].message
        # New contents clear the failure and its retries.
        await registry.put("m", 2, FakeLoader())
        await until(registry, "m", 2, State.AVAILABLE)


async def test_failed_warm_up_is_a_failed_load() -> None:
    loader = FakeLoader(warmup_failures=1)
    async with FakeRegistry({"m": {1: loader}}, retry=FAST) as registry:
        assert loader.loads == 2
        assert loader.unloads == 1
        assert len(loader.warm_threads) == registry.options.num_batch_threads
    cold = FakeLoader(warmup_failures=1)
    async with FakeRegistry({"m": {1: cold}}, warmup="none"):
        assert cold.loads == 1
        assert not cold.warm_threads


async def test_a_version_that_changes_while_it_loads_is_thrown_away() -> None:
    loader = FakeLoader(changes_while_loading=1)
    async with FakeRegistry({"m": {1: loader}}, retry=FAST):
        assert loader.loads == 2
        assert loader.unloads == 1


async def test_in_place_overwrite_is_a_new_generation_without_a_gap() -> None:
    first, second = FakeLoader(), FakeLoader(lambda version, inputs: {"y": inputs["x"] * 0}, load_gate=Gate())
    async with FakeRegistry({"m": {1: first}}) as registry:
        await registry.put("m", 1, second)
        assert (await registry.predict("m", X, version=1))["y"].tolist() == [11.0, 21.0]
        assert first.loaded
        assert second.load_gate is not None
        second.load_gate.open()
        assert registry._runtime is not None
        await registry._runtime.monitor.wait_until(lambda: registry.status("m")["m"][0].generation == 2, 20)
        assert (await registry.predict("m", X, version=1))["y"].tolist() == [0.0, 0.0]
        assert [s.version for s in registry.status("m")["m"]] == [1]
    assert not first.loaded


async def test_a_model_that_reads_files_at_run_time_is_not_reloaded_in_place(caplog: pytest.LogCaptureFixture) -> None:
    first, second = FakeLoader(reads_files_at_run_time=True), FakeLoader()
    async with FakeRegistry({"m": {1: first}}) as registry:
        await registry.put("m", 1, second)
        assert second.loads == 0
        assert first.loaded
        assert "reads files at run time" in caplog.text
        await registry.put("m", 2, FakeLoader())
        await until(registry, "m", 2, State.AVAILABLE)


async def test_old_version_is_unloaded_only_when_its_last_handle_is_released() -> None:
    old = FakeLoader()
    async with FakeRegistry({"m": {1: old}}) as registry:
        async with registry.acquire("m") as handle:
            await registry.put("m", 2, FakeLoader())
            await until(registry, "m", 1, State.UNLOADING)
            assert (await registry.predict("m", X))["y"].tolist() == [12.0, 22.0]
            assert (await handle.predict(X))["y"].tolist() == [11.0, 21.0]
            assert old.loaded
        await until(registry, "m", 1, State.END)
        assert not old.loaded
        with pytest.raises(RegistryStateError, match="released"):
            await handle.predict(X)


async def test_a_removed_version_and_a_removed_model_are_unloaded() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}, "n": {1: FakeLoader()}}) as registry:
        await registry.remove("m", 1)
        await until(registry, "m", 1, State.END)
        with pytest.raises(ServableNotFoundError):
            await registry.predict("m", X)
        await registry.reconfigure([ModelConfig(name="m", base_path="/fake/m")], wait=False)
        await until(registry, "n", 1, State.END)
        assert registry.models() == ("m",)


async def test_resource_preserving_unloads_before_it_loads() -> None:
    first, second = FakeLoader(), FakeLoader()
    async with FakeRegistry({"m": {1: first}}, transition="resource") as registry:
        async with registry.acquire("m"):
            await registry.put("m", 2, second)
            await until(registry, "m", 1, State.UNLOADING)
            assert second.loads == 0
        await until(registry, "m", 2, State.AVAILABLE)
        assert not first.loaded


async def test_pin_rolls_back_and_unpin_goes_forward_again() -> None:
    async with FakeRegistry({"m": {1: FakeLoader(), 2: FakeLoader()}}) as registry:
        assert (await registry.predict("m", X))["y"].tolist() == [12.0, 22.0]
        await registry.pin("m", 1)
        assert (await registry.predict("m", X))["y"].tolist() == [11.0, 21.0]
        await registry.put("m", 3, FakeLoader())
        assert (await registry.predict("m", X))["y"].tolist() == [11.0, 21.0]
        await registry.unpin("m")
        assert (await registry.predict("m", X))["y"].tolist() == [13.0, 23.0]


async def test_several_versions_are_pinned_all_or_none() -> None:
    loaders = {1: FakeLoader(), 2: FakeLoader(failures=-1), 3: FakeLoader(), 4: FakeLoader()}
    async with FakeRegistry({"m": loaders}, retry=FAST) as registry:
        with pytest.raises(LoadError, match="version 2 of model m"):
            await registry.pin("m", 1, 2)
        assert (await registry.predict("m", X))["y"].tolist() == [14.0, 24.0]
        await registry.pin("m", 3, 1)
        assert (await registry.predict("m", X))["y"].tolist() == [13.0, 23.0]
        assert (await registry.predict("m", X, version=1))["y"].tolist() == [11.0, 21.0]
        await until(registry, "m", 4, State.END)


async def test_a_pin_that_fails_changes_nothing() -> None:
    async with FakeRegistry({"m": {1: FakeLoader(failures=-1), 2: FakeLoader()}}, retry=FAST) as registry:
        with pytest.raises(LoadError, match="version 1 of model m did not become available"):
            await registry.pin("m", 1)
        with pytest.raises(ServableNotFoundError, match="Could not find version 7 of model m"):
            await registry.pin("m", 7)
        with pytest.raises(ServableNotFoundError, match="Could not find model 'q'"):
            await registry.pin("q", 7)
        assert (await registry.predict("m", X))["y"].tolist() == [12.0, 22.0]
        await registry.put("m", 3, FakeLoader())
        await until(registry, "m", 3, State.AVAILABLE)


async def test_reconfigure_adds_removes_and_reports_failures() -> None:
    found = {"m": {1: FakeLoader()}, "n": {1: FakeLoader()}, "bad": {4: FakeLoader(failures=-1)}}
    m, n, bad = (ModelConfig(name=name, base_path=f"/fake/{name}") for name in found)
    async with FakeRegistry(found, models=[m], retry=FAST) as registry:
        await registry.reconfigure([n, m])
        assert (await registry.predict("n", X))["y"].tolist() == [11.0, 21.0]
        with pytest.raises(ConfigError, match="Illegal to list model m multiple times"):
            await registry.reconfigure([m, m])
        with pytest.raises(
            ServingError, match=r"1 model\(s\) did not become available: \{\{name: bad version: 4\}"
        ) as e:
            await registry.reconfigure([m, bad])
        assert e.value.code is Code.UNKNOWN
        await until(registry, "n", 1, State.END)
        labelled = m.model_copy(update={"version_labels": {"canary": 2}})
        with pytest.raises(ServingError, match="Request to assign label to version 2 of model m"):
            await registry.reconfigure([labelled])


async def test_a_model_that_never_comes_does_not_keep_the_next_configuration_waiting() -> None:
    m, none = (ModelConfig(name=name, base_path=f"/fake/{name}") for name in ("m", "none"))
    async with FakeRegistry({"m": {1: FakeLoader()}, "none": {}}, models=[m]) as registry:
        stuck = asyncio.create_task(registry.reconfigure([m, none]))
        while "none" not in registry.readiness():
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await registry.reconfigure([m])
            with pytest.raises(ServingError, match=r"\{name: none\} due to error: ABORTED: a later configuration"):
                await stuck


async def test_entering_fails_with_the_reason_per_model() -> None:
    found = {"good": {1: FakeLoader()}, "bad": {1: FakeLoader(failures=-1)}}
    registry = FakeRegistry(found, retry=FAST)
    with pytest.raises(StartError, match="bad: version 1 is LOADING: DATA_LOSS: the fake loader was told to fail"):
        async with registry:
            pass
    assert not found["good"][1].loaded
    assert not registry.started
    empty = FakeRegistry({"none": {}}, start_timeout=0.05)
    with pytest.raises(StartError, match="none: No versions of servable none found"):
        async with empty:
            pass


async def test_started_without_waiting_it_becomes_ready_later() -> None:
    gate = Gate()
    registry = FakeRegistry({"m": {1: FakeLoader(load_gate=gate)}})
    await registry.start(wait=False)
    assert "LOADING" in (registry.readiness()["m"] or "")
    gate.open()
    await registry.wait_until_ready()
    assert registry.readiness() == {"m": None}
    registry.begin_drain()
    assert registry.draining
    await registry.predict("m", X)
    await registry.aclose()


async def test_it_can_be_entered_again_but_not_twice() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    for _ in range(2):
        async with registry:
            await registry.predict("m", X)
            with pytest.raises(RegistryStateError, match="entered already"):
                await registry.start()
        with pytest.raises(NotReadyError, match=r"lifespan=registry\.lifespan"):
            await registry.predict("m", X)
    assert registry.status("m")["m"][0].state is State.END


def test_plain_with_serves_any_thread() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    for _ in range(2):
        with registry, ThreadPoolExecutor(8) as threads:
            outs = list(threads.map(lambda i: registry.predict_sync("m", {"x": [float(i)]})["y"][0], range(50)))
            assert outs == [i * 10.0 + 1 for i in range(50)]
            with registry.acquire_sync("m") as handle:
                assert handle.version == 1
                assert handle.predict_sync([3.0])["y"].tolist() == [31.0]
            assert registry.statistics().in_flight.keys() == {("m", 1)}
            with pytest.raises(DeadlineExceededError):
                registry.predict_sync("m", X, timeout=-1.0)


async def test_a_sync_call_on_its_own_loop_is_refused() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        with pytest.raises(RegistryStateError, match="would wait for itself"):
            registry.predict_sync("m", X)
        out = await asyncio.to_thread(registry.predict_sync, "m", X)
        assert out["y"].tolist() == [11.0, 21.0]


async def test_calls_from_another_loop_are_bridged_and_their_cancellation_too() -> None:
    gate = Gate(opened=True)
    loader = FakeLoader(gate=gate)
    async with FakeRegistry({"m": {1: loader}}, warmup="none") as registry:

        async def elsewhere() -> None:
            out = await registry.predict("m", X)
            assert out["y"].tolist() == [11.0, 21.0]
            async with registry.acquire("m") as handle:
                assert (await handle.predict(X))["y"].tolist() == [11.0, 21.0]
            gate.close()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await registry.predict("m", X)

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert registry._runtime is not None
        run_pool = registry._runtime._run_pool
        while run_pool.busy:  # The cancelled run gives its thread back.
            await asyncio.sleep(0)
        assert registry.statistics().in_flight == {("m", 1): 0}


def test_a_closed_loop_is_told_with_the_remedy() -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    loop = asyncio.new_event_loop()
    loop.run_until_complete(registry.start())
    with pytest.raises(RegistryStateError, match="not running"):
        registry.predict_sync("m", X)
    loop.run_until_complete(registry.aclose())
    loop.close()


def _in_child(registry: ModelRegistry, queue: Any) -> None:
    try:
        registry.predict_sync("m", X)
    except RegistryStateError as error:
        queue.put(str(error))
    os._exit(0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_told_with_the_remedy() -> None:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        child = context.Process(target=_in_child, args=(registry, queue))
        child.start()
        child.join(20)
        assert child.exitcode == 0
    assert "forked child" in queue.get()


async def test_cancelling_a_call_frees_its_thread_and_lets_the_version_go() -> None:
    gate = Gate()
    loader = FakeLoader(gate=gate)
    async with FakeRegistry({"m": {1: loader}}, warmup="none", num_batch_threads=1) as registry:
        call = asyncio.create_task(registry.predict("m", X))
        while not gate.waiting:
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        gate_free = FakeLoader()
        await registry.put("m", 2, gate_free)
        await until(registry, "m", 1, State.END)
        assert not loader.loaded
        assert (await registry.predict("m", X))["y"].tolist() == [12.0, 22.0]


async def test_a_timeout_is_a_deadline_exceeded() -> None:
    async with FakeRegistry({"m": {1: FakeLoader(gate=Gate())}}, warmup="none") as registry:
        with pytest.raises(DeadlineExceededError, match="Timed out waiting for notification"):
            await registry.predict("m", X, timeout=0.02)


async def test_leaving_is_bounded_by_the_drain_timeout() -> None:
    def stuck(version: int, inputs: Any) -> Any:
        release.wait(30)
        return {"y": inputs["x"]}

    release = threading.Event()
    registry = FakeRegistry({"m": {1: FakeLoader(stuck)}}, warmup="none", drain_timeout=0.05)
    await registry.start()
    call = asyncio.create_task(registry.predict("m", X))
    while not registry.statistics().busy_threads:
        await asyncio.sleep(0)
    await registry.aclose()
    with pytest.raises(RegistryStateError, match="left while servable"):
        await call
    release.set()


async def test_an_observer_that_fails_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    from embedserve import Observer

    class Bad(Observer):
        def run_finished(self, *args: Any) -> None:
            raise RuntimeError("observer bug")

    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        registry.observers.add(Bad())
        assert (await registry.predict("m", X))["y"].tolist() == [11.0, 21.0]
    assert "observer bug" in caplog.text


def test_construction_says_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="give ModelRegistry a directory of models"):
        ModelRegistry()
    with pytest.raises(ConfigError, match=r"num_batch_thread: .* did you mean .num_batch_threads."):
        ModelRegistry("models", num_batch_thread=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="Last entry in allowed_batch_sizes"):
        ModelRegistry("models", batching_options={"allowed_batch_sizes": [1, 2], "max_batch_size": 4})
    with pytest.raises(ConfigError, match="Illegal to list model m"):
        ModelRegistry(models=[ModelConfig(name="m", base_path="a"), ModelConfig(name="m", base_path="b")])
    assert "not entered" in repr(ModelRegistry("models"))


async def test_repr_tells_what_is_served() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        assert repr(registry) == "<ModelRegistry models=['m'], serving m:1>"


async def test_one_input_signature_takes_a_bare_array_and_others_say_no() -> None:
    two = fake_signature(inputs={"a": ("float", (None,)), "b": ("float", (None,))})
    async with FakeRegistry({"m": {1: FakeLoader()}, "two": {1: FakeLoader(signatures=[two])}}) as registry:
        assert (await registry.predict("m", [1, 2]))["y"].tolist() == [11.0, 21.0]
        with pytest.raises(InvalidInputError, match=r"must be a mapping by input name .* 2 inputs \(a, b\)"):
            await registry.predict("two", [1, 2])


async def test_a_pin_survives_a_new_configuration_that_leaves_its_policy_alone() -> None:
    m = ModelConfig(name="m", base_path="/fake/m")
    async with FakeRegistry({"m": {1: FakeLoader(), 2: FakeLoader()}}, models=[m]) as registry:
        await registry.pin("m", 1)
        await registry.reconfigure([m])
        assert (await registry.predict("m", X))["y"].tolist() == [11.0, 21.0]
        await registry.reconfigure([m.model_copy(update={"version_policy": AllVersions()})])
        await until(registry, "m", 2, State.AVAILABLE)


async def test_labels_declared_ahead_answer_once_their_version_is_there() -> None:
    m = ModelConfig(name="m", base_path="/fake/m", version_policy=AllVersions(), version_labels={"canary": 2})
    async with FakeRegistry({"m": {1: FakeLoader()}}, models=[m], labels_ahead=True) as registry:
        with pytest.raises(ServableNotFoundError, match=r"Specific\(m, 2\)"):
            await registry.predict("m", X, label="canary")
        await registry.reconfigure([m.model_copy(update={"version_labels": {"canary": 2, "next": 3}})])
        await registry.put("m", 2, FakeLoader())
        await until(registry, "m", 2, State.AVAILABLE)
        assert (await registry.predict("m", X, label="canary"))["y"].tolist() == [12.0, 22.0]


async def test_method_names_are_checked_when_asked_for() -> None:
    odd = fake_signature(method_name="odd")
    async with FakeRegistry({"m": {1: FakeLoader(signatures=[odd])}}) as registry:
        await registry.predict("m", X)
    checking = FakeRegistry({"m": {1: FakeLoader(signatures=[odd])}}, enable_signature_method_name_check=True)
    async with checking as registry:
        with pytest.raises(ServingError, match=r"Expected prediction signature method_name to be one of .* Was: odd"):
            await registry.predict("m", X)


async def test_a_root_that_cannot_be_meant_is_told_at_entry(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="missing does not exist"):
        async with ModelRegistry(tmp_path / "missing"):
            pass
    (tmp_path / "digits" / "1").mkdir(parents=True)
    with pytest.raises(StartError, match=r"holds version directories \(1\), so it is not a directory of models. Pass"):
        async with ModelRegistry(tmp_path / "digits"):
            pass
    (tmp_path / "empty").mkdir()
    async with ModelRegistry(tmp_path / "empty") as registry:
        assert registry.models() == ()


@pytest.mark.parametrize(
    "name", ["", "a\nb", "a\0", "\x85", "a\u2028", ".", "..", "../a", "a/", "/a", "a//b", "x" * 256]
)
def test_a_models_name_can_stand_in_logs_labels_and_paths(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be a model's name"):
        ModelConfig(name=name, base_path="/m")


@pytest.mark.parametrize("name", ["m", "größe", "模型", "team/model", "a b", "...", "x" * 255])
def test_a_models_name_may_have_slashes_blanks_and_letters_of_all_languages(name: str) -> None:
    assert ModelConfig(name=name, base_path="/m").name == name


async def test_a_request_before_the_first_load_has_ended_is_told_that_the_registry_is_starting() -> None:
    gate = Gate()
    registry = FakeRegistry({"m": {1: FakeLoader(load_gate=gate)}})
    await registry.start(wait=False)
    try:
        assert not registry.started
        with pytest.raises(NotReadyError, match="starting"):
            await registry.predict("m", X)
        gate.open()
        await registry.wait_until_ready()
        assert registry.started
        assert (await registry.predict("m", X))["y"].tolist() == [11.0, 21.0]
        with pytest.raises(ServableNotFoundError):
            await registry.predict("other", X)
    finally:
        gate.open()
        await registry.aclose()


async def test_whoever_ensures_the_start_waits_for_the_one_that_has_begun() -> None:
    loader = FakeLoader(load_gate=(gate := Gate()))
    registry = FakeRegistry({"m": {1: loader}})
    waiting = [asyncio.create_task(registry.ensure_started()) for _ in range(5)]
    elsewhere = [asyncio.create_task(asyncio.to_thread(registry.ensure_started_sync)) for _ in range(3)]
    while not gate.waiting:
        await asyncio.sleep(0.01)
    waiting.pop().cancel()  # One that gives up takes nobody along.
    assert not registry.started
    gate.open()
    await asyncio.gather(*waiting, *elsewhere)
    assert registry.started
    assert loader.loads == 1
    await registry.ensure_started()
    await registry.aclose()
    assert not registry.started


async def test_everyone_who_waits_hears_of_a_failed_start_and_the_next_call_tries_again() -> None:
    loader = FakeLoader(failures=1)
    registry = FakeRegistry({"m": {1: loader}}, retry=RetryPolicy(max_retries=0))
    found = await asyncio.gather(*(registry.ensure_started() for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [StartError] * 3
    await registry.ensure_started()
    assert loader.loads == 2
    await registry.aclose()


def test_threads_that_ensure_the_start_share_one_private_entry() -> None:
    loader = FakeLoader()
    registry = FakeRegistry({"m": {1: loader}})
    with ThreadPoolExecutor(8) as threads:
        for call in [threads.submit(registry.ensure_started_sync) for _ in range(8)]:
            call.result(20)
    assert loader.loads == 1
    assert registry.predict_sync("m", X)["y"].tolist() == [11.0, 21.0]
    registry.close()
    assert not registry.started
    registry.close()  # Nothing is left to do.


def test_several_threads_may_close_and_each_returns_when_it_is_left() -> None:
    gate = Gate()
    registry = FakeRegistry({"m": {1: FakeLoader(gate=gate)}}, drain_timeout=0.05)
    registry.ensure_started_sync()
    with ThreadPoolExecutor(4) as threads:
        threads.submit(registry.predict_sync, "m", [1.0])
        while not registry.statistics().busy_threads:
            time.sleep(0.001)
        closing = [threads.submit(registry.close) for _ in range(3)]
        for each in closing:
            each.result(30)
            assert not registry.started
        gate.open()
    assert registry.loop is None


async def test_close_on_the_registrys_own_loop_says_what_to_do_instead() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        with pytest.raises(RegistryStateError, match="await"):
            registry.close()
        await asyncio.to_thread(registry.close)
        assert not registry.started


def test_a_registry_that_is_dropped_while_entered_warns_and_its_threads_end(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)  # A fake one is held by its own loader.
    registry.ensure_started_sync()
    private = registry._private
    assert private is not None
    dropped = [registry]
    del registry
    with pytest.warns(ResourceWarning, match="dropped without being left"):
        dropped.clear()
    private._thread.join(20)
    assert not private._thread.is_alive()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"version": "1"}, "version must be an integer, got '1'"),
        ({"version": True}, "version must be an integer, got True"),
        ({"label": 1}, "label must be a string, got 1"),
        ({"timeout": "1"}, "timeout must be a number of seconds or None, got '1'"),
        ({"timeout": True}, "timeout must be a number of seconds or None, got True"),
        ({"timeout": math.nan}, "timeout must be a number of seconds or None, got nan"),
        ({"priority": 1}, "priority 1 is none of high, normal, low"),
        ({"signature_name": 1}, "signature_name must be a string, got 1"),
        ({"signature_name": ["a"]}, r"signature_name must be a string, got \['a'\]"),
        ({"output_filter": 1}, "output_filter must be names of outputs, got 1"),
    ],
)
async def test_an_argument_of_another_type_is_explained(arguments: dict[str, Any], words: str) -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        with pytest.raises(ServingError, match=words):
            await registry.predict("m", X, **arguments)
        async with registry.acquire("m") as handle:
            if not arguments.keys() & {"version", "label"}:
                with pytest.raises(ServingError, match=words):
                    await handle.predict(X, **arguments)
        wrong_name: Any = ["m"]
        with pytest.raises(ServingError, match="the name of a model must be a string"):
            await registry.predict(wrong_name, X)


async def test_numbers_of_numpy_and_an_infinite_timeout_are_taken() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        version: Any = np.int64(1)
        timeouts: list[Any] = [np.float32(5), 5, math.inf]
        for timeout in timeouts:
            assert (await registry.predict("m", X, version=version, timeout=timeout))["y"].tolist() == [11.0, 21.0]
        with pytest.raises(DeadlineExceededError):
            await registry.predict("m", X, timeout=-1)
