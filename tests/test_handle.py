"""A handle answers as the registry does, refuses what a wire would refuse when asked to, and has a twin for threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedserve import InferenceTask
from embedserve.errors import DeadlineExceededError, InvalidInputError, RegistryStateError
from embedserve.servable import Array, Tensors
from embedserve.testing import FakeLoader, FakeRegistry, Gate, fake_signature
from embedserve.tf_example import CLASSIFY_METHOD, REGRESS_METHOD

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
