"""TensorFlow's protocol messages without TensorFlow: for the supervisor, which reads SavedModels but runs none.

`import tensorflow` takes seconds and hundreds of megabytes, and stands before every import of one of its message
modules, which need nothing of it. A package with TensorFlow's path and no contents takes its place.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

__all__ = ["install"]


class _TensorFlowStub(ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"tensorflow.{name}: this process supervises workers and must not run TensorFlow itself")


def install() -> None:
    """Make `tensorflow.core...` importable without TensorFlow, in a process that never needs more of it.

    Nothing happens where TensorFlow has been imported already, or is not installed.
    """
    if "tensorflow" in sys.modules:
        return
    found = importlib.util.find_spec("tensorflow")
    if found is None or found.submodule_search_locations is None:
        return
    stub = _TensorFlowStub("tensorflow")
    stub.__path__ = list(found.submodule_search_locations)
    stub.__spec__ = found
    sys.modules["tensorflow"] = stub
