"""Models of every kind with a request to a signature of each, for tests that compare ways of running them."""

from __future__ import annotations

import numpy as np

from embedserve.servable import Array, Tensors

RANDOM = np.random.default_rng(7)


def floats(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def strings(*values: bytes) -> Array:
    return np.array(values, object)


CASES: dict[str, tuple[str, str, Tensors]] = {
    "variables": ("half_plus_two", "serving_default", {"x": floats(5, 1)}),
    "variables, undeclared shape": ("half_plus_two", "serving_default", {"x": floats(2, 3, 4)}),
    "matmul": ("dense", "serving_default", {"features": floats(7, 4)}),
    "no rows": ("dense", "serving_default", {"features": floats(0, 4)}),
    "integers": ("integer_matmul", "serving_default", {"features": np.arange(12, dtype=np.int32).reshape(3, 4)}),
    "strings": ("strings", "serving_default", {"text": strings(b"", b"a\0b", "é".encode())}),
    "several": (
        "several",
        "serving_default",
        {"left": floats(3, 3), "right": np.arange(9, dtype=np.int32).reshape(3, 3)},
    ),
    "scalars": ("several", "scalars", {"a": np.array(2, np.float32), "b": np.array(3, np.float32)}),
    "unknown rank": ("several", "free", {"x": floats(2, 2, 2)}),
    "table and asset": ("lookup", "serving_default", {"words": strings(b"green", b"none")}),
    "asset at run time": ("reads_asset_at_run_time", "serving_default", {"x": strings(b"a", b"b")}),
    "branches and loops": ("control_flow", "pure", {"x": np.array([900, 3], np.float32)}),
    "large constant": ("big_constant", "serving_default", {"x": floats(2, 1024)}),
    "convolution": ("conv2d", "serving_default", {"image": floats(2, 9, 8, 1)}),
    "text": ("text_cnn", "serving_default", {"tokens": np.arange(12, dtype=np.int32).reshape(2, 6)}),
    "keras": ("keras_export", "serving_default", {"features": floats(4, 6)}),
    "tf1 references": ("tf1_ref_variables", "serving_default", {"x": floats(3, 2)}),
    "tf1 legacy init": ("tf1_legacy_init", "serving_default", {"words": strings(b"dog", b"cow")}),
    "tf1 fed inner tensor": ("tf1_examples", "serving_default", {"x": floats(3, 1)}),
}
