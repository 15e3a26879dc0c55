"""Sizes of dimensions as products of numbers and symbols: a size grows with a request's rows, or stays the same.

A size is a factor times symbols. A symbol that begins with `#` counts: the batch's value is the sum over the requests.
`#rows` is the number of rows, at least 1. Any further symbol with `#` is a number of entries over all rows, for example
the words of all texts. A symbol without `#` has the same value for a request and for the request's batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["ONE", "ROWS_SYMBOL", "Size", "added", "named", "number", "product", "quotient"]

ROWS_SYMBOL = "#rows"
# Characters of a name. A hash replaces a longer name, so that names of nested expressions stay short.
_LONGEST_NAME = 80


class Size(NamedTuple):
    """The factor times all symbols; a plain number without symbols."""

    factor: int
    symbols: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = ([str(self.factor)] if self.factor != 1 or not self.symbols else []) + list(self.symbols)
        return "*".join(parts)

    @property
    def counter(self) -> str | None:
        """The symbol that counts, None where the size is the same in every batch."""
        return next((symbol for symbol in self.symbols if symbol[0] == "#"), None)

    @property
    def is_one(self) -> bool:
        """Whether the size is the number 1."""
        return self.factor == 1 and not self.symbols


ONE = Size(1)


def number(value: int) -> Size:
    """A plain number."""
    return Size(int(value))


def named(text: str) -> Size:
    """A size with a name: an expression or a place in the graph. Equal texts mean equal sizes."""
    if len(text) > _LONGEST_NAME:
        text = text[0] + "~" + hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    return Size(1, (text,))


def product(sizes: Iterable[Size]) -> Size | None:
    """All sizes multiplied; None where more than one size counts."""
    factor = 1
    symbols: list[str] = []
    for size in sizes:
        factor *= size.factor
        symbols += size.symbols
    if factor == 0:
        return Size(0)
    if sum(symbol[0] == "#" for symbol in symbols) > 1:
        return None
    return Size(factor, tuple(sorted(symbols)))


def quotient(dividend: Size, divisor: Size) -> Size | None:
    """The size whose product with `divisor` is `dividend`; None where the symbols do not tell."""
    if divisor.factor == 0 or dividend.factor % divisor.factor:
        return None
    left = list(dividend.symbols)
    for symbol in divisor.symbols:
        if symbol not in left:
            return None
        left.remove(symbol)
    return Size(dividend.factor // divisor.factor, tuple(left))


def added(sizes: Iterable[Size]) -> Size | None:
    """The sum; None where a size that counts is among several."""
    terms = [size for size in sizes if size.factor]
    if len(terms) < 2:
        return terms[0] if terms else Size(0)
    if any(size.counter for size in terms):
        return None
    plain = sum(size.factor for size in terms if not size.symbols)
    rest = sorted(str(size) for size in terms if size.symbols)
    if not rest:
        return Size(plain)
    return named("(" + "+".join([*rest, *([str(plain)] if plain else [])]) + ")")
