"""What holds in the processes that tests start: Python imports this module first.

`$LINE_COVERAGE` has them note which lines ran. Keras does without scikit-learn and matplotlib.
Keras imports both where they are installed: more than a quarter of the time of `import tensorflow`. Machines that serve
have neither. Everyone else's imports of them are left alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class _NotForKeras(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname in ("matplotlib", "sklearn"):
            importer = sys._getframe(1)
            while importer.f_back is not None and importer.f_code.co_filename.startswith("<frozen importlib"):
                importer = importer.f_back
            if importer.f_globals.get("__name__", "").startswith("keras."):
                raise ModuleNotFoundError(f"No module named {fullname!r}, for Keras", name=fullname)


sys.meta_path.insert(0, _NotForKeras())
if directory := os.environ.get("LINE_COVERAGE"):
    from tests.support.site import line_coverage

    line_coverage.install(directory)
