"""The commands of "Coming from Triton" and of the protocol's page, as a reader runs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.pages import blocks
from tests.support.programs import ROOT, answers, free_port, program

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(("page", "port"), [("from-triton.md", 8000), ("open-inference-protocol.md", 8501)])
def test_the_commands_of_a_page_are_answered(page: str, port: int, digit_models: Path) -> None:
    commands = "\n".join(blocks((ROOT / "docs" / page).read_text(), "sh")).splitlines()
    lines = [line.split(" #")[0] for line in commands]
    (server,) = (line.split() for line in lines if line.startswith("python -m embedserve"))
    curls = [line for line in lines if line.startswith("curl ")]
    rest = free_port()
    chosen = [word for word in server[1:] if not word.startswith(("--port=", "--rest_api_port="))]
    arguments = [*chosen, f"--port={free_port()}", f"--rest_api_port={rest}"]
    assert curls
    with program(*arguments, until=answers(f"http://localhost:{rest}/v2/health/ready"), cwd=digit_models.parent):
        for line in curls:
            command = line.replace(f":{port}", f":{rest}") + " -sS --fail"
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, (line, done.stderr)
