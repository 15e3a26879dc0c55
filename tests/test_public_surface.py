"""What is public is declared, and what users read imports nothing else: README, documentation, examples."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator

import pytest

import embedserve
from tests.support.pages import blocks
from tests.support.programs import ROOT

MODULES = ("grpc", "http", "ray", "rest", "testing")
PUBLIC = {"embedserve": {*embedserve.__all__, *MODULES}} | {
    f"embedserve.{name}": set(importlib.import_module(f"embedserve.{name}").__all__) for name in MODULES
}

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
# The other scripts write pages and code of the package from its own tables.
PROGRAMS = [*(ROOT / "examples").rglob("*.py"), ROOT / "scripts" / "demo.py"]
TEXTS = [(page, block) for page in PAGES for block in blocks(page.read_text(), "python")]
TEXTS += [(program, program.read_text()) for program in PROGRAMS]


def is_public(module: str, name: str) -> bool:
    return name in PUBLIC.get(module, ())


def private_uses(code: str) -> Iterator[str]:
    """What a text imports or reads of the package and is not public."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "embedserve":
            yield from (
                f"from {node.module} import {alias.name}"
                for alias in node.names
                if not is_public(str(node.module), alias.name)
            )
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "embedserve" and alias.name not in PUBLIC:
                    yield f"import {alias.name}"
        elif isinstance(node, ast.Attribute):
            module = ast.unparse(node.value)
            if module in PUBLIC and not is_public(module, node.attr):
                yield f"{module}.{node.attr}"


def test_pages_and_examples_use_public_names_only() -> None:
    found = [f"{path.relative_to(ROOT)}: {use}" for path, code in TEXTS for use in private_uses(code)]
    assert not found
    users = {path for path, code in TEXTS if "embedserve" in code}
    assert {ROOT / "README.md", ROOT / "docs" / "hosting.md", ROOT / "examples" / "fastapi_service.py"} <= users


@pytest.mark.parametrize(
    "code",
    [
        "from embedserve.registry import ModelRegistry",
        "from embedserve import ModelRegister",
        "import embedserve.runtime",
        "import embedserve\nembedserve.handle",
        "import embedserve.rest\nembedserve.rest.app",
    ],
)
def test_a_private_name_is_found(code: str) -> None:
    assert list(private_uses(code))


def test_import_strings_name_public_applications() -> None:
    pages = [*PAGES, *(ROOT / "examples").rglob("*.yaml")]
    found = [use for page in pages for use in re.findall(r"\b(embedserve(?:\.\w+)*):([A-Za-z]\w*)", page.read_text())]
    assert {("embedserve.ray", "app"), ("embedserve.http", "HttpProtocol")} <= set(found)
    assert [":".join(use) for use in found if not is_public(*use)] == []
