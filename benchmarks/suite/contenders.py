"""Who is measured: how each server is started, what it is asked and what its own documentation made us turn on.

Data only; `measure` starts and asks them. The programs of all but embedserve are in `benchmarks/peers`.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.suite.compiled import arguments
from benchmarks.suite.environments import PEERS
from benchmarks.suite.wire import (
    IN_PROCESS,
    LIST_REST,
    PLAIN_REST,
    TFS_GRPC,
    TFS_REST,
    V2_GRPC,
    V2_REST,
    Format,
)

EMBEDSERVE = (sys.executable, "-m", "embedserve")


@dataclass(frozen=True)
class Place:
    """What a server is given to start with.

    Attributes:
        program: The interpreter of its environment, or what was compiled.
        models: Directory with `<name>/1` for each workload.
        work: An empty directory of its own, for its files.
        answers: What a no-op answers: `<name>.rest`, `<name>.grpc`, and the sizes of the requests.
        rest, grpc: Free ports.
    """

    program: Path
    models: Path
    work: Path
    answers: Path
    rest: int
    grpc: int


@dataclass(frozen=True)
class Contender:
    """One server, or one way of calling in process.

    Attributes:
        name: In tables, and for `--servers`.
        group: `embedserve`, `noop`, `naive`, `tensorflow`, `cpp` or `peers`; for `--servers` too.
        formats: What it speaks, one per protocol at most.
        command: Its command line.
        what: What it is and how it is tuned, for the report.
        package: The peer's distribution, whose version the report names.
        requirements: Its file in `benchmarks/peers`; None runs in this environment.
        compiled: Its source in `benchmarks/peers/cpp`, without the `.cc`.
        environment: Variables to set, from its place.
        one_port: gRPC is answered on the REST port too.
        fixed: Answers the first example's answer whatever it is asked.
        halts: Can be stopped while others are measured; else it is started anew for each repeat.
        workloads: What it is asked; all of them where none is named.
    """

    name: str
    group: str
    formats: tuple[Format, ...]
    command: Callable[[Place], list[str]]
    what: str
    package: str = ""
    requirements: str | None = None
    compiled: str = ""
    environment: Callable[[Place], Mapping[str, str]] = field(default=lambda place: {})
    one_port: bool = False
    fixed: bool = False
    halts: bool = True
    workloads: tuple[str, ...] = ()

    def format(self, protocol: str) -> Format | None:
        """What it is asked in over `protocol`, if it can be."""
        return next((format for format in self.formats if format.protocol == protocol), None)


def script(name: str) -> Callable[[Place], list[str]]:
    """A program of `benchmarks/peers` that takes models and port. -P: its neighbours are no modules to import."""
    return lambda place: [str(place.program), "-P", str(PEERS / name), str(place.models), str(place.rest)]


def _in_process(kind: str) -> Callable[[Place], list[str]]:
    return lambda place: [sys.executable, "-m", "benchmarks.suite.in_process", kind, str(place.models)]


CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender(
            "embedserve-standalone",
            "embedserve",
            (TFS_REST, TFS_GRPC),
            lambda place: [*EMBEDSERVE, str(place.models), f"--port={place.grpc}", f"--rest_api_port={place.rest}"],
            "`python -m embedserve MODELS`: the own listener on both ports, no flag but the ports",
        ),
        Contender(
            "embedserve-grpcio",
            "embedserve",
            (TFS_GRPC,),
            lambda place: [
                *(*EMBEDSERVE, str(place.models), "--grpc_server=grpcio"),
                *(f"--port={place.grpc}", f"--rest_api_port={place.rest}"),
            ],
            "`python -m embedserve MODELS --grpc_server=grpcio`: gRPC on grpc.aio",
        ),
        Contender(
            "embedserve-http",
            "embedserve",
            (TFS_REST, TFS_GRPC),
            lambda place: [
                *(sys.executable, "-m", "uvicorn", "--factory", "benchmarks.suite.asgi_service:make"),
                *("--http", "embedserve.http:HttpProtocol", "--loop", "uvloop", "--no-access-log"),
                *("--log-level", "warning", "--port", str(place.rest)),
            ],
            '`create_app(registry, grpc=True)` on uvicorn with `http="embedserve.http:HttpProtocol"`: one port',
            environment=lambda place: {"MODELS": str(place.models)},
            one_port=True,
        ),
        Contender(
            "embedserve-optimised",
            "embedserve",
            (TFS_REST, TFS_GRPC),
            lambda place: [
                *(*EMBEDSERVE, "--model_name=mobilenet", f"--model_base_path={place.models / 'mobilenet'}"),
                *("--optimize=freeze", f"--port={place.grpc}", f"--rest_api_port={place.rest}"),
            ],
            "`python -m embedserve --optimize=freeze`: as embedserve-standalone, with its variables frozen",
            workloads=("mobilenet",),
        ),
        Contender(
            "embedserve-in-process",
            "embedserve",
            (IN_PROCESS,),
            _in_process("embedserve"),
            "`await registry.predict(...)` by as many callers, `gc_freeze=True` as in the standalone server",
        ),
        Contender(
            "noop-starlette",
            "noop",
            (TFS_REST,),
            lambda place: [sys.executable, "-P", str(PEERS / "noop_starlette.py"), str(place.answers), str(place.rest)],
            "a Starlette route that reads its body and answers the same bytes, on uvicorn with its own protocol",
            fixed=True,
        ),
        Contender(
            "noop-starlette-http",
            "noop",
            (TFS_REST,),
            lambda place: [
                *(sys.executable, "-P", str(PEERS / "noop_starlette.py"), str(place.answers), str(place.rest)),
                "embedserve.http:HttpProtocol",
            ],
            'the same Starlette route on uvicorn with `http="embedserve.http:HttpProtocol"`',
            fixed=True,
        ),
        Contender(
            "noop-grpc.aio",
            "noop",
            (TFS_GRPC,),
            lambda place: [sys.executable, "-P", str(PEERS / "noop_grpc.py"), str(place.answers), str(place.grpc)],
            "a grpc.aio handler without serializers that answers the same bytes, on uvloop",
            fixed=True,
        ),
        Contender(
            "naive-fastapi",
            "naive",
            (PLAIN_REST,),
            script("naive.py"),
            "FastAPI on uvicorn with uvloop and httptools; one signature call per request",
        ),
        Contender(
            "bare-tensorflow",
            "tensorflow",
            (IN_PROCESS,),
            _in_process("tensorflow"),
            "no server: at concurrency 1 a signature call per row, above that the best batch size in a loop",
        ),
        Contender(
            "cpp-grpc",
            "cpp",
            (TFS_GRPC,),
            lambda place: [str(place.program), *arguments(place.models, place.grpc)],
            "no TensorFlow Serving but its stand-in: libgrpc++, TensorFlow's C library, one thread, no batches",
            compiled="grpc_server",
        ),
        Contender(
            "cpp-rest",
            "cpp",
            (TFS_REST,),
            lambda place: [str(place.program), *arguments(place.models, place.rest)],
            "no TensorFlow Serving but its stand-in: bare epoll, TensorFlow's C library, one thread, no batches",
            compiled="rest_server",
        ),
        Contender(
            "litserve",
            "peers",
            (PLAIN_REST,),
            script("litserve_api.py"),
            "LitServe: an API and a worker per model, batched within 2 ms, `fast_queue`",
            package="litserve",
            requirements="litserve.txt",
        ),
        Contender(
            "bentoml",
            "peers",
            (LIST_REST,),
            lambda place: [
                str(place.program.with_name("bentoml")),
                "serve",
                "bentoml_service:Models",
                f"--working-dir={PEERS}",
                "--host=127.0.0.1",
                f"--port={place.rest}",
            ],
            "BentoML: a service with batchable APIs over typed arrays, one worker",
            package="bentoml",
            requirements="bentoml.txt",
            environment=lambda place: {
                "MODELS": str(place.models),
                "BENTOML_HOME": str(place.work),
                "BENTOML_DO_NOT_TRACK": "True",
            },
        ),
        Contender(
            "mlserver",
            "peers",
            (V2_REST, V2_GRPC),
            lambda place: [*script("mlserver_runtime.py")(place), str(place.grpc)],
            "MLServer: a custom runtime, adaptive batching within 2 ms, in the server's own process",
            package="mlserver",
            requirements="mlserver.txt",
        ),
        Contender(
            "ray-serve",
            "peers",
            (PLAIN_REST,),
            script("ray_deployment.py"),
            "Ray Serve: a deployment per model, `serve.batch` within 2 ms, orjson, throughput-optimised",
            package="ray",
            requirements="ray.txt",
            # Its processes watch each other by the clock.
            environment=lambda place: {
                "RAY_raylet_start_wait_time_s": "120",
                "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
                "RAY_TMPDIR": str(place.work),
            },
            halts=False,
        ),
        Contender(
            "mosec",
            "peers",
            (PLAIN_REST,),
            lambda place: [
                str(place.program),
                "-P",
                str(PEERS / "mosec_worker.py"),
                "--port",
                str(place.rest),
                "--timeout",
                "60000",
            ],
            "mosec: its Rust front, a worker per model, batched within 1 ms, orjson",
            package="mosec",
            requirements="mosec.txt",
            environment=lambda place: {"MODELS": str(place.models)},
        ),
        Contender(
            "pytriton",
            "peers",
            (V2_REST, V2_GRPC),
            lambda place: [*script("pytriton_models.py")(place), str(place.grpc)],
            "PyTriton: Triton with Python models, dynamic batcher without delay",
            package="nvidia-pytriton",
            requirements="pytriton.txt",
            # As its installation page says: its Python must find the library of ours.
            environment=lambda place: {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
        ),
    )
}


def chosen(names: list[str]) -> list[Contender]:
    """The contenders that `names` mean: their own names or groups, in the order of the table.

    Raises:
        ValueError: Nobody has that name.
    """
    unknown = [name for name in names if not any(name in (each.name, each.group) for each in CONTENDERS.values())]
    if unknown:
        raise ValueError(f"no server {unknown[0]!r}; known are {', '.join(CONTENDERS)}, and the groups {groups()}")
    return [each for each in CONTENDERS.values() if not names or each.name in names or each.group in names]


def groups() -> str:
    return ", ".join(dict.fromkeys(each.group for each in CONTENDERS.values()))
