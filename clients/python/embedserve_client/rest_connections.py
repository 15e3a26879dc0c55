"""REST calls over httpx: a blocking client for threads, and an awaited client for a loop's tasks."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any, Protocol

import httpx

from embedserve_client.address import Address
from embedserve_client.errors import Code, ServingError, of_http_status
from embedserve_client.exchange import Exchange, Failure, Reply, deadline_error, time_left
from embedserve_client.json_forms import error_message

__all__ = ["RestConnections", "RestTasks"]

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=60.0)
_COMPRESS_FROM = 1024
"""Bytes of a body from which a compression is worth its time."""


class Settings(Protocol):
    """What connections need to know of their client."""

    connect_timeout: float
    ssl_context: Any
    compress: bool


def _options(address: Address, settings: Settings) -> dict[str, Any]:
    verify = settings.ssl_context if settings.ssl_context is not None else True
    return {"limits": _LIMITS, "trust_env": True, "base_url": address.url, "verify": verify if address.secure else True}


def _request(client: Any, exchange: Exchange, settings: Settings) -> Any:
    request = exchange.request
    headers = [*request.headers]
    left = time_left(exchange.deadline)
    timeout = httpx.Timeout(
        left, connect=settings.connect_timeout if left is None else min(left, settings.connect_timeout)
    )
    if request.parts is None:
        return client.build_request("GET", request.path, headers=headers, timeout=timeout)
    body = b"".join(request.parts)
    if settings.compress and len(body) >= _COMPRESS_FROM:
        body = gzip.compress(body, compresslevel=1, mtime=0)
        headers.append(("content-encoding", "gzip"))
    return client.build_request("POST", request.path, headers=headers, timeout=timeout, content=body)


def _failure(address: Address, error: httpx.HTTPError) -> Exception:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        told = ServingError(f"{address} cannot be reached: {error or 'no answer in time'}", code=Code.UNAVAILABLE)
        return Failure(told, repeatable=True, unreachable=True)
    if isinstance(error, httpx.TimeoutException):
        return deadline_error()
    return Failure(ServingError(f"the connection ended before the answer: {error}", code=Code.UNAVAILABLE))


def _reply(status: int, headers: httpx.Headers, body: bytes) -> Reply:
    if status == httpx.codes.OK:
        return Reply(body, headers.get("content-type", ""))
    error = of_http_status(status, error_message(body))
    raise Failure(error, repeatable=error.code == Code.UNAVAILABLE)


class RestConnections:
    """Blocking REST calls to one address, from any number of threads."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._address = address
        self._settings = settings
        self._client = httpx.Client(**_options(address, settings))

    def exchange(self, exchange: Exchange) -> Reply:
        """Send a request and return the reply.

        Raises:
            Failure: No reply.
            DeadlineExceededError: The deadline has passed.
        """
        try:
            request = _request(self._client, exchange, self._settings)
            response = self._client.send(request, stream=True)
            try:
                parts = []
                for part in response.iter_bytes():
                    parts.append(part)
                    time_left(exchange.deadline)  # httpx's own limit begins anew with each read.
            finally:
                response.close()
        except httpx.HTTPError as error:
            time_left(exchange.deadline)
            raise _failure(self._address, error) from None
        return _reply(response.status_code, response.headers, b"".join(parts))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class RestTasks:
    """Awaited REST calls to one address."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._address = address
        self._settings = settings
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def exchange(self, exchange: Exchange) -> Reply:
        """Send a request and return the reply.

        Raises:
            Failure: No reply.
            DeadlineExceededError: The deadline has passed.
        """
        loop = asyncio.get_running_loop()
        if self._client is None or loop is not self._loop:  # Connections live and end with their loop.
            self._loop, self._client = loop, httpx.AsyncClient(**_options(self._address, self._settings))
        try:
            request = _request(self._client, exchange, self._settings)
            async with asyncio.timeout(time_left(exchange.deadline)):
                response = await self._client.send(request)
        except TimeoutError:
            raise deadline_error() from None
        except httpx.HTTPError as error:
            time_left(exchange.deadline)
            raise _failure(self._address, error) from None
        return _reply(response.status_code, response.headers, response.content)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.aclose()
        self._client = None
