"""Log files, read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedserve.saved_model.load.warmup import read_logs

Read = Callable[[], list[Any]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "requests"


@pytest.fixture
def read(prefix: Path) -> Read:
    """Every record of `prefix`'s files, oldest first."""
    return lambda: [log for path in sorted(prefix.parent.iterdir()) for log in read_logs(path)]
