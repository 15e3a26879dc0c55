"""A server process with a `logging_config` in its model config file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import ServerProcess
from tests.request_log.conftest import Read
from tests.support.programs import fetch, free_port, wait_until
from tests.support.saved_models import half_plus_two

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture
def config(tmp_path: Path, prefix: Path) -> Path:
    half_plus_two(tmp_path / "m" / "1")
    file = tmp_path / "models.config"
    file.write_text(
        f"""
        model_config_list {{ config {{
          name: "m" base_path: "{tmp_path / "m"}" model_platform: "tensorflow"
          logging_config {{
            log_collector_config {{ type: "file" filename_prefix: "{prefix}" }}
            sampling_config {{ sampling_rate: 1.0 }}
          }}
        }} }}
        """
    )
    return file


@pytest.fixture
def rest() -> int:
    return free_port()


@pytest.fixture
def server(config: Path, rest: int, tmp_path: Path) -> Iterator[ServerProcess]:
    flags = (f"--model_config_file={config}", f"--port={free_port()}", f"--rest_api_port={rest}")
    server = ServerProcess(*flags, "--model_config_file_poll_wait_seconds=1", cwd=tmp_path)
    yield server
    server.close()


def test_a_logging_config_logs_what_clients_ask(server: ServerProcess, rest: int, prefix: Path, read: Read) -> None:
    server.wait_until_serving()
    url = f"http://localhost:{rest}/v1/models/m:predict"
    for x in range(5):
        assert fetch(url, {"instances": [[float(x)]]})[0] == 200
    wait_until(lambda: prefix.parent.exists() and len(read()) == 5, 30)
    server.terminate()
    inputs = [log.predict_log.request.inputs["x"].tensor_content for log in read()]
    assert [np.frombuffer(content, np.float32)[0] for content in inputs] == [0, 1, 2, 3, 4]
    assert len(list(prefix.parent.iterdir())) == 1, "reading the config again leaves the log alone"


def test_an_unknown_collector_ends_the_start_before_anything_is_loaded(config: Path) -> None:
    config.write_text(config.read_text().replace('type: "file"', 'type: "kafka"'))
    refused = ServerProcess(f"--model_config_file={config}", cwd=config.parent)
    assert refused.ended() == 255
    assert refused.out.startswith(
        "Failed to start server. Error: NOT_FOUND: Cannot find LogCollector::Factory for type: kafka"
    )
    assert "Loading" not in refused.log
    refused.close()
