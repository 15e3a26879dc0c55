"""Raw targets of ASGI scopes, and the routes they name."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.errors import InvalidInputError
from embedserve.rest.target import METHODS, Route, is_rest, is_strict_uri, known_route, path_of, raw_target, route


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v1/models/m:predict", Route("predict", "m")),
        ("/v1/models/m/versions/7:predict", Route("predict", "m", version=7)),
        ("/v1/models/m/versions/007:predict", Route("predict", "m", version=7)),
        ("/v1/models/m/versions/0:predict", Route("predict", "m", version=0)),
        ("/v1/models/m/versions/9223372036854775807:predict", Route("predict", "m", version=2**63 - 1)),
        ("/v1/models/m/labels/stable:predict", Route("predict", "m", label="stable")),
        ("/v1/models/m/labels/a%2Fb:predict", Route("predict", "m", label="a/b")),
        ("/v1/models/m:classify", Route("classify", "m")),
        ("/v1/models/m/versions/1:regress", Route("regress", "m", version=1)),
        ("/V1/MODELS/m/VERSIONS/1:predict", Route("predict", "m", version=1)),
        ("/v1/models/a%2Fb%3ac+d:predict", Route("predict", "a/b:c+d")),
        ("/v1/models/caf%C3%A9:predict", Route("predict", "café")),
        ("/v1/models/m?x:predict", Route("predict", "m?x")),
        ("/v1/models/versions:predict", Route("predict", "versions")),
    ],
)
def test_post_routes(target: str, expected: Route) -> None:
    assert route("POST", target) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v1/models/m", Route("status", "m")),
        ("/v1/models/m/versions/2", Route("status", "m", version=2)),
        ("/v1/models/m/labels/l", Route("status", "m", label="l")),
        ("/v1/models/m/metadata", Route("metadata", "m")),
        ("/v1/models/m/versions/2/metadata", Route("metadata", "m", version=2)),
        ("/v1/models/m/labels/l/metadata", Route("metadata", "m", label="l")),
        ("/v1/models/metadata", Route("status", "metadata")),
        ("/v1/models/metadata/metadata", Route("metadata", "metadata")),
        ("/v1/models/m/METADATA", Route("status", "m")),
        ("/v1/models/m?x=1", Route("status", "m?x=1")),
    ],
)
def test_get_routes(target: str, expected: Route) -> None:
    assert route("GET", target) == expected


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v1/models/m"),
        ("POST", "/v1/models/m:classify?x=1"),
        ("POST", "/v1/models/m:predict/"),
        ("POST", "/v1/models/m:PREDICT"),
        ("POST", "/v1/models/m:explain"),
        ("POST", "/v1/models/:predict"),
        ("POST", "/v1/models/m/versions/abc:predict"),
        ("POST", "/v1/models/m/versions/-1:predict"),
        ("POST", "/v1/models/m/versions/1/labels/x:predict"),
        ("POST", "/v1/models/m/versions/\u0661:predict"),
        ("GET", "/v1/models/m:predict"),
        ("GET", "/v1/models/m/"),
        ("GET", "/v1/models/m/versions/abc"),
        ("GET", "/v1/"),
        ("HEAD", "/v1/models/m:predict"),
        ("PUT", "/v1/models/m"),
        ("DELETE", "/v1/models/m:predict"),
        ("PATCH", "/v1/models/m:predict"),
    ],
)
def test_what_matches_no_route_is_malformed(method: str, target: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        route(method, target)
    assert str(caught.value).partition("; it takes ")[0] == f"Malformed request: {method} {target}"


def test_a_prediction_keeps_its_query_for_bodies_that_are_not_json() -> None:
    assert route("POST", "/v1/models/m/versions/2:predict?x=1") == Route("predict", "m", 2, query="x=1")


@pytest.mark.parametrize("target", ["/v1/models/versions/1", "/v1/models/labels/x"])
def test_a_get_without_a_name_says_so(target: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^Missing model name in request\.$"):
        route("GET", target)


@pytest.mark.parametrize("digits", ["9223372036854775808", "18446744073709551615", "9" * 5000])
def test_a_version_that_is_no_int64_is_named(digits: str) -> None:
    for method, target in [
        ("GET", f"/v1/models/m/versions/{digits}"),
        ("POST", f"/v1/models/m/versions/{digits}:predict"),
    ]:
        with pytest.raises(InvalidInputError, match=rf"^Failed to convert version: {digits} to numeric\.$"):
            route(method, target)


def test_head_goes_where_get_goes() -> None:
    for target in ("/v1/models", "/v1/models/m", "/v1/models/m/metadata"):
        assert route("HEAD", target) == route("GET", target)
    assert route("GET", "/v1/models") == Route("list", "")


def test_long_targets_are_matched() -> None:
    name = "m" * 5000
    assert route("POST", f"/v1/models/{name}:predict") == Route("predict", name)


@pytest.mark.parametrize("target", ["/v1/models/m", "/v1/a%2Fb?q=1&r=~x", "/v1/models/m:predict", "/@!$&'()*+,;=-._~"])
def test_strict_uris(target: str) -> None:
    assert is_strict_uri(target)


@pytest.mark.parametrize(
    "target", ["/v1/a b", "/v1/{m}", '/v1/"m"', "/v1/%zz", "/v1/%2", "/v1/é", "/v1/a|b", "/v1/a\\b"]
)
def test_loose_uris(target: str) -> None:
    assert not is_strict_uri(target)


SCOPES: list[tuple[str, dict[str, Any], str]] = [
    ("plain", {"path": "/v1/models/m", "raw_path": b"/v1/models/m"}, "/v1/models/m"),
    ("no raw path", {"path": "/v1/models/m"}, "/v1/models/m"),
    ("raw path is None", {"path": "/v1/models/m", "raw_path": None}, "/v1/models/m"),
    ("query", {"path": "/v1/models/m", "raw_path": b"/v1/models/m", "query_string": b"x=1"}, "/v1/models/m?x=1"),
    (
        "query in raw path",
        {"path": "/v1/models/m", "raw_path": b"/v1/models/m?x=1", "query_string": b"x=1"},
        "/v1/models/m?x=1",
    ),
    (
        "escapes",
        {"path": "/v1/models/a/b:predict", "raw_path": b"/v1/models/a%2Fb:predict"},
        "/v1/models/a%2Fb:predict",
    ),
    ("escapes, no raw path", {"path": "/v1/models/a b é"}, "/v1/models/a%20b%20%C3%A9"),
    ("mounted", {"path": "/ml/v1/models/m", "raw_path": b"/ml/v1/models/m", "root_path": "/ml"}, "/v1/models/m"),
    (
        "mounted, escapes",
        {"path": "/ml/v1/models/a/b", "raw_path": b"/ml/v1/models/a%2fb", "root_path": "/ml"},
        "/v1/models/a%2fb",
    ),
    (
        "mounted below an escaped prefix",
        {"path": "/m é/v1/models/a%b", "raw_path": b"/m%20%c3%a9/v1/models/a%25b", "root_path": "/m é"},
        "/v1/models/a%25b",
    ),
    ("mounted, no raw path", {"path": "/ml/v1/models/m", "root_path": "/ml"}, "/v1/models/m"),
    ("mounted, slash at the end", {"path": "/ml/v1/models/m", "root_path": "/ml/"}, "/v1/models/m"),
    (
        "mounted twice",
        {"path": "/a/b/v1/models/m", "raw_path": b"/a/b/v1/models/m", "root_path": "/a/b"},
        "/v1/models/m",
    ),
    ("mounted at v1", {"path": "/v1/v1/models/m", "raw_path": b"/v1/v1/models/m", "root_path": "/v1"}, "/v1/models/m"),
    (
        "a host that cuts path and not raw path",
        {"path": "/v1/models/a/b", "raw_path": b"/ml/v1/models/a%2Fb", "root_path": "/ml"},
        "/v1/models/a%2Fb",
    ),
    (
        "a host that cuts both",
        {"path": "/v1/models/a/b", "raw_path": b"/v1/models/a%2Fb", "root_path": "/ml"},
        "/v1/models/a%2Fb",
    ),
    (
        "a proxy that cuts its prefix, told to the host as root_path",
        {
            "path": "/ml/v1/models/a/b",
            "raw_path": b"/ml/v1/models/a%2Fb",
            "root_path": "/proxy/ml",
            "app_root_path": "/proxy",
        },
        "/v1/models/a%2Fb",
    ),
    (
        "a proxy that cuts nothing",
        {
            "path": "/proxy/ml/v1/models/m",
            "raw_path": b"/proxy/ml/v1/models/m",
            "root_path": "/proxy/ml",
            "app_root_path": "/proxy",
        },
        "/v1/models/m",
    ),
    (
        "a middleware that rewrote path alone",
        {"path": "/v1/models/new", "raw_path": b"/old", "root_path": ""},
        "/v1/models/new",
    ),
    ("the mount point itself", {"path": "/ml", "raw_path": b"/ml", "root_path": "/ml"}, "/"),
    (
        "a path that only begins like the mount point",
        {"path": "/mlx/v1/m", "raw_path": b"/mlx/v1/m", "root_path": "/ml"},
        "/mlx/v1/m",
    ),
]


@pytest.mark.parametrize(("scope", "expected"), [case[1:] for case in SCOPES], ids=[case[0] for case in SCOPES])
def test_the_raw_target_below_the_mount_point(scope: dict[str, Any], expected: str) -> None:
    assert raw_target(scope) == expected


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@given(name=NAMES, prefix=st.sampled_from(["", "/ml", "/a b/ü", "/v1"]), safe=st.sampled_from(["", "!$&'()*+,;=@~"]))
def test_a_name_survives_the_way_through_a_mounting_host(name: str, prefix: str, safe: str) -> None:
    raw = quote(prefix) + "/v1/models/" + quote(name, safe=safe)
    scope = {"path": unquote(raw), "raw_path": raw.encode(), "root_path": prefix}
    assert route("GET", raw_target(scope)).name == name


@given(name=NAMES, prefix=st.sampled_from(["/ml", "/a b/ü", "/v1"]), safe=st.sampled_from(["", "!$&'()*+,;=@~"]))
def test_a_name_survives_a_host_that_cuts_the_path_and_ends_it_with_a_slash(name: str, prefix: str, safe: str) -> None:
    """As Litestar does, which leaves `raw_path` as it was and `root_path` empty."""
    below = "/v1/models/" + quote(name, safe=safe) + "/metadata"
    scope = {"path": unquote(below) + "/", "raw_path": (quote(prefix) + below).encode(), "root_path": ""}
    assert route("GET", raw_target(scope)).name == name


def test_a_slash_that_was_sent_at_the_end_is_malformed_as_tensorflow_serving_says() -> None:
    for path in ("/v1/models/m:predict/", "/ml/v1/models/m:predict/"):
        scope = {"path": "/v1/models/m:predict/", "raw_path": path.encode(), "root_path": ""}
        with pytest.raises(InvalidInputError, match=r"Malformed request: POST /v1/models/m:predict/$"):
            route("POST", raw_target(scope))


def test_the_path_of_a_target_has_no_query() -> None:
    assert path_of("/a?b?c") == "/a"


PIECES = [
    "/v1",
    "/V1",
    "/models",
    "/m",
    "/a%2Fb",
    "/versions/7",
    "/labels/x",
    "/metadata",
    ":predict",
    ":classify",
    "/",
    " ",
]
TARGETS = st.lists(st.sampled_from(PIECES), max_size=7).map("".join)


@given(
    method=st.sampled_from(sorted(METHODS)),
    prefix=st.sampled_from(["", "/ml"]),
    target=TARGETS,
    query=st.sampled_from([b"", b"x=1"]),
    raw=st.booleans(),
)
def test_a_known_route_is_what_a_closer_look_finds(
    method: str, prefix: str, target: str, query: bytes, raw: bool
) -> None:
    scope: dict[str, Any] = {"method": method, "path": prefix + unquote(target), "query_string": query}
    if prefix:
        scope["root_path"] = prefix
    if raw:
        scope["raw_path"] = (prefix + target).encode()
    looked_at = raw_target(scope)
    expected = None
    if is_strict_uri(looked_at) and is_rest(looked_at):
        with suppress(InvalidInputError):
            expected = route(method, looked_at)
    assert known_route(scope) == known_route(scope) == expected


@pytest.mark.parametrize("part", ["path", "raw_path", "query_string", "root_path", "app_root_path"])
def test_long_requests_are_never_remembered(part: str) -> None:
    scope: dict[str, Any] = {"method": "GET", "path": "/v1/models/m", "raw_path": b"/v1/models/m"}
    long = "/v1/models/" + 1000 * "m"
    assert known_route(scope | {part: long.encode() if part in ("raw_path", "query_string") else long}) is None
