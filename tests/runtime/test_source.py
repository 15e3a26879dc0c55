"""A registry of local directories has no part of the remote machinery; tests/remote has the rest of the source."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from embedserve.config import ModelConfig, RegistryOptions
from embedserve.lifecycle.source import FileSystemSource
from embedserve.lifecycle.source_protocol import Source, SourceListener
from embedserve.remote.syncer import Syncer
from embedserve.runtime.source import CombinedSource

LOCAL_ONLY = """
import sys, threading
from embedserve import ModelRegistry
with ModelRegistry({root!r}) as registry:
    print(sorted(name for name in sys.modules if name.startswith("embedserve.remote")))
    print(sorted(thread.name for thread in threading.enumerate() if "sync" in thread.name))
"""


class Silent:
    """Hears and does nothing."""

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None: ...

    def on_aspired(self, name: str, aspired: Mapping[int, object]) -> None: ...

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None: ...

    def on_trouble(self, name: str, trouble: str | None) -> None: ...


@pytest.mark.slow
def test_a_registry_of_directories_imports_no_module_for_stores(tmp_path: Path) -> None:
    code = LOCAL_ONLY.format(root=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]", "[]"]


async def test_the_syncer_comes_with_the_first_remote_model(tmp_path: Path) -> None:
    options = RegistryOptions(remote_cache_dir=tmp_path / "cache")
    source = CombinedSource(options, None, Silent(), tuple)
    await source.start()
    assert source._remote is None
    assert source.stores() == {}
    source.set_models([ModelConfig(name="far", base_path="http://127.0.0.1:1/far")])
    assert isinstance(source._remote, Syncer)
    assert set(source.stores()) == {"far"}
    assert source.coming("far")
    await source.aclose()
    source.release()


async def test_directories_stores_and_both_are_sources_with_one_kind_of_listener(tmp_path: Path) -> None:
    options, listener = RegistryOptions(), Silent()
    heard: SourceListener = listener
    sources: list[Source] = [
        FileSystemSource(options, None, heard),
        Syncer(options, None, tmp_path / "cache", heard),
        CombinedSource(options, None, heard, tuple),
    ]
    for source in sources:
        source.set_models([])
        await source.start()
        await source.scan_now()
        source.hint()
        assert (source.problem("m"), source.coming("m"), source.misplaced("m")) == (None, False, False)
        assert (source.diagnosis, source.misused, source.unread, dict(source.stores())) == (None, False, False, {})
        await source.aclose()
        source.release()
