"""Each recipe of docs/hosting.md, as the page has it, in the real host."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import saved_models
from tests.support.pages import Recipe
from tests.support.programs import ROOT, answers, fetch, free_port, program, run_program, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # Programs that import TensorFlow.

PAGE = ROOT / "docs" / "hosting.md"
MODEL = "v1/models/half_plus_two"


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with `half_plus_two/1`."""
    models = tmp_path_factory.mktemp("half") / "models"
    saved_models.half_plus_two(models / "half_plus_two" / "1")
    return models


@pytest.fixture
def place(half: Path, tmp_path: Path) -> Path:
    """A working directory with `models` in it, as each recipe expects."""
    (tmp_path / "models").symlink_to(half)
    return tmp_path


@contextmanager
def serving(recipe: Recipe, place: Path, command: int, ready: str, port: int) -> Iterator[str]:
    """Run one of a recipe's commands as it stands; gives the URL that answers."""
    url = f"http://127.0.0.1:{port}"
    name, *arguments = recipe.commands()[command]
    with program("-m", name, *arguments, until=answers(url + ready), cwd=recipe.write(place)):
        yield url


def large_answer(url: str) -> None:
    """A body of several MB there and back."""
    numbers = [float(number) for number in range(300_000)]
    status, document = fetch(f"{url}/{MODEL}:predict", {"instances": numbers})
    assert status == 200
    assert document["predictions"][-1] == 0.5 * numbers[-1] + 2


def test_every_recipe_of_the_page_is_run() -> None:
    headings = re.findall(r"^##+ (.*)$", PAGE.read_text(), re.MULTILINE)
    calls = re.findall(r'Recipe\(PAGE((?:, "[^"]*")+)', Path(__file__).read_text())
    run = set(re.findall(r'"(.*?)"', " ".join(calls)))
    assert set(headings) - run == {"systemd"}, "shows no code, and names a file that has a test of its own"


# Hosts on asyncio.


SERVERS = """
import shlex, sys, threading
from uvicorn import main

def serve(line):
    main.main(shlex.split(line)[1:], standalone_mode=False)

threads = [threading.Thread(target=serve, args=(line,), daemon=True) for line in sys.argv[1:]]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.fixture(scope="module")
def on_asyncio(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URL of each recipe for uvicorn: in one process with one TensorFlow, a registry and a loop each."""
    place = tmp_path_factory.mktemp("asyncio")
    (place / "models").symlink_to(half)
    urls, commands = {}, []
    recipes = (Recipe(PAGE, "FastAPI"), Recipe(PAGE, "ASGI under uvicorn", "Django"), Recipe(PAGE, "Litestar"))
    for name, recipe in zip(("fastapi", "django", "litestar"), recipes, strict=True):
        port = free_port()
        ((command, *arguments),) = recipe.commands()
        assert command == "uvicorn"
        urls[name] = f"http://127.0.0.1:{port}"
        commands.append(shlex.join(["uvicorn", *arguments[:-1], str(port)]))
        recipe.write(place)

    def up() -> bool:
        return all(answers(f"{url}/ml/{MODEL}")() for url in urls.values())

    with program("-c", SERVERS, *commands, until=up, cwd=place):
        yield urls


def test_fastapi(on_asyncio: dict[str, str]) -> None:
    url = on_asyncio["fastapi"]
    assert fetch(f"{url}/half", {"x": [1, 2]}) == (200, {"y": [2.5, 3.0]})
    status, refused = fetch(f"{url}/half", {"x": [1e39]})
    assert status == 400
    assert "x" in refused["error"]
    assert fetch(f"{url}/ml/{MODEL}:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_django_under_asgi(on_asyncio: dict[str, str]) -> None:
    url = on_asyncio["django"]
    assert fetch(f"{url}/half?x=1") == (200, {"y": 2.5})
    assert fetch(f"{url}/half-async?x=2") == (200, {"y": 3.0})
    for path in ("half", "half-async"):
        status, refused = fetch(f"{url}/{path}?x=1e39")
        assert status == 400
        assert "x" in refused["error"]
    assert fetch(f"{url}/ml/{MODEL}:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_litestar(on_asyncio: dict[str, str]) -> None:
    url = on_asyncio["litestar"]
    assert fetch(f"{url}/half", [1, 2]) == (201, [2.5, 3.0])
    assert fetch(f"{url}/ml/{MODEL}:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
    assert fetch(f"{url}/ml/{MODEL}:predict/", {"instances": [1.0]})[0] == 400


def test_fastapi_with_fakes(tmp_path: Path) -> None:
    Recipe(PAGE, "FastAPI").write(tmp_path)
    code = "import test_service, sys; test_service.test_half(); assert 'tensorflow' not in sys.modules"
    run_program("-c", code, cwd=tmp_path, cold=True)


# Hosts with threads and processes.


@pytest.mark.parametrize("command", [0, 1], ids=["after the fork", "preload"])
def test_django_under_gunicorn(command: int, place: Path) -> None:
    port = free_port()
    recipe = Recipe(PAGE, "WSGI under gunicorn", "Django", ports={8000: port})
    with serving(recipe, place, command, "/half?x=1", port) as url:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(lambda x: fetch(f"{url}/half?x={x}"), range(16)))
        assert found == [(200, {"y": 0.5 * x + 2}) for x in range(16)]
        assert fetch(f"{url}/half-async?x=2") == (200, {"y": 3.0})


def test_flask_with_rest_below_it(place: Path) -> None:
    port = free_port()
    recipe = Recipe(PAGE, "Flask, and REST below a WSGI application", ports={8000: port})
    with serving(recipe, place, 0, "/half?x=1", port) as url:
        assert fetch(f"{url}/half?x=1") == (200, {"y": 2.5})
        status, refused = fetch(f"{url}/half?x=1e39")
        assert status == 400
        assert "x" in refused["error"]
        assert fetch(f"{url}/ml/{MODEL}")[1]["model_version_status"][0]["state"] == "AVAILABLE"
        assert fetch(f"{url}/ml/{MODEL}:predict", {"instances": "x"})[0] == 400
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(large_answer, [f"{url}/ml"] * 4))
        # Clients that leave before they have read their answer.
        body = json.dumps({"instances": [0.0] * 300_000}).encode()
        for _ in range(4):
            with socket.create_connection(("127.0.0.1", port)) as client:
                head = f"POST /ml/{MODEL}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                client.sendall(head.encode() + body)
                assert client.recv(10)
        assert fetch(f"{url}/ml/{MODEL}:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


def test_celery(place: Path) -> None:
    recipe = Recipe(PAGE, "Celery")
    recipe.write(place)
    for name in ("queue", "results"):
        (place / name).mkdir()
    name, *arguments = recipe.commands()[0]
    ask = "import tasks; print([job.get(timeout=100) for job in [tasks.half.delay(x) for x in (1.0, 2.0)]])"
    with program("-m", name, *arguments, until=lambda: True, cwd=place, cold=True):
        assert run_program("-c", ask, cwd=place) == "[2.5, 3.0]\n"


def test_multiprocessing(place: Path) -> None:
    Recipe(PAGE, "multiprocessing").write(place)
    assert run_program("pool.py", cwd=place, cold=True) == "[2.5, 3.0]\n"


def test_jupyter(place: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    port = free_port()
    cells = Recipe(PAGE, "Jupyter", ports={8501: port}).cells()
    looks = f"""
import json, time, urllib.request

def ask():
    while True:
        try:
            with urllib.request.urlopen("http://127.0.0.1:{port}/{MODEL}:predict", b'{{"instances": [1.0]}}') as answer:
                return json.load(answer)["predictions"]
        except OSError:
            time.sleep(0.05)

ask()
"""
    cells.insert(3, looks)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(place)}}).execute()
    assert _shown(notebook.cells[1]) == "[2.5, 3.0]"
    assert _shown(notebook.cells[3]) == "[2.5]"


def _shown(cell: Any) -> str:
    (output,) = [output for output in cell.outputs if output.output_type == "execute_result"]
    return str(output.data["text/plain"])


@pytest.mark.may_block
def test_trio(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Recipe(PAGE, "trio").write(place)
    monkeypatch.chdir(place)
    runpy.run_path("on_trio.py", run_name="__main__")
    assert capsys.readouterr().out == "[2.5, 3.0]\n"


# What stands before or beside a server of its own; all of it shares one.


@pytest.fixture(scope="module")
def server(half: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    directory = tmp_path_factory.mktemp("standalone")
    with Standalone(half, directory) as running:
        yield running


class Standalone:
    """`embedserve models` as systemd starts it."""

    def __init__(self, models: Path, directory: Path) -> None:
        self.rest, self.grpc = free_port(), free_port()
        self._models = models
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.settimeout(60)
        self._address = directory / "notify"
        self._notify.bind(str(self._address))
        self.said: list[str] = []
        self.was_ready = False

    def __enter__(self) -> Standalone:
        ports = (f"--port={self.grpc}", f"--rest_api_port={self.rest}")
        server = ("-m", "embedserve", self._models, *ports)
        self._program = program(*server, until=self._heard, NOTIFY_SOCKET=str(self._address))
        self._program.__enter__()
        self.was_ready = answers(f"http://127.0.0.1:{self.rest}/-/ready")()
        return self

    def _heard(self) -> bool:
        self._notify.setblocking(False)
        try:
            self.said.append(self._notify.recv(100).decode())
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *error: Any) -> None:
        self._program.__exit__(*error)
        self._heard()
        self._notify.close()
        assert self.said == ["READY=1", "STOPPING=1"]


def test_systemd_is_told_when_the_models_serve(server: Standalone) -> None:
    """And at the end that it stops: the fixture looks."""
    assert server.said == ["READY=1"]
    assert server.was_ready


def test_the_unit_file_is_one_that_systemd_takes(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "systemd" / "embedserve.service").read_text()
    command = re.search(r"^ExecStart=(\S+) (.*)$", text, re.MULTILINE)
    assert command is not None
    assert "Type=notify\n" in text
    (tmp_path / "embedserve.service").write_text(text.replace(command[1], sys.executable))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "embedserve.service"], capture_output=True, text=True
    )
    assert "embedserve.service" not in checked.stderr, checked.stderr


def test_gevent(server: Standalone, tmp_path: Path) -> None:
    Recipe(PAGE, "gevent", ports={8501: server.rest}).write(tmp_path)
    assert run_program("on_gevent.py", cwd=tmp_path) == "[2.0, 2.5, 3.0, 3.5]\n"


@contextmanager
def proxy(*command: object, until: Callable[[], bool]) -> Iterator[None]:
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: process.poll() is not None or until())
        assert process.poll() is None, process.communicate()[1].decode()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=30)


def predict_over_grpc(port: int, numbers: int) -> float:
    import grpc
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)]) as channel:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "half_plus_two"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((numbers, 1), np.float32)))
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    return float(answer.outputs["y"].float_val[-1])


def through(rest: int, grpc: int) -> None:
    """What a client needs of a proxy: both APIs, small and large."""
    url = f"http://127.0.0.1:{rest}"
    assert fetch(f"{url}/{MODEL}:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
    large_answer(url)
    for numbers in (1, 1_000_000):
        assert predict_over_grpc(grpc, numbers) == 2.5


def test_nginx(server: Standalone, tmp_path: Path) -> None:
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    rest, grpc = free_port(), free_port()
    recipe = Recipe(PAGE, "nginx", ports={8500: server.grpc, 8501: server.rest, 8080: rest, 8081: grpc})
    recipe.write(tmp_path)
    directives = f"daemon off; pid {tmp_path}/pid; error_log stderr;"
    command = ("nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-g", directives)
    with proxy(*command, until=answers(f"http://127.0.0.1:{rest}/healthz")):
        through(rest, grpc)


def test_haproxy(server: Standalone, tmp_path: Path) -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    rest, grpc = free_port(), free_port()
    recipe = Recipe(PAGE, "HAProxy", ports={8500: server.grpc, 8501: server.rest, 8080: rest, 8081: grpc})
    recipe.write(tmp_path)
    up = answers(f"http://127.0.0.1:{rest}/{MODEL}")
    with proxy("haproxy", "-f", tmp_path / "haproxy.cfg", until=up):
        through(rest, grpc)
