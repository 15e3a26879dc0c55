"""The short way of reading header blocks says what the `hpack` package says, or says nothing."""

from __future__ import annotations

import hpack
import pytest
from hpack import huffman_table
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.http.frames import ProtocolError
from embedserve.http.header_blocks import BlockReader, _plain_fields, decode_huffman
from embedserve.http.heads import TooLargeError
from embedserve.http.limits import Limits

# Lengths of one and of two bytes; those of three have a test of their own, as hpack takes long for such texts.
TEXTS = st.one_of(st.binary(max_size=12), st.sampled_from([b"x" * 126, b"y" * 127, b"z" * 300]))
FIELDS = st.tuples(st.one_of(st.sampled_from([b":path", b"x", b"te", b"x-long"]), TEXTS), TEXTS, st.booleans())


def both(blocks: list[bytes]) -> None:
    """Read blocks one after the other in either way, and compare."""
    plain, general = hpack.Decoder(1 << 20), hpack.Decoder(1 << 20)
    for block in blocks:
        found = _plain_fields(block, plain.header_table, 1_000)
        try:
            expected = [tuple(field) for field in general.decode(block, raw=True)]
        except hpack.HPACKError:
            assert found is None
            return
        assert found is None or found == expected
        plain.decode(block, raw=True)
        assert found is None or plain.header_table.dynamic_entries == general.header_table.dynamic_entries


@pytest.mark.slow
@given(st.lists(st.tuples(st.lists(FIELDS, max_size=6), st.booleans()), max_size=6))
@settings(max_examples=300, deadline=None)
def test_encoded_fields_are_read_alike(blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool]]) -> None:
    encoder = hpack.Encoder()
    both([encoder.encode(fields, huffman=huffman) for fields, huffman in blocks])


@pytest.mark.parametrize("huffman", [False, True])
@pytest.mark.parametrize("sensitive", [False, True])
@pytest.mark.parametrize("field", [(b"x", b"w" * 20_000), (b"w" * 20_000, b"v"), (b"w" * 20_000, b"v" * 20_000)])
def test_lengths_of_three_bytes_are_read_alike(field: tuple[bytes, bytes], sensitive: bool, huffman: bool) -> None:
    encoder = hpack.Encoder()
    both([encoder.encode([(b":path", b"/a", False), (*field, sensitive)], huffman=huffman) for _ in range(2)])


@pytest.mark.slow
@given(st.lists(st.binary(max_size=40), max_size=5))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_read_alike(blocks: list[bytes]) -> None:
    both([b"\x40\x01x\x01y", *blocks])


CODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@pytest.mark.slow
@given(st.one_of(st.binary(max_size=60), st.builds(CODER.encode, st.binary(max_size=60))))
@settings(max_examples=2_000, deadline=None)
def test_huffman_codes_are_read_alike(data: bytes) -> None:
    try:
        expected = huffman_table.decode_huffman(data)
    except hpack.HPACKError:
        with pytest.raises(hpack.HPACKError):
            decode_huffman(data)
    else:
        assert decode_huffman(data) == expected


@given(st.binary(max_size=200))
def test_huffman_codes_come_back(text: bytes) -> None:
    assert decode_huffman(CODER.encode(text)) == text


@pytest.mark.parametrize("huffman", [False, True])
def test_a_field_that_enters_no_table_takes_the_short_way(huffman: bool) -> None:
    encoder, decoder = hpack.Encoder(), hpack.Decoder()
    known = [(b":path", b"/a"), (b"x-known", b"v")]
    decoder.decode(encoder.encode(known, huffman=huffman), raw=True)
    block = encoder.encode([*known, (b"traceparent", b"00-4b-00", True)], huffman=huffman)
    assert _plain_fields(block, decoder.header_table, 10) == [*known, (b"traceparent", b"00-4b-00")]
    assert _plain_fields(block, decoder.header_table, 2) is None


def test_a_reader_takes_either_way_with_the_same_bounds() -> None:
    reader = BlockReader(Limits(max_header_bytes=200))
    with pytest.raises(TooLargeError):
        reader.fields(b"\x00\x01x\x7f\x51" + b"v" * 208)
    with pytest.raises(TooLargeError):
        reader.fields(b"\x40\x01x\x7f\x51" + b"v" * 208)
    for block in (b"\x00\x01x", b"\x00\x01x\x05abc", b"\x80", b"\xfe"):
        with pytest.raises(ProtocolError):
            reader.fields(block)
