"""What the documentation shows runs as it stands: Python blocks, curl lines, commands, links."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from embedserve.tfs.config import models_from_proto, read_model_server_config
from tests.support.pages import blocks
from tests.support.programs import ROOT, answers, fetch, free_port, program, run_program

# Several programs that import TensorFlow, one after the other.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

# Pages whose code is run elsewhere, because it takes more than an interpreter.
RUN_ELSEWHERE = {"hosting.md": "test_hosting_page.py"}


def python_blocks(page: Path) -> list[str]:
    if page.name in RUN_ELSEWHERE:
        return []
    return [block for block in blocks(page.read_text(), "python") if "app = FastAPI(" not in block]


RUN_EACH = "import runpy, sys\nfor script in sys.argv[1:]:\n    runpy.run_path(script, run_name='__main__')"


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run(page: Path, digit_models: Path, tmp_path: Path) -> None:
    """One process for a page, in which TensorFlow is imported once; each block has names of its own."""
    scripts = []
    for number, block in enumerate(python_blocks(page), 1):
        scripts.append(tmp_path / f"block_{number}.py")
        scripts[-1].write_text(block.replace("port=8500", f"port={free_port()}"))
    run_program("-W", "error", "-c", RUN_EACH, *scripts, cwd=digit_models.parent)


def test_the_web_service_block_serves(digit_models: Path, tmp_path: Path) -> None:
    (block,) = (block for block in blocks((ROOT / "README.md").read_text(), "python") if "app = FastAPI(" in block)
    (tmp_path / "service.py").write_text(block)
    (tmp_path / "models").symlink_to(digit_models)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = ("-m", "uvicorn", "service:app", "--app-dir", tmp_path, "--port", port, "--log-level", "warning")
    with program(*server, until=answers(f"{url}/ml/v1/models/digits"), cwd=tmp_path):
        status, digit = fetch(f"{url}/digit", [0.0] * 64)
        assert status == 200
        assert digit in range(10)
        assert fetch(f"{url}/ml/v1/models/digits:predict", {"instances": [[0.0] * 64]})[0] == 200


@pytest.mark.parametrize("number", [0, 1])
def test_the_standalone_commands_answer_the_curl_lines(number: int, digit_models: Path) -> None:
    commands = "\n".join(blocks((ROOT / "docs" / "standalone.md").read_text(), "sh")).splitlines()
    server = [line.split("#")[0].split() for line in commands if line.startswith("python -m embedserve")][number]
    rest = free_port()
    given = {"--port": f"--port={free_port()}", "--rest_api_port": f"--rest_api_port={rest}"}
    arguments = [word for word in server[1:] if word.split("=")[0] not in given] + list(given.values())
    with program(*arguments, until=answers(f"http://localhost:{rest}/-/ready"), cwd=digit_models.parent):
        curls = [line.replace(":8501", f":{rest}") for line in commands if line.startswith("curl")]
        assert curls
        for line in curls:
            done = subprocess.run(["bash", "-c", f"{line} -sS --fail"], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
        predicted = subprocess.run(["bash", "-c", f"{curls[0]} -sS"], capture_output=True, text=True, timeout=60).stdout
        assert json.loads(predicted)["predictions"][0]["digit"] == 0, "the first digit of the data set is a 0"


def test_the_config_file_of_the_standalone_page_is_accepted(tmp_path: Path) -> None:
    (block,) = blocks((ROOT / "docs" / "standalone.md").read_text(), "text")
    file = tmp_path / "models.config"
    file.write_text(block)
    (model,) = models_from_proto(read_model_server_config(file))
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))]
    assert not [link for link in links if not (page.parent / link).exists()]

    modules = re.findall(r"python -m ((?:benchmarks|examples)[\w.]+)", text)
    assert not [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").exists()]

    gone = []
    for path, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        if not (ROOT / path).exists() or (test and f"def {test}(" not in (ROOT / path).read_text()):
            gone.append(f"{path}::{test}")
    assert not gone
