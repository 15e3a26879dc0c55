"""Writes a JSON value into an error message as TensorFlow Serving does: pretty, and cut after about 256 bytes.

The text is for error messages only, so speed does not count. Values may be deep, so the code has no recursion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from embedserve.tensors.json_parser import Repeated

__all__ = ["dump", "type_name"]

_LIMIT = 256
"""Bytes of UTF-8 from which the text is cut, as in TF Serving."""
_STOP: Any = object()


def type_name(value: object) -> str:
    """RapidJSON's name of a value's type."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    names: dict[type, str] = {str: "String", list: "Array", dict: "Object", Repeated: "Object"}
    return names.get(type(value), "Number")


def dump(value: object) -> str:
    """Text of a value, without tokens that start at or after the 256th byte; the last token stays whole."""
    text: list[str] = []
    size = 0
    for token in _tokens(value):
        if token is None or size >= _LIMIT:
            break
        text.append(token)
        size += len(token.encode("utf-8", "surrogateescape"))
    return "".join(text)


def _members(value: dict[str, object]) -> Iterator[tuple[str, object]]:
    return iter(value.pairs if isinstance(value, Repeated) else value.items())


def _tokens(value: object) -> Iterator[str | None]:
    """Pieces in order; None if the writer gives up (NaN or infinity)."""
    stack: list[tuple[Iterator[Any], str]] = []  # Open containers: remaining items and the closing bracket.
    prefix = ""
    while True:
        if isinstance(value, list) and value:
            yield f"{prefix}["
            stack.append((iter(value), "]"))
        elif isinstance(value, dict) and value:
            yield f"{prefix}{{"
            stack.append((_members(value), "}"))
        else:
            yield from _scalar(prefix, value)
        first = bool(value) and isinstance(value, list | dict)
        while stack:
            items, bracket = stack[-1]
            item: Any = next(items, _STOP)
            if item is _STOP:
                stack.pop()
                yield bracket if bracket == "]" else f"\n{'    ' * len(stack)}}}"
                first = False
                continue
            comma = "" if first else ","
            if bracket == "]":
                prefix, value = "" if first else ", ", item
            else:
                key, value = item
                yield f"{comma}\n{'    ' * len(stack)}{_quoted(key)}"
                prefix = ": "
            break
        else:
            return


def _scalar(prefix: str, value: object) -> Iterator[str | None]:
    if isinstance(value, float):
        if math.isfinite(value):
            yield prefix + _number(value)
        else:
            yield from (prefix, None)
    elif isinstance(value, str):
        yield prefix + _quoted(value)
    else:
        yield prefix + json.dumps(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _number(value: float) -> str:
    """Shortest decimal form in RapidJSON's layout: plain from 1e-6 up to 1e21."""
    mantissa, _, exponent = f"{value!r}e0".partition("e")
    sign, digits = ("-", mantissa[1:]) if mantissa.startswith("-") else ("", mantissa)
    whole, _, fraction = digits.partition(".")
    power = int(exponent.partition("e")[0]) + len(whole)
    digits = (whole + fraction).lstrip("0")
    power -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    if not digits:
        return f"{sign}0.0"
    if len(digits) <= power <= 21:
        return f"{sign}{digits}{'0' * (power - len(digits))}.0"
    if 0 < power <= 21:
        return f"{sign}{digits[:power]}.{digits[power:]}"
    if -6 < power <= 0:
        return f"{sign}0.{'0' * -power}{digits}"
    return f"{sign}{digits[0]}{'.' if digits[1:] else ''}{digits[1:]}e{power - 1}"
