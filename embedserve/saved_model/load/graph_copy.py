"""A version with a changed MetaGraph, as a directory that TensorFlow can load; the version's own files stay.

TensorFlow loads directories only, so the changed graph is written into one, beside links to the version's files.
Called by the loader. Knows no change.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

__all__ = ["GraphCopy"]

_PREFIX = "embedserve-graph-"


class GraphCopy:
    """A directory that TensorFlow loads in place of a version's own, until `close`.

    Attributes:
        path: The directory.
    """

    def __init__(self, version: Path, meta_graph: Any) -> None:
        """Write the directory.

        Args:
            version: The version's own directory.
            meta_graph: The only MetaGraph of the copy.
        """
        saved_model: Any = SavedModel(saved_model_schema_version=1)
        saved_model.meta_graphs.add().CopyFrom(meta_graph)
        self._directory = tempfile.TemporaryDirectory(prefix=_PREFIX)
        self.path = Path(self._directory.name)
        for entry in version.iterdir():
            if not entry.name.startswith("saved_model.pb"):
                os.symlink(entry.absolute(), self.path / entry.name)
        (self.path / "saved_model.pb").write_bytes(saved_model.SerializeToString())

    def close(self) -> None:
        """Remove the directory."""
        self._directory.cleanup()
