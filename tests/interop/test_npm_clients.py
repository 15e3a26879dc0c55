"""grpc-js and connect-node call the listener; collected where `$EMBEDSERVE_NODE_MODULES` names a directory with them.

npm install @grpc/grpc-js @grpc/proto-loader @connectrpc/connect @connectrpc/connect-node @bufbuild/protobuf
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from tensorflow_serving.apis import prediction_service_pb2

from tests.interop.test_http_clients import PROGRAMS, output_of

pytestmark = pytest.mark.timeout(240)

CONNECT = ("connect gRPC", "connect gRPC-Web over HTTP/1.1", "connect gRPC-Web over HTTP/2")
DEADLINE_EXCEEDED, CANCELLED, NOT_FOUND, SERVING = 4, 1, 5, 1
EXPECTED: dict[str, tuple[int, float | None]] = {
    f"{client} {name}": answer
    for client in ("grpc-js", *CONNECT)
    for name, answer in {
        "2": (0, 2.5),
        "1000000": (0, 500_001.5),
        "deadline": (DEADLINE_EXCEEDED, None),
        "cancel": (CANCELLED, None),
        "error": (NOT_FOUND, None),
        "watch": (0, SERVING),
    }.items()
}


def descriptors() -> bytes:
    """The files of both services, each after the files that it imports."""
    files: dict[str, Any] = {}

    def add(file: Any) -> None:
        for imported in file.dependencies:
            add(imported)
        files.setdefault(file.name, file)

    add(prediction_service_pb2.DESCRIPTOR)
    add(health_pb2.DESCRIPTOR)
    found = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(found.file.add())
    return found.SerializeToString()


def test_grpc_js_and_connect_node(ports: Mapping[str, int], tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(Path(os.environ["EMBEDSERVE_NODE_MODULES"]).resolve())
    program = Path(shutil.copy(PROGRAMS / "rpcs.mjs", tmp_path))
    (tmp_path / "services.pb").write_bytes(descriptors())
    lines = output_of("node", program, ports["HttpProtocol"], tmp_path / "services.pb").splitlines()
    found = {name: (code, value) for name, code, value in map(json.loads, lines)}
    assert found == EXPECTED | {"grpc-js many": (0, 50)}
