"""What is put down to rounding: differences that the last places of the inputs would make as well."""

from __future__ import annotations

import numpy as np

from embedserve.verify.ways import _nudged


def test_floats_are_nudged_by_one_unit_in_their_last_place_up_and_down() -> None:
    inputs = {"x": np.array([[1.0, 1.0, 0.0]], np.float32), "n": np.array([3]), "s": np.array([b"a"], object)}
    nudged = _nudged(inputs)
    up, down = np.nextafter(np.float32(1), np.float32(2)), np.nextafter(np.float32(1), np.float32(0))
    assert nudged["x"].dtype == np.float32
    assert nudged["x"].tolist() == [[up, down, np.nextafter(np.float32(0), np.float32(1))]]
    assert nudged["n"] is inputs["n"]
    assert nudged["s"] is inputs["s"]
