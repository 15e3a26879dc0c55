"""A handle answers as the registry does, refuses what a wire would refuse when asked to, and has a twin for threads."""

from __future__ import annotations

import numpy as np
import pytest

from embedserve.errors import InvalidInputError
from embedserve.testing import FakeLoader, FakeRegistry

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
