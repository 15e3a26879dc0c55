"""Memory is given back: thirty reloads through a registry stay flat, whatever the models hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import SavedModel, deploy
from tests.support.programs import ROOT

pytestmark = pytest.mark.slow

RELOADS = """
import asyncio, os, sys
from pathlib import Path
from embedserve import ModelConfig, ModelRegistry

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

async def main():
    models = Path(sys.argv[1])
    configs = [
        ModelConfig(name="constant", base_path=models / "constant"),
        ModelConfig(name="variables", base_path=models / "variables", servable="function"),
    ]
    async with ModelRegistry(models=configs, settle=0.0, watch=False, poll_interval=60.0) as registry:

        def swapped():
            for new, old, *_ in registry.status().values():
                if (new.version, new.state.name, old.state.name) != (number, "AVAILABLE", "END"):
                    return False
            return True

        for number in range(2, 37):
            for name in registry.models():
                (models / name / str(number - 1)).rename(models / name / str(number))
            await registry._runtime.source.scan_now()
            assert await registry._runtime.monitor.wait_until(swapped, 60)
            requests = [registry.predict(name, [[1.0] * 1024]) for name in registry.models() for _ in range(8)]
            await asyncio.gather(*requests)
            if number == 6:
                before = resident()
        print(registry.models(), {status.kind for (status, *_) in registry.status().values()}, resident() - before)

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_thirty_reloads_of_4_mb_models_stay_flat(saved: SavedModel, models: Path) -> None:
    """One holds a constant and runs in a session, the other variables and runs as functions."""
    deploy(saved("big_constant"), models / "constant" / "1")
    deploy(saved("dense", inputs=1024, outputs=1024), models / "variables" / "1")
    done = subprocess.run(
        [sys.executable, "-c", RELOADS, str(models)], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "function" in done.stdout
    assert "session" in done.stdout
    grown = float(done.stdout.split()[-1])
    assert grown < 40, f"{grown:.1f} MB more after 30 reloads of two 4 MB models"
