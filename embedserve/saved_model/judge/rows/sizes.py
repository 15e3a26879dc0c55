"""Sizes of dimensions as products of numbers and symbols: what of a shape grows with a request's rows, what does not.

A size is a factor times symbols. A symbol that begins with `#` counts: the batch's value is the sum of its requests'.
`#rows` is the number of rows, at least 1. Any other symbol with `#` is a number of entries that the rows have between
them, such as the words of all texts. Every other symbol is the same for one request as for its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["ONE", "ROWS_SYMBOL", "Size", "added", "named", "number", "product", "quotient"]

ROWS_SYMBOL = "#rows"
_LONGEST_NAME = 80


class Size(NamedTuple):
    """`factor` times every symbol; a number where there are none."""

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
        """Whether this is the number 1."""
        return self.factor == 1 and not self.symbols


ONE = Size(1)


def number(value: int) -> Size:
    """A plain number."""
    return Size(int(value))


def named(text: str) -> Size:
    """A size of its own by an expression or a place in the graph; equal texts mean equal sizes."""
    if len(text) > _LONGEST_NAME:
        text = text[0] + "~" + hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    return Size(1, (text,))


def product(sizes: Iterable[Size]) -> Size | None:
    """All sizes multiplied; None where more than one of them counts."""
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
    """The size that times `divisor` is `dividend`, None where the symbols do not tell."""
    if divisor.factor == 0 or dividend.factor % divisor.factor:
        return None
    left = list(dividend.symbols)
    for symbol in divisor.symbols:
        if symbol not in left:
            return None
        left.remove(symbol)
    return Size(dividend.factor // divisor.factor, tuple(left))


def added(sizes: Iterable[Size]) -> Size | None:
    """The sum; None where one that counts is among several."""
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
