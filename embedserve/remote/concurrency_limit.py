"""Limits of simultaneous requests and transfers per host. Loop only."""

from __future__ import annotations

import asyncio

__all__ = ["QUESTIONS", "TRANSFERS", "ConcurrencyLimit", "Transfers"]

# Simultaneous requests to a host, and simultaneous transfers from a host and for a store.
QUESTIONS = 8
TRANSFERS = 16
TRANSFERS_OF_A_STORE = 4


class ConcurrencyLimit:
    """The limits of a host, shared by all of the host's stores.

    Transfers may take hours. Requests have a separate limit, and each store has a transfer limit, so that transfers
    block neither requests nor other stores.
    """

    def __init__(self) -> None:
        self.questions = asyncio.Semaphore(QUESTIONS)
        self._transfers = asyncio.Semaphore(TRANSFERS)

    def transfers(self) -> Transfers:
        """The transfer limit of a store, within the host's limit."""
        return Transfers(self._transfers)


class Transfers:
    """`async with` around the transfer of a file."""

    def __init__(self, of_host: asyncio.Semaphore) -> None:
        self._of_host = of_host
        self._of_store = asyncio.Semaphore(TRANSFERS_OF_A_STORE)

    async def __aenter__(self) -> None:
        await self._of_store.acquire()
        try:
            await self._of_host.acquire()
        except BaseException:
            self._of_store.release()
            raise

    async def __aexit__(self, *error: object) -> None:
        self._of_host.release()
        self._of_store.release()
