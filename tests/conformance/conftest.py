"""Server processes with the flags of TensorFlow Serving's own test harness, and clients made for it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import grpc
import pytest
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from embedserve.grpc import GrpcApp, GrpcServer
from embedserve.grpc import serve as serve_grpc
from embedserve.testing import FakeRegistry
from tests.e2e.conftest import ServerProcess
from tests.grpc.conftest import AsgiServer, Client
from tests.support import saved_models
from tests.support.programs import free_port, run_program

VERSION = "00000123"
VERSION_NUMBER = int(VERSION)
METRICS_PATH = "/monitoring/prometheus/metrics"

# As TensorFlow Serving names its test models; the shapes are described in each builder.
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "half_plus_two": saved_models.tf1_examples,
    "half_plus_three": lambda path: saved_models.tf1_examples(path, b=3.0),
    "half_plus_two_tf2": saved_models.examples,
    "tf_saved_model_save": saved_models.unknown_rank_product,
    "multiple_signatures": saved_models.constant_scalars,
    "sequential_keras": saved_models.keras_line,
}


class Serving(NamedTuple):
    """A server process that serves, and where."""

    process: ServerProcess
    grpc: str
    rest: str

    @contextmanager
    def stubs(self, target: str | None = None) -> Iterator[tuple[Any, Any]]:
        """PredictionService and ModelService, through the official stubs."""
        with grpc.insecure_channel(target or self.grpc) as channel:
            yield (
                prediction_service_pb2_grpc.PredictionServiceStub(channel),
                model_service_pb2_grpc.ModelServiceStub(channel),
            )

    def url(self, path: str) -> str:
        return f"{self.rest}{path}"


Serve = Callable[..., Serving]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`NAME/00000123` of each model of section 12."""
    directory = tmp_path_factory.mktemp("exported")
    run_program("-m", "tests.conformance.exports", *(directory / name / VERSION for name in ("distributed", "text")))
    for name, build in BUILDERS.items():
        build(directory / name / VERSION)
    return directory


@pytest.fixture(scope="session")
def socket_path() -> Iterator[Path]:
    """One path for the Unix socket of every server at once; short, because the system bounds its length."""
    with TemporaryDirectory(prefix="es-") as directory:
        yield Path(directory) / "tf-serving.sock"


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory, socket_path: Path) -> Iterator[Serve]:
    """Start a server as the harness does and return when it is ready; it is killed at the end, as there."""
    with ExitStack() as stack:

        def start(*arguments: object, ready: bool = True, **environment: str) -> Serving:
            port, rest = free_port(), free_port()
            flags: dict[str, object] = {
                "--port": port,
                "--rest_api_port": rest,
                "--rest_api_timeout_in_ms": 5000,
                "--grpc_socket_path": socket_path,
                "--grpc_channel_arguments": "grpc.so_reuseaddr=1",
            }
            given = [str(argument) for argument in arguments]
            for argument in given:
                flags.pop(argument.partition("=")[0], None)
            process = ServerProcess(
                *(f"{name}={value}" for name, value in flags.items()),
                *given,
                cwd=tmp_path_factory.mktemp("server"),
                cold=False,
                **environment,
            )
            stack.callback(process.close)
            if ready:
                process.wait_until_serving()
            return Serving(process, f"localhost:{port}", f"http://localhost:{rest}")

        yield start


@asynccontextmanager
async def serving(registry: FakeRegistry, transport: str) -> AsyncIterator[Client]:
    """A gRPC server in this loop, `embedserve`, `grpcio` or `asgi`, and the official stubs on it."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(registry)
        server: GrpcServer | AsgiServer
        if transport != "asgi":
            chosen: Any = transport
            serving = serve_grpc(registry, transport=chosen, host="127.0.0.1", port=0)
            server = await stack.enter_async_context(serving)
        else:
            server = AsgiServer(GrpcApp(registry))
            await server.start()
            stack.push_async_callback(server.aclose)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        yield Client(server, channel, registry)


def predict_request(name: str, *, signature_name: str = "", rows: bool = False, only: str = "") -> Any:
    """The harness's request: `x` is 2.0 of shape `[1]`, or `[1,1]`."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature_name
    tensor = request.inputs["x"]
    tensor.dtype = 1
    for _ in range(2 if rows else 1):
        tensor.tensor_shape.dim.add(size=1)
    tensor.float_val.append(2.0)
    if only:
        request.output_filter.append(only)
    return request


def verify_predict(serving: Serving, name: str, expected: float, *, target: str | None = None, **how: Any) -> None:
    """What the harness's `VerifyPredictRequest` asserts."""
    request = predict_request(name, **how)
    with serving.stubs(target) as (stub, _):
        response = stub.Predict(request, timeout=60)
    assert response.outputs["y"].dtype == 1
    assert len(response.outputs["y"].float_val) == 1
    assert response.outputs["y"].float_val[0] == pytest.approx(expected)
    assert response.model_spec.name == name
    assert response.model_spec.signature_name == (how.get("signature_name") or "serving_default")
    assert response.model_spec.version.value == VERSION_NUMBER


def config_of(**base_paths: Path) -> str:
    """A text ModelServerConfig, with the separators that TensorFlow Serving's tests use."""
    listed = ",\n".join(
        f'config: {{ name: "{name}", base_path: "{path}", model_platform: "tensorflow" }}'
        for name, path in base_paths.items()
    )
    return f"model_config_list: {{\n{listed}\n}}\n"


def program_or_skip(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found
