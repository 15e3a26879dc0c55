"""Which pages a browser lets read the answers."""

from __future__ import annotations

import pytest

from embedserve.grpc.transports.cors import Cors

HERE, ELSEWHERE = b"https://app.example", b"https://elsewhere.example"


def asked(origin: bytes | None, **headers: bytes) -> dict[bytes, bytes]:
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return named if origin is None else named | {b"origin": origin}


@pytest.mark.parametrize("origins", [True, "*", ["*"]])
def test_any_origin_is_let_in(origins: bool | str | list[str]) -> None:
    cors = Cors(origins)
    assert cors
    assert dict(cors.headers(asked(ELSEWHERE)))[b"access-control-allow-origin"] == b"*"


@pytest.mark.parametrize("origins", [[HERE.decode()], HERE.decode(), (HERE.decode() + "/",)])
def test_listed_origins_are_let_in_and_no_others(origins: str | list[str]) -> None:
    cors = Cors(origins)
    allowed = dict(cors.headers(asked(HERE)))
    assert allowed[b"access-control-allow-origin"] == HERE
    assert allowed[b"access-control-expose-headers"].startswith(b"grpc-status, grpc-message")
    for origin in (ELSEWHERE, None, b"null", b"https://app.example.evil"):
        # A cache must not give one page's answer to another.
        assert cors.headers(asked(origin)) == [(b"vary", b"origin")]
        assert cors.preflight(asked(origin)) == [(b"vary", b"origin")]
    assert (b"vary", b"origin") in cors.headers(asked(HERE))


@pytest.mark.parametrize("origins", [False, [], ()])
def test_no_origin_is_let_in(origins: bool | list[str]) -> None:
    assert not Cors(origins)


def test_a_request_without_an_origin_needs_no_headers() -> None:
    assert Cors(True).headers(asked(None)) == []


def test_a_preflight_allows_the_headers_that_are_asked_for() -> None:
    wanted = b"content-type,x-grpc-web,authorization,tenant-bin"
    answer = dict(Cors(True).preflight(asked(ELSEWHERE, access_control_request_headers=wanted)))
    assert answer[b"access-control-allow-headers"] == wanted
    assert answer[b"access-control-allow-methods"] == b"POST"
    assert int(answer[b"access-control-max-age"]) > 0
    plain = dict(Cors(True).preflight(asked(ELSEWHERE)))
    assert b"x-grpc-web" in plain[b"access-control-allow-headers"]
