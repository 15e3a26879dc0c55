"""The stubs in typings/ name every field of the installed messages, so that types and messages do not part."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from scripts import stubs


def slots(node: ast.Module | ast.ClassDef, place: str = "") -> Iterator[tuple[str, list[str]]]:
    """Each class of a stub by its path in the file, with its `__slots__`: the fields of a message, none of an enum."""
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from slots(child, f"{place}{child.name}.")
        elif isinstance(child, ast.Assign) and ast.unparse(child.targets[0]) == "__slots__":
            yield place, sorted(ast.literal_eval(child.value))


def fields(message: Descriptor, place: str = "") -> Iterator[tuple[str, list[str]]]:
    place = f"{place}{message.name}."
    yield place, sorted(field.name for field in message.fields)
    for inner in message.nested_types:
        yield from fields(inner, place)
    yield from ((f"{place}{enum.name}.", []) for enum in message.enum_types)


def test_the_stubs_name_the_fields_of_the_installed_messages() -> None:
    found, wanted = {}, {}
    for module in stubs.modules():
        file = importlib.import_module(module).DESCRIPTOR
        found[module] = dict(slots(ast.parse((stubs.TYPINGS / f"{module.replace('.', '/')}.pyi").read_text())))
        wanted[module] = dict(pair for message in file.message_types_by_name.values() for pair in fields(message))
        wanted[module].update({f"{enum}.": [] for enum in file.enum_types_by_name})
    assert found == wanted, "run: python -m scripts.stubs"
