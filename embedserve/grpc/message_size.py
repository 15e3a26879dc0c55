"""Bytes of memory that a protobuf message takes after parsing, estimated from the unparsed bytes alone.

Two bytes of a map entry become 170 of memory, so a small body may fill the memory. The walk counts every field on the
way to the values, and skips the values themselves. After very many fields the rest counts as the worst case.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from embedserve.tensors.wire_format import FIXED_SIZES, LENGTH_DELIMITED, VARINT, read_varint

if TYPE_CHECKING:
    from google._upb._message import Descriptor as CompiledDescriptor
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

    AnyDescriptor = Descriptor | CompiledDescriptor

__all__ = ["parsed_bytes"]

_SMALL = 4096
"""Bytes of a body up to which no walk is made: even the worst case is smaller than the cost of a call."""

_MOST_FIELDS = 20_000
"""Fields that are counted singly; the number takes some 20 ms."""

_MESSAGE, _MEMBER, _STRING, _NUMBER = 48, 8, 32, 16
"""Bytes of a message, of each possible field of a message, of a string beside its text, and of a number.

Measured with empty values, as growth of the process. Lists are copied as they grow, so each value counts about twice.
"""

_WORST, _WORST_WITH_TENSORS = 50, 96
"""Most bytes of memory per byte on the wire, without and with tensors; measured as `_MESSAGE`."""


class _Kind(NamedTuple):
    """The memory of a length-delimited field: `size` bytes for the field, `each` bytes per byte on the wire.

    `message` is the descriptor of a message to walk, or None.
    """

    message: AnyDescriptor | None
    size: int
    each: int


def parsed_bytes(request_type: type[Message], body: bytes) -> int:
    """Bytes that the message in `body` may take beside a copy of the body; bytes that are no message take none.

    Args:
        request_type: The message's class.
        body: The message's bytes.
    """
    if len(body) <= _SMALL:
        return 0
    descriptor = request_type.DESCRIPTOR
    walk = _Walk(body)
    try:
        size = walk.bytes_of(descriptor)
    except IndexError:  # A truncated body: the parser builds the counted part before its error.
        return walk.size
    return size + walk.unseen * (_WORST_WITH_TENSORS if _holds_tensors(descriptor) else _WORST)


class _Walk:
    """A single pass over a body, without recursion.

    Attributes:
        size: Bytes counted so far.
        unseen: Bytes of the body left out, because the body has too many fields.
    """

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._fields_left = _MOST_FIELDS
        self.size = 0
        self.unseen = 0

    def bytes_of(self, descriptor: AnyDescriptor) -> int:
        inner = [(descriptor, 0, len(self._body))]
        while inner:
            descriptor, at, end = inner.pop()
            if self._fields_left <= 0:
                self.unseen += end - at
            else:
                self._message(_kinds(descriptor), at, end, inner)
        return self.size

    def _message(self, kinds: dict[int, _Kind], at: int, end: int, inner: list[tuple[AnyDescriptor, int, int]]) -> None:
        """Count a message without its inner messages; `inner` receives the inner messages."""
        body = self._body
        while at < end:
            if self._fields_left <= 0:
                self.unseen += end - at
                return
            self._fields_left -= 1
            tag, at = read_varint(body, at)
            wire = tag & 7
            if wire != LENGTH_DELIMITED:
                at = (
                    at + FIXED_SIZES[wire]
                    if wire in FIXED_SIZES
                    else read_varint(body, at)[1]
                    if wire == VARINT
                    else at
                )
                self.size += _NUMBER
                continue
            length, at = read_varint(body, at)
            kind = kinds.get(tag >> 3, _STRINGS)
            self.size += kind.size + kind.each * length
            if kind.message is not None:
                inner.append((kind.message, at, min(at + length, end)))
            at += length
            if kind is _STRINGS and tag < 0x80:
                at = self._strings(tag, at, end)

    def _strings(self, tag: int, at: int, end: int) -> int:
        """Count the short strings of the same field that follow, in a faster loop, and return their end."""
        body, count = self._body, 0
        most = self._fields_left * 16  # A string of this loop takes a sixteenth of a field's time.
        while at < end and body[at] == tag and body[at + 1] < 0x80 and count < most:
            at += 2 + body[at + 1]
            count += 1
        self._fields_left -= count // 16
        self.size += count * _STRING
        return at


_STRINGS = _Kind(None, _STRING, 0)


@cache
def _kinds(descriptor: AnyDescriptor) -> dict[int, _Kind]:
    """The kinds of the message's fields by field number, read as length-delimited."""
    kinds = {}
    for field in descriptor.fields:
        inner = field.message_type
        if inner is not None:
            kinds[field.number] = _Kind(inner, _size(inner), 0)
        elif field.cpp_type in (field.CPPTYPE_STRING, field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            kinds[field.number] = _STRINGS  # Values have the same size in memory and on the wire.
        else:
            kinds[field.number] = _Kind(None, _STRING, _NUMBER)
    return kinds


def _size(descriptor: AnyDescriptor) -> int:
    size = _MESSAGE + _MEMBER * len(descriptor.fields)
    if descriptor.GetOptions().map_entry:  # The parser makes a value even for an entry without a value.
        size += sum(_size(field.message_type) for field in descriptor.fields if field.message_type is not None)
    return size


@cache
def _holds_tensors(descriptor: AnyDescriptor) -> bool:
    return any(
        field.message_type is not None
        and (field.message_type.full_name == "tensorflow.TensorProto" or _holds_tensors(field.message_type))
        for field in descriptor.fields
        if field.message_type is not descriptor
    )
