"""`python -m embedserve`: the standalone server, or one of its sub-commands.

`bench` measures a model, and `verify` compares a model's answers with plain TensorFlow's. Everything else is flags of
the server (`embedserve.server.cli`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from embedserve.server.cli import PROGRAM, serve, server_config
from embedserve.server.config import ServerConfig
from embedserve.server.flags import parse
from embedserve.server.log import configure_logging

__all__ = ["main"]

COMMANDS = ("bench", "verify")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the standalone server and return the exit status: 0 after a drain, 255 when it could not start.

    With `bench` or `verify` as the first argument, run that command instead (`./bench` is a directory of that name).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return _command(arguments[0], arguments[1:])
    return serve(arguments)


def _command(name: str, arguments: Sequence[str]) -> int:
    configure_logging(level=logging.WARNING)
    if name == "bench":
        from embedserve.bench.command import bench

        return bench(arguments, PROGRAM, _configured)
    from embedserve.verify.command import verify

    return verify(arguments, PROGRAM, _configured)


def _configured(flags: Sequence[str]) -> ServerConfig:
    return server_config(parse(flags), {})


if __name__ == "__main__":
    sys.exit(main())
