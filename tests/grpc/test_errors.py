"""What a client sees of an error."""

from __future__ import annotations

import logging

import grpc
import pytest

from embedserve.errors import Code, InvalidInputError, ServingError
from embedserve.grpc.errors import status_of, truncated
from embedserve.grpc.transports.grpcio import STATUS_CODES


@pytest.mark.parametrize("code", Code)
def test_every_canonical_code_has_its_status_code(code: Code) -> None:
    assert STATUS_CODES[code].value[0] == code
    assert STATUS_CODES[code].name == code.name


def test_a_serving_error_keeps_code_and_message() -> None:
    assert status_of(InvalidInputError("no")) == (Code.INVALID_ARGUMENT, "no")
    assert status_of(ServingError("gone", code=Code.DATA_LOSS)) == (Code.DATA_LOSS, "gone")


def test_anything_else_is_logged_with_its_traceback_and_hidden(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "embedserve"):
        with pytest.raises(KeyError) as raised:
            raise KeyError("/secret/path")
        assert status_of(raised.value) == (Code.INTERNAL, "internal error")
    assert "/secret/path" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a" * 1024, "a" * 1024),
        ("a" * 1025, "a" * 1024 + "...TRUNCATED"),
        ("ä" * 513, "ä" * 512 + "...TRUNCATED"),
        ("a" + "ä" * 512, "a" + "ä" * 511 + "...TRUNCATED"),
        ("\ud800", "?"),
    ],
)
def test_messages_are_cut_at_1024_bytes_and_never_within_a_character(message: str, shown: str) -> None:
    assert truncated(message) == shown


def test_every_grpc_status_code_is_in_the_table() -> None:
    assert set(STATUS_CODES.values()) == set(grpc.StatusCode)
