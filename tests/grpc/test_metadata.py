"""What gRPC writes into headers reads back, whatever a client or a message puts there."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.errors import InvalidInputError
from embedserve.grpc.transports.wire import encoded_message, metadata_value, read_timeout


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600),
        (b"2M", 120),
        (b"3S", 3),
        (b"250m", 0.25),
        (b"1500u", 0.0015),
        (b"7n", 7e-9),
        (b"0S", 0),
        (b"00000001S", 1),
        (b"99999999n", 0.099999999),
    ],
)
def test_every_unit_of_a_timeout(value: bytes, seconds: float) -> None:
    assert read_timeout(value) == pytest.approx(seconds)


def test_the_longest_timeout_is_one_that_clocks_and_threads_can_count() -> None:
    import threading

    assert read_timeout(b"99999999H") <= threading.TIMEOUT_MAX


@pytest.mark.parametrize(
    "value", [b"", b"S", b"1", b"1s", b"1h", b"-1S", b"+1S", b"1.5S", b"123456789S", b" 1S", b"1S\n", b"1S1S", b"\xb2S"]
)
def test_what_is_no_timeout_is_refused_by_its_words(value: bytes) -> None:
    with pytest.raises(InvalidInputError, match=re.escape(repr(value.decode("latin-1")))):
        read_timeout(value)


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        ("", b""),
        ('plain: words, "quotes" & [brackets] ~', b'plain: words, "quotes" & [brackets] ~'),
        ("100%", b"100%25"),
        ("%41", b"%2541"),
        (" a b  ", b"%20a b%20%20"),
        ("   ", b"%20%20%20"),
        ("one\ntwo\r\ttab", b"one%0Atwo%0D%09tab"),
        ("é ☃ 🙂", b"%C3%A9 %E2%98%83 %F0%9F%99%82"),
        ("\x00\x7f", b"%00%7F"),
        ("\ud800x", b"?x"),
    ],
)
def test_a_message_travels_percent_encoded(message: str, encoded: bytes) -> None:
    assert encoded_message(message) == encoded


@given(st.text())
def test_any_message_is_a_header_value_and_reads_back(message: str) -> None:
    encoded = encoded_message(message)
    assert re.fullmatch(rb"[\x20-\x7e]*", encoded)
    assert encoded == encoded.strip(b" ")
    assert unquote(encoded.decode("ascii"), errors="strict") == message


@given(st.text(st.characters(categories=["Cs", "Ll"])))
def test_lone_surrogates_do_not_fail(message: str) -> None:
    assert unquote(encoded_message(message).decode("ascii")) == message.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("value", [b"blue", b"caf\xe9", b"", b"YQ=="])
def test_metadata_of_plain_keys_is_text(value: bytes) -> None:
    assert metadata_value("tenant", value) == value.decode("latin-1")


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("value", [b"", b"\x00", b"ab", b"abc", bytes(range(256))])
def test_binary_metadata_is_base64_with_or_without_padding(value: bytes, padded: bool) -> None:
    encoded = base64.b64encode(value)
    assert metadata_value("key-bin", encoded if padded else encoded.rstrip(b"=")) == value


def test_one_header_may_carry_several_binary_values_of_which_the_first_counts() -> None:
    assert metadata_value("key-bin", b"YQ, Yg==,Yw") == b"a"


@pytest.mark.parametrize("value", [b"a", b"YWJj!", b"\xff\xfe\xfd\xfc"])
def test_binary_metadata_that_is_no_base64_is_none(value: bytes) -> None:
    assert metadata_value("key-bin", value) is None
