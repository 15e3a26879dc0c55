"""`python -m embedserve` with models in stores, by each of the ways to name them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedserve import Code, ConfigError
from embedserve.server.cli import server_config
from embedserve.server.flags import parse
from embedserve.store_url import StoreUrl
from tests.e2e.conftest import ServerProcess
from tests.remote.stores import ObjectStore, WebStore
from tests.support.programs import ROOT, fetch, free_port, wait_until

pytestmark = pytest.mark.slow

Lines = dict[int, Path]
Serve = Callable[..., tuple[ServerProcess, str]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers and waits until they serve; also the URL of their REST port."""
    started: list[ServerProcess] = []

    def serve_(*arguments: str) -> tuple[ServerProcess, str]:
        port = free_port()
        ports = [f"--rest_api_port={port}", f"--port={free_port()}"]
        remote = [f"--remote_cache_dir={tmp_path / 'cache'}", "--remote_poll_wait_seconds=0.2", "--remote_timeout=20"]
        process = ServerProcess(*arguments, *ports, *remote, cwd=ROOT)
        started.append(process)
        process.wait_until_serving()
        return process, f"http://127.0.0.1:{port}"

    yield serve_
    for process in started:
        process.close()


def answer(url: str, name: str = "m") -> float:
    status, body = fetch(f"{url}/v1/models/{name}:predict", {"instances": [[7.0]]})
    assert status == 200, body
    return float(body["predictions"][0][0])


@pytest.mark.timeout(300)
def test_a_bucket_is_served_through_an_update_a_restart_without_store_and_a_drain(
    lines: Lines, serve: Serve, tmp_path: Path
) -> None:
    with ObjectStore() as store:
        store.new_bucket()
        store.publish(lines[1], "models/m/1")
        options = tmp_path / "options.json"
        options.write_text(json.dumps({"s3": store.storage_options}))
        flags = (f"--model_base_path={store.url('models/m')}", f"--remote_storage_options_file={options}")
        process, url = serve(*flags, "--model_name=m")
        assert answer(url) == 1.0
        store.publish(lines[2], "models/m/2")
        wait_until(lambda: answer(url) == 2.0)
        process.terminate()
        assert "a-secret" not in process.log
        store.kill()
        process, url = serve(*flags, "--model_name=m")
        assert answer(url) == 2.0
        process.terminate()


@pytest.mark.timeout(300)
def test_a_root_may_be_a_store_and_workers_serve_what_their_supervisor_fetched(
    web: WebStore, lines: Lines, serve: Serve
) -> None:
    web.publish(lines[1], "models/m/1")
    process, url = serve(web.url("models/"), "--workers=2")
    assert answer(url) == 1.0
    web.publish(lines[2], "models/late/1")
    wait_until(lambda: fetch(f"{url}/-/ready/late")[0] == 200)
    assert answer(url, "late") == 2.0
    process.terminate()


def test_flags_become_options(tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    file.write_text('{"s3": {"endpoint_url": "http://store"}}')
    flags = [
        "--model_base_path=s3://bucket/m",
        f"--remote_cache_dir={tmp_path}",
        "--remote_cache_max_bytes=5",
        "--remote_poll_wait_seconds=2.5",
        "--remote_timeout=7",
        f"--remote_storage_options_file={file}",
    ]
    config = server_config(parse(flags), {})
    assert config.models is not None
    assert config.models[0].base_path == StoreUrl("s3://bucket/m")
    options = config.options
    assert (options.remote_cache_dir, options.remote_cache_max_bytes) == (tmp_path, 5)
    assert (options.remote_poll_interval, options.remote_timeout) == (2.5, 7.0)
    assert options.remote_storage_options == {"s3": {"endpoint_url": "http://store"}}
    assert type(config).from_json(config.to_json()) == config
    root = server_config(parse(["s3://bucket/models/"]), {})
    assert root.root == StoreUrl("s3://bucket/models")
    assert type(root).from_json(root.to_json()) == root
    unset = server_config(parse(["s3://bucket/models/"]), {}).options
    assert (unset.remote_cache_dir, unset.remote_cache_max_bytes, unset.remote_poll_interval) == (None, None, None)


@pytest.mark.parametrize("contents", ["no JSON: secret", '["secret"]', '{"s3": "secret"}'])
def test_a_file_that_holds_no_options_is_refused_without_showing_it(contents: str, tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    file.write_text(contents)
    with pytest.raises(ConfigError, match="holds no JSON of options by scheme") as caught:
        server_config(parse(["s3://bucket/models", f"--remote_storage_options_file={file}"]), {})
    assert "secret" not in caught.value.message
    with pytest.raises(ConfigError, match="none; No such file") as missing:
        server_config(parse(["s3://bucket/models", f"--remote_storage_options_file={tmp_path / 'none'}"]), {})
    assert missing.value.code is Code.NOT_FOUND
