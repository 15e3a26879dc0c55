"""`python -m embedserve`: the standalone server and the sub-commands.

`inspect` shows a model, `tune` measures a model, and `verify` compares a model's answers with plain TensorFlow's.
`status`, `top` and `predict` ask a running server, `client` prints a typed module for a model of a server, and
`completion` prints a script for a shell. `live` asks whether the local server is alive, and `install-command` makes
`tensorflow_model_server` a command. All further arguments are flags of the server (`embedserve.server.cli`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedserve.server.hangups import PROGRAM, SUB_COMMANDS, outlive_hangups

if TYPE_CHECKING:
    from embedserve.server.config import ServerConfig

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the standalone server and return the exit status: 0 after a drain, 255 after a failed start.

    A sub-command as the first argument runs instead of the server (`./tune` is a directory called `tune`).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in SUB_COMMANDS:
        return _command(arguments[0], arguments[1:])
    outlive_hangups()  # Before the imports, which take seconds.
    from embedserve.server.cli import serve

    return serve(arguments)


def _command(name: str, arguments: Sequence[str]) -> int:
    if name == "live":  # Run every few seconds by probes: the imports stay minimal.
        from embedserve.server.live import live

        return live(arguments)
    if name in ("completion", "predict", "status", "top"):
        return _shell_command(name, arguments)
    if name == "client":
        return _client(arguments, f"{PROGRAM} client")
    if name == "install-command":
        from embedserve.server.install_command import install_command

        return install_command(arguments, PROGRAM)
    from embedserve.server.log import configure_logging

    configure_logging(level=logging.WARNING)
    if name == "inspect":
        return _inspect(arguments)
    if name == "tune":
        from embedserve.tuning.command import tune

        return tune(arguments, PROGRAM, _configured)
    from embedserve.verify.command import verify

    return verify(arguments, PROGRAM, _configured)


def _client(arguments: Sequence[str], program: str) -> int:
    try:
        from embedserve_client.generate import main as generate
    except ModuleNotFoundError as error:
        if error.name != "embedserve_client":
            raise
        print(f"{program}: needs the client's distribution: pip install embedserve-client", file=sys.stderr)
        return 2
    return generate(arguments, program)


def _shell_command(name: str, arguments: Sequence[str]) -> int:
    """Run a command that asks a server, or none; the imports stay free of TensorFlow."""
    from embedserve.commands.asking import CommandError
    from embedserve.commands.completion import completion
    from embedserve.commands.predict import predict
    from embedserve.commands.status import status
    from embedserve.commands.top import top

    commands = {"completion": completion, "predict": predict, "status": status, "top": top}
    try:
        return commands[name](arguments, PROGRAM)
    except CommandError as error:
        print(error, file=sys.stderr)
        return error.status


def _inspect(arguments: Sequence[str]) -> int:
    from embedserve.commands.asking import CommandError
    from embedserve.commands.inspection import inspect

    try:
        return inspect(arguments, PROGRAM, _configured)
    except CommandError as error:
        print(error, file=sys.stderr)
        return error.status


def _configured(flags: Sequence[str]) -> ServerConfig:
    from embedserve.server.cli import server_config
    from embedserve.server.flags import parse

    return server_config(parse(flags), {})


if __name__ == "__main__":
    sys.exit(main())
