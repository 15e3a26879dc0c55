"""Real kernels that never end, in real server processes: the clients are answered, the other model goes on."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.clients import config_of, publish
from tests.e2e.conftest import ServerProcess, Start
from tests.support.programs import fetch, free_port, wait_until
from tests.support.saved_models import endless_on_made_up_inputs, hue

pytestmark = pytest.mark.timeout(300)

IMAGE = [[[0.1, 0.2, 0.3]]]
ENDLESS = {"inputs": {"image": IMAGE, "delta": 16e6}}
SHORT = {"inputs": {"image": IMAGE, "delta": 0.1}}


class Server:
    """Models `hue` and `two`; a request may take a second."""

    def __init__(self, start: Start, saved: Path, directory: Path, *arguments: str) -> None:
        hue(directory / "hue" / "1")
        publish(saved / "two", directory / "two" / "1")
        (directory / "models.config").write_text(config_of(("hue", directory / "hue"), ("two", directory / "two")))
        self.rest = free_port()
        self.process: ServerProcess = start(
            "--model_config_file=models.config",
            f"--port={free_port()}",
            f"--rest_api_port={self.rest}",
            "--rest_api_timeout_in_ms=1000",
            *arguments,
        )
        self.process.wait_until_serving()

    def get(self, path: str) -> tuple[int, Any]:
        return fetch(f"http://127.0.0.1:{self.rest}{path}")

    def ask(self, model: str, body: object) -> tuple[int, Any]:
        return fetch(f"http://127.0.0.1:{self.rest}/v1/models/{model}:predict", body)

    def hang(self, requests: int) -> None:
        """Send so many requests that never end, side by side; each is answered on time."""
        with ThreadPoolExecutor(requests) as clients:
            answers = list(clients.map(lambda _: self.ask("hue", ENDLESS), range(requests)))
        assert [status for status, _ in answers] == [504] * requests


def test_three_endless_requests_hang_no_other_model_and_not_the_shutdown(
    start: Start, saved: Path, tmp_path: Path
) -> None:
    server = Server(
        start, saved, tmp_path, *("--workers=0", "--num_batch_threads=3", "--max_stuck_runs=3", "--drain_timeout=5")
    )
    assert server.ask("hue", SHORT)[0] == 200
    server.hang(3)
    # Nobody knows yet that they are stuck: every thread is in use.
    assert server.ask("two", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    wait_until(lambda: server.get("/-/live")[0] == 503)
    assert "stuck runs: 3" in server.get("/-/live")[1]["reason"]
    assert server.get("/-/ready")[0] == 503
    assert server.get("/-/ready/hue")[0] == 503
    assert server.get("/-/ready/two")[0] == 200
    status, answer = server.ask("hue", SHORT)
    assert status == 503
    assert "is refused until its stuck runs return" in answer["error"]
    for _ in range(20):
        assert server.ask("two", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    named = re.findall(r"has a stuck run, signature 'serving_default' \(.*delta \[\].*\) for \d+ s", server.process.log)
    assert len(named) == 3
    assert "16000000" not in server.process.log
    began = time.monotonic()
    server.process.terminate()
    assert time.monotonic() - began < 5 + 10  # `drain_timeout` and the grace for what is unloaded.


def test_a_worker_whose_threads_are_stuck_is_replaced_and_its_port_kept(
    start: Start, saved: Path, tmp_path: Path
) -> None:
    server = Server(start, saved, tmp_path, "--workers=1", "--max_stuck_runs=1", "--drain_timeout=5")

    def pid() -> Any:
        (worker,) = server.get("/-/workers")[1]["workers"]
        return worker["pid"] if worker["state"] == "serving" else None

    before = pid()
    server.hang(1)
    server.process.wait_for_log("Worker 0 is replaced: stuck runs: 1")
    # The socket stays open while nobody answers: this request waits for the new process.
    wait_until(lambda: (new := pid()) is not None and new != before)
    assert server.ask("hue", SHORT)[0] == 200
    assert server.ask("two", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    wait_until(lambda: server.get("/-/ready")[0] == 200)
    server.process.terminate()


def test_a_made_up_run_that_never_ends_fails_its_version_and_holds_up_no_other(
    start: Start, saved: Path, tmp_path: Path
) -> None:
    endless_on_made_up_inputs(tmp_path / "bad" / "1")
    publish(saved / "two", tmp_path / "two" / "1")
    (tmp_path / "models.config").write_text(config_of(("bad", tmp_path / "bad"), ("two", tmp_path / "two")))
    rest = free_port()
    process = start(
        *("--model_config_file=models.config", f"--port={free_port()}", f"--rest_api_port={rest}", "--workers=0"),
        *("--num_load_threads=1", "--load_timeout=3", "--start_requires=any", "--drain_timeout=5"),
    )
    process.wait_until_serving()
    url = f"http://127.0.0.1:{rest}"
    assert fetch(f"{url}/v1/models/two:predict", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    status, answer = fetch(f"{url}/-/ready/bad")
    assert status == 503
    assert "DEADLINE_EXCEEDED: a step of the load has not ended after 3 s" in answer["models"]["bad"]
    assert "signature 'serving_default' on made-up inputs" in answer["models"]["bad"]
    began = time.monotonic()
    process.terminate()
    assert time.monotonic() - began < 5 + 10
