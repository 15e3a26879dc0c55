"""The C++ peers: compiled over the C library of TensorFlow's wheel when first asked for, and kept in the suite's cache.

What must be installed is said where it is missing. Changed sources, another compiler or another TensorFlow are another
program.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from benchmarks.suite import wire
from benchmarks.suite.environments import PEERS, NotInstallable, alone
from benchmarks.suite.workloads import cache_directory

SOURCES = PEERS / "cpp"
INSTALL = "apt-get install -y --no-install-recommends g++"
INSTALL_GRPC = f"{INSTALL} pkg-config libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler"
LIMIT = 900


def tensorflow_directory() -> Path:
    """Where TensorFlow's wheel is; TensorFlow is not imported.

    Raises:
        NotInstallable: There is none.
    """
    spec = find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise NotInstallable("TensorFlow is not installed")
    return Path(spec.submodule_search_locations[0])


def program_of(name: str) -> Path:
    """The program of `peers/cpp/<name>.cc`; `grpc_server` needs libgrpc++ as well.

    Raises:
        NotInstallable: A tool or a library is missing, or the compiler's words.
    """
    uses_grpc = name == "grpc_server"
    tools = ["g++", *(["protoc", "grpc_cpp_plugin", "pkg-config"] if uses_grpc else [])]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise NotInstallable(f"{', '.join(missing)} not found: {INSTALL_GRPC if uses_grpc else INSTALL}")
    digest = hashlib.sha256(_run("g++", "--version").encode() + version("tensorflow").encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    program = cache_directory() / f"cpp-{digest.hexdigest()[:12]}" / name
    with alone(program.parent.with_suffix(".lock")):
        if not program.exists():
            program.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as directory:
                _compile(name, Path(directory), program, uses_grpc=uses_grpc)
    return program


def _compile(name: str, work: Path, program: Path, *, uses_grpc: bool) -> None:
    generated, libraries = [], ["-ldl"]
    if uses_grpc:
        plugin = f"--plugin=protoc-gen-grpc={shutil.which('grpc_cpp_plugin')}"
        _run("protoc", f"--cpp_out={work}", f"--grpc_out={work}", plugin, f"-I{SOURCES}", "predict.proto")
        generated = [str(work / "predict.pb.cc"), str(work / "predict.grpc.pb.cc")]
        libraries += _run("pkg-config", "--libs", "grpc++", "protobuf").split()
    # The wheel's headers come after the system's: its protobuf is another one.
    headers = [f"-I{work}", f"-I{SOURCES}", "-idirafter", str(tensorflow_directory() / "include")]
    built = work / name
    _run("g++", "-std=c++17", "-O2", *headers, str(SOURCES / f"{name}.cc"), *generated, "-o", str(built), *libraries)
    shutil.move(built, program)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise NotInstallable(f"{command[0]}: {done.stderr.strip()}"[:600])
    return done.stdout


def arguments(models: Path, port: int) -> list[str]:
    """What both programs are started with, for the models below a directory."""
    found = [str(port), str(tensorflow_directory() / "libtensorflow_cc.so.2")]
    for path in sorted(models.glob("*/1")):
        found += [path.parent.name, str(path), *graph_names((path / "saved_model.pb").read_bytes())]
    return found


def graph_names(saved_model: bytes) -> tuple[str, str]:
    """In the graph, the names of the only input and the only output of `serving_default`."""
    meta_graph = wire.one(saved_model, 2)
    for number, entry in wire.fields(meta_graph):
        if number == 5 and isinstance(entry, bytes) and wire.one(entry, 1) == b"serving_default":
            signature = wire.one(entry, 2)
            names = (wire.one(wire.one(wire.one(signature, kind), 2), 1).decode() for kind in (1, 2))
            return next(names), next(names)
    raise ValueError("the model has no signature serving_default")
