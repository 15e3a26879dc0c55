"""What holds in the processes that tests start: Python imports this module first.

`$LINE_COVERAGE` has them note which lines ran. Keras does without packages that it imports where they are installed;
machines that serve have none of them. Everyone else's imports of them are left alone. The garbage collector rests while
TensorFlow is imported. Together they take half of the time of `import tensorflow`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

_NOT_FOR_KERAS = frozenset({"IPython", "matplotlib", "pandas", "scipy", "sklearn"})
_KERAS = ("keras.", "tensorflow.python.keras.")


class _Uncollected(SourceFileLoader):
    """Imports a package of thousands of modules, of which nothing is garbage."""

    def exec_module(self, module: ModuleType) -> None:
        enabled = gc.isenabled()
        gc.disable()
        try:
            super().exec_module(module)
        finally:
            if enabled:
                gc.enable()


class _QuickTensorFlow(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _NOT_FOR_KERAS:
            importer = sys._getframe(1)
            while importer.f_back is not None and importer.f_code.co_filename.startswith("<frozen importlib"):
                importer = importer.f_back
            if importer.f_globals.get("__name__", "").startswith(_KERAS):
                raise ModuleNotFoundError(f"No module named {fullname!r}, for Keras", name=fullname)
        if fullname != "tensorflow":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Uncollected(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, _QuickTensorFlow())
if directory := os.environ.get("LINE_COVERAGE"):
    from tests.support.site import line_coverage

    line_coverage.install(directory)
