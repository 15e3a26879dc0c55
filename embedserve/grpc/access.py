"""The clients that a method answers, by the origin of their connections. Knows no transport and no message."""

from __future__ import annotations

from collections.abc import Mapping

from embedserve.config import Clients
from embedserve.errors import Code
from embedserve.grpc.calls import Context, Unary
from embedserve.grpc.errors import StatusError

__all__ = ["answering"]


def answering(clients: Clients, what: str, option: str, methods: Mapping[str, Unary]) -> dict[str, Unary]:
    """The methods, limited to some clients.

    Args:
        clients: The clients to answer.
        what: Name of the methods in the refusal.
        option: The flag that decides.
        methods: By path.
    """
    if clients == "all":
        return dict(methods)
    if clients == "none":
        refusal = StatusError(Code.UNIMPLEMENTED, f"{what} is off; --{option}=local or all turns it on")
        return dict.fromkeys(methods, _refused(refusal))
    refusal = StatusError(Code.PERMISSION_DENIED, f"{what} answers clients on its own machine only; see --{option}")
    return {path: _for_local(method, refusal) for path, method in methods.items()}


def _refused(refusal: StatusError) -> Unary:
    async def answer(body: bytes, context: Context) -> bytes:
        raise StatusError(refusal.code, refusal.message)

    return Unary(answer)


def _for_local(method: Unary, refusal: StatusError) -> Unary:
    async def answer(body: bytes, context: Context) -> bytes:
        if context.is_local():
            return await method.answer(body, context)
        raise StatusError(refusal.code, refusal.message)

    return Unary(answer)
