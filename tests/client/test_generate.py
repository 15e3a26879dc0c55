"""Generated modules pass strict type checkers and call servers: Python's always, TypeScript's where npm's packages are.

npm install typescript     # in the directory of which $EMBEDSERVE_NODE_MODULES names the node_modules
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve.__main__ import main as embedserve_main
from embedserve_client import Client, ModelMetadata, Signature, TensorSpec
from embedserve_client.generate import main, python_module, typescript_module
from tests.support.programs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TYPED_USE = """
import several_client
from embedserve_client import Client

with Client("{url}") as client:
    outputs = several_client.serving_default(client, {{"left": [[1, 2, 3.5]], "right": [[1, 2, 3]]}}, timeout=60)
    print(outputs["total"].tolist(), outputs["doubled"].tolist())
    print(several_client.scalars(client, {{"a": 2.0, "b": 4.0}}, version=1)["product"].item())
"""

WRONG_USE = """
import several_client
from embedserve_client import Client

several_client.serving_default(Client("grpc://x"), {"left": [1.0]})
several_client.serving_default(Client("grpc://x"), {"left": [1.0], "right": [1]}, timeouts=1)
several_client.serving_default(Client("grpc://x"), {"left": [1.0], "right": [1]})["totals"]
"""


def strange() -> ModelMetadata:
    """Names that are no identifiers, that collide, or that would end a comment or a string."""
    x = {"a-b": TensorSpec("a-b", "float", (None, 2)), "class": TensorSpec("class", "string", None)}
    y = {'q"\\': TensorSpec('q"\\', "bfloat16", ()), "__y": TensorSpec("__y", "bool", (None,))}
    names = ["np", "a b", "a_b", "1st", 'x*/"""\n', "class", "Ünï", "default"]
    signatures = {name: Signature(name, x, y if name == "np" else x, "", ("class",)) for name in names}
    signatures["__saved_model_init_op"] = Signature("__saved_model_init_op", {}, {})
    return ModelMetadata('m*/"""', 3, signatures)


def mypy(directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MYPYPATH": str(ROOT / "clients" / "python")}
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull, "--config-file", os.devnull]
    command += ["--python-version", "3.11", "."]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=200)


def test_a_python_module_is_typed_and_calls_each_signature(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"grpc://127.0.0.1:{port}"
    assert embedserve_main(["client", url, "several"]) == 0
    module = capsys.readouterr().out
    assert "float [?, 3]" in module
    (tmp_path / "several_client.py").write_text(module)
    (tmp_path / "use.py").write_text(TYPED_USE.format(url=url))
    (tmp_path / "strange_client.py").write_text(python_module(strange(), url))
    done = mypy(tmp_path)
    assert done.returncode == 0, done.stdout
    said = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert said.stdout.splitlines() == ["[[2.0, 4.0, 6.5]] [[2, 4, 6]]", "8.0"], said.stderr
    (tmp_path / "use.py").write_text(WRONG_USE)
    found = mypy(tmp_path).stdout
    assert found.count("error:") == 3, found


def test_the_module_of_strange_names_runs() -> None:
    names: dict[str, Any] = {}
    exec(python_module(strange(), "grpc://x"), names)
    assert {"np_", "a_b", "a_b_", "signature_1st", "class_"} <= names.keys()
    assert names["NpInputs"].__optional_keys__ == {"class"}


def test_what_cannot_be_read_is_one_line_and_status_2(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"http://127.0.0.1:{port}", "absent"]) == 2
    assert capsys.readouterr().err.startswith("embedserve-client: Servable not found")


def test_a_typescript_module_names_what_json_lacks(target: Any) -> None:
    with Client(target("grpc")) as client:
        module = typescript_module(client.metadata("same"), "http://x")
    assert "// Left out: bfloat16, because JSON carries no bfloat16" in module
    assert '"x": Nested<Bytes>;' in module
    assert "export async function int64(" in module


TYPESCRIPT_USE = """
import { ModelError, servingDefault, scalars } from "./several.js";
import * as half from "./half.js";
import { string } from "./same.js";

const options = { baseUrl: "URL" };
const found = await servingDefault({ left: [[1, 2, 3.5]], right: [[1, 2, 3]] }, options);
const total: number[][] = found.total;
console.log(JSON.stringify([total, found.doubled, found.row_sum]));
console.log((await scalars({ a: 2, b: 4 }, { ...options, version: 1 })).product);
console.log(JSON.stringify((await half.servingDefault({ x: [[1]] }, { ...options, label: "old" })).y));
console.log(String((await half.servingDefault({ x: [[1e308 * 3.4e-270], [3.4e38]] }, options)).y.length));
console.log(JSON.stringify((await string({ x: ["grün", { b64: "AAEC" }] }, options)).y));
try {
  await scalars({ a: 1, b: 2 }, { ...options, version: 9 });
} catch (error) {
  console.log(error instanceof ModelError ? error.status : error);
}
"""


def node_modules() -> Path | None:
    place = os.environ.get("EMBEDSERVE_NODE_MODULES")
    found = Path(place).resolve() if place else None
    return found if found is not None and (found / "typescript").exists() else None


if node_modules() is not None:  # npm's packages are not on PyPI or in Debian, so that the machine says where they are.

    def test_typescript_modules_pass_strict_checks_and_call_a_server_from_node(port: int, tmp_path: Path) -> None:
        url = f"http://127.0.0.1:{port}"
        with Client(url) as client:
            for model in ("several", "half", "same"):
                (tmp_path / f"{model}.ts").write_text(typescript_module(client.metadata(model), url))
        (tmp_path / "strange.ts").write_text(typescript_module(strange(), url))
        (tmp_path / "use.ts").write_text(TYPESCRIPT_USE.replace("URL", url))
        (tmp_path / "package.json").write_text('{"type": "module"}')
        modules = node_modules()
        assert modules is not None
        options = ["--strict", "--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom", "--skipLibCheck"]
        options += ["--exactOptionalPropertyTypes", "--noUncheckedIndexedAccess", "use.ts", "strange.ts"]
        command = ["node", str(modules / "typescript" / "bin" / "tsc"), *options]
        checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert checked.returncode == 0, checked.stdout
        said = subprocess.run(["node", "use.js"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
        assert said.stdout.splitlines() == [
            "[[[2,4,6.5]],[[2,4,6]],[12.5]]",
            "8",
            "[[2.5]]",
            "2",
            '["grün","\\u0000\\u0001\\u0002"]',
            "404",
        ], said.stderr


def test_a_number_beyond_json_comes_back_from_rest(target: Any) -> None:
    array = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    with Client(target("http")) as client:
        np.testing.assert_array_equal(client.predict("same", {"x": array})["y"], array)
