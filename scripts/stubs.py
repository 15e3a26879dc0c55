"""Writes the type stubs of TensorFlow's and TensorFlow Serving's messages: the installed packages bring none.

`python -m scripts.stubs`, once a newer package has other messages; a test names the missing fields.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

TYPINGS = Path(__file__).parents[1] / "typings"
SERVING = ("tensorflow_serving.apis", "tensorflow_serving.config")

# The clients' classes have no stubs.
UNTYPED = "from typing import Any\n\ndef __getattr__(name: str) -> Any: ...\n"

# TensorFlow's messages that the project reads or writes. A message of another file is untyped.
TENSORFLOW = (
    "example.example",
    "example.feature",
    "framework.attr_value",
    "framework.function",
    "framework.graph",
    "framework.node_def",
    "framework.op_def",
    "framework.tensor",
    "framework.tensor_shape",
    "framework.types",
    "framework.versions",
    "protobuf.config",
    "protobuf.meta_graph",
    "protobuf.named_tensor",
    "protobuf.rewriter_config",
    "protobuf.saved_model",
    "protobuf.saved_object_graph",
    "protobuf.struct",
    "protobuf.tensor_bundle",
    "protobuf.trackable_object_graph",
)


def modules() -> Iterator[str]:
    """The modules of messages, by their names."""
    for package in SERVING:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if module.name.endswith("_pb2"):
                yield f"{package}.{module.name}"
    yield from (f"tensorflow.core.{name}_pb2" for name in TENSORFLOW)


def with_dependencies(file: FileDescriptor, found: dict[str, FileDescriptorProto]) -> None:
    """Add a file to `found`, after the files that it imports."""
    if file.name not in found:
        for dependency in file.dependencies:
            with_dependencies(dependency, found)
        file.CopyToProto(described := FileDescriptorProto())
        found[file.name] = described


def with_plain_enums(stubs: list[Path]) -> None:
    """Let a field of an enum be an `int`, as it is for protobuf; `protoc` says that it is of the enum's own class."""
    enums = {name for stub in stubs for name in re.findall(r"class (\w+)\(int, metaclass", stub.read_text())}
    named = re.compile(rf"(?<=[\[ ])(?:\w+\.)*(?:{'|'.join(sorted(enums))})(?=[\],\n])")
    for stub in stubs:
        stub.write_text(named.sub("int", stub.read_text()))


def main() -> None:
    found: dict[str, FileDescriptorProto] = {}
    names = []
    for module in modules():
        file: FileDescriptor = importlib.import_module(module).DESCRIPTOR
        with_dependencies(file, found)
        names.append(file.name)
    shutil.rmtree(TYPINGS, ignore_errors=True)
    TYPINGS.mkdir()
    with tempfile.NamedTemporaryFile() as described:
        described.write(FileDescriptorSet(file=found.values()).SerializeToString())
        described.flush()
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={described.name}"]
        subprocess.run([*command, f"--pyi_out={TYPINGS}", *names], check=True)
    with_plain_enums(list(TYPINGS.rglob("*.pyi")))
    for service in ("model_service", "prediction_service"):
        (TYPINGS / f"tensorflow_serving/apis/{service}_pb2_grpc.pyi").write_text(UNTYPED)
    for folder in filter(Path.is_dir, TYPINGS.rglob("*")):
        (folder / "__init__.pyi").touch()


if __name__ == "__main__":
    main()
