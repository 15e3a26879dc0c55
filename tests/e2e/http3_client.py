"""Asks over HTTP/3: python -m tests.e2e.http3_client URL CERTIFICATES CONTENT_TYPE < BODY > ANSWER

A program of its own, because its library's threads now and then abort a process that ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from pyqwest import Client, HTTPTransport, HTTPVersion


async def main(url: str, certificates: Path, content_type: str) -> None:
    transport = HTTPTransport(
        tls_ca_cert=(certificates / "ca.crt").read_bytes(),
        tls_key=(certificates / "server.key").read_bytes(),
        tls_cert=(certificates / "server.crt").read_bytes(),
        http_version=HTTPVersion.HTTP3,
        timeout=30,
        use_system_dns=True,
    )
    body = sys.stdin.buffer.read()
    response = await Client(transport).post(url, headers={"content-type": content_type}, content=body)
    assert response.status == 200, response.content
    sys.stdout.buffer.write(response.content)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)
