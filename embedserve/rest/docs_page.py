"""The page at `/-/docs`: renders the OpenAPI document in the browser, without a request to another host.

The page is one static file of the package. Its policy admits the file's own script and style by their hashes, and
requests to the page's own origin.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

from embedserve.rest.errors import Response

__all__ = ["DOCS", "docs_page"]

DOCS = "/-/docs"


@functools.cache
def docs_page() -> Response:
    """The page with its headers; the first call reads a file."""
    page = resources.files("embedserve.rest").joinpath("pages", "docs.html").read_bytes()
    policy = (
        "default-src 'none'",
        f"script-src {_hash_of('script', page)}",
        f"style-src {_hash_of('style', page)}",
        "connect-src 'self'",
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
    headers = (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", "; ".join(policy).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    )
    return Response(200, page, headers)


def _hash_of(tag: str, page: bytes) -> str:
    """The policy's source expression for the only element of a kind in the page."""
    (content,) = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
