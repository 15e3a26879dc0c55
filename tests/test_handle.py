"""A handle answers as the registry does, refuses what a wire would refuse when asked to, and has a twin for threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedserve import InferenceTask
from embedserve.errors import DeadlineExceededError, InvalidInputError, RegistryStateError, UnsupportedError
from embedserve.servable import Array, Cancellation, Servable, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, Gate, fake_signature
from embedserve.tfs.examples import CLASSIFY_METHOD, REGRESS_METHOD

DOUBLES = np.array([1.0, 2.0])


async def test_an_array_of_another_dtype_is_cast_unless_the_caller_says_no() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry, registry.acquire("m") as handle:
        assert (await handle.predict({"x": DOUBLES}))["y"].dtype == np.float32
        with pytest.raises(InvalidInputError, match=r"^Expects arg\[0\] to be float but double is provided"):
            await handle.predict({"x": DOUBLES}, cast=False)
        assert (await handle.predict({"x": DOUBLES.astype(np.float32)}, cast=False))["y"].tolist() == [11.0, 21.0]


def test_the_twin_for_threads_casts_or_not_as_well() -> None:
    with FakeRegistry({"m": {1: FakeLoader()}}) as registry, registry.acquire_sync("m") as handle:
        assert handle.predict_sync({"x": DOUBLES})["y"].dtype == np.float32
        with pytest.raises(InvalidInputError, match="to be float but double is provided"):
            handle.predict_sync({"x": DOUBLES}, cast=False)


# Classify, Regress, MultiInference.

EXAMPLE_INPUT: Any = {"inputs": ("string", (None,))}
TASKS = [InferenceTask("classify", CLASSIFY_METHOD), InferenceTask("regress", REGRESS_METHOD)]


def lengths(_: int, inputs: Tensors) -> dict[str, Array]:
    scores = np.array([len(example) for example in inputs["inputs"].tolist()], np.float32)
    return {"scores": scores[:, None], "outputs": scores}


def example_registry(**options: Any) -> FakeRegistry:
    """Both signatures give the length of each serialized example."""
    signatures = [
        fake_signature("classify", EXAMPLE_INPUT, {"scores": ("float", (None, 1))}),
        fake_signature("regress", EXAMPLE_INPUT, {"outputs": ("float", (None,))}),
    ]
    return FakeRegistry(
        {"m": {1: FakeLoader(lengths, signatures=signatures, gate=options.pop("gate", None))}}, **options
    )


async def test_one_call_evaluates_several_signatures() -> None:
    async with example_registry() as registry, registry.acquire("m") as handle:
        classified, regressed = await handle.multi_inference(TASKS, [b"a", b"bc"], context=b"...")
        assert classified == [[(b"", 4.0)], [(b"", 5.0)]]
        assert isinstance(regressed, np.ndarray)
        assert regressed.tolist() == [4.0, 5.0]
        with pytest.raises(InvalidInputError, match="Duplicate evaluation of signature: classify"):
            await handle.multi_inference([TASKS[0], TASKS[0]], [b"a"])


async def test_method_names_are_checked_where_the_registry_says_so() -> None:
    async with (
        example_registry(enable_signature_method_name_check=True) as registry,
        registry.acquire("m") as handle,
    ):
        with pytest.raises(InvalidInputError, match="Expected classification signature method_name to be"):
            await handle.multi_inference(TASKS, [b"a"])


async def test_several_signatures_share_one_timeout() -> None:
    gate = Gate()
    async with example_registry(gate=gate) as registry, registry.acquire("m") as handle:
        with pytest.raises(DeadlineExceededError):
            await handle.multi_inference(TASKS, [b"a"], timeout=0.01)
        gate.open()


def test_examples_have_twins_for_threads() -> None:
    with example_registry() as registry, registry.acquire_sync("m") as handle:
        assert handle.classify_sync([b"a"], signature_name="classify", context=b"..") == [[(b"", 3.0)]]
        assert handle.regress_sync([b"ab", b"c"], signature_name="regress").tolist() == [2.0, 1.0]
        classified, regressed = handle.multi_inference_sync(TASKS, [b"abc"])
        assert classified == [[(b"", 3.0)]]
        assert isinstance(regressed, np.ndarray)
        assert regressed.tolist() == [3.0]


async def test_a_twin_for_threads_refuses_the_loop_it_would_block() -> None:
    async with example_registry() as registry, registry.acquire("m") as handle:
        for call in (
            lambda: handle.classify_sync([b"a"]),
            lambda: handle.regress_sync([b"a"]),
            lambda: handle.multi_inference_sync(TASKS, [b"a"]),
        ):
            with pytest.raises(RegistryStateError, match="would wait for itself"):
                call()


# Graphs.


class GraphLoader(FakeLoader):
    """Loads a version that has a graph: fetching `name` gives what was fed as `name`, and -1 for each target."""

    def load(self) -> Servable:
        servable: Any = super().load()

        def run_graph(
            feeds: Tensors, fetches: Sequence[str], targets: Sequence[str] = (), **limits: Any
        ) -> list[Array]:
            self.limits = limits
            return [*(feeds[name] for name in fetches), *(np.array(-1) for _ in targets)]

        servable.run_graph = run_graph
        loaded: Servable = servable
        return loaded


async def test_a_graph_runs_in_a_run_thread_within_its_time() -> None:
    loader = GraphLoader()
    async with FakeRegistry({"m": {1: loader}}) as registry, registry.acquire("m") as handle:
        fetched = await handle.run_graph({"x:0": DOUBLES}, ["x:0"], ["init"], timeout=60)
        assert [array.tolist() for array in fetched] == [[1.0, 2.0], -1]
        assert isinstance(loader.limits["cancellation"], Cancellation)
        assert 0 < loader.limits["timeout"] <= 60
        await handle.run_graph({}, [])
        assert loader.limits["timeout"] is None
        with pytest.raises(DeadlineExceededError):
            await handle.run_graph({}, [], timeout=-1.0)


def test_a_graph_run_has_a_twin_for_threads() -> None:
    with FakeRegistry({"m": {1: GraphLoader()}}) as registry, registry.acquire_sync("m") as handle:
        assert handle.run_graph_sync({"x:0": DOUBLES}, ["x:0"])[0].tolist() == [1.0, 2.0]


async def test_a_version_without_a_graph_says_how_to_get_one() -> None:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry, registry.acquire("m") as handle:
        with pytest.raises(UnsupportedError, match=r"runs as 'fake'.*set servable=\"session\""):
            await handle.run_graph({}, [])
