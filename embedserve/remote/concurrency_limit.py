"""How much may be under way with one host at a time. Handed out by `syncer`, asked for by `store`; loop only."""

from __future__ import annotations

import asyncio

__all__ = ["QUESTIONS", "TRANSFERS", "ConcurrencyLimit", "Transfers"]

QUESTIONS = 8
TRANSFERS = 16
TRANSFERS_OF_A_STORE = 4


class ConcurrencyLimit:
    """Shared by all stores of one host. Transfers may take hours: they keep nobody from asking, nor one another off."""

    def __init__(self) -> None:
        self.questions = asyncio.Semaphore(QUESTIONS)
        self._transfers = asyncio.Semaphore(TRANSFERS)

    def transfers(self) -> Transfers:
        """What one store may transfer at a time."""
        return Transfers(self._transfers)


class Transfers:
    """`async with` it to transfer one file."""

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
