"""Arguments shared by `tune` and `verify`: a command's own options beside flags of the server, for a single model.

The module knows no option of either command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["DECIDED", "arguments_and_flags", "count"]

DECIDED = frozenset(
    (
        *("model_base_path", "model_config_file", "model_config_file_poll_wait_seconds", "platform_config_file"),
        *("enable_batching", "batching_parameters_file", "enable_per_model_batching_parameters", "adaptive_batching"),
        *("target_latency", "num_batch_threads", "workers", "server", "help", "version"),
    )
)
"""Flags decided by the command, or without meaning for the command; every other flag may be given."""


def arguments_and_flags(
    parser: argparse.ArgumentParser, arguments: Sequence[str], decided: frozenset[str], what: str
) -> tuple[argparse.Namespace, list[str]]:
    """Separate the command's options and the server's flags.

    Args:
        parser: The command's parser; ends the process for unknown arguments.
        arguments: The command line.
        decided: Flags that may not be given.
        what: The command's use of the decided flags, for the message.
    """
    options, flags = parser.parse_known_args([_dashed(argument, parser) for argument in arguments])
    for flag in flags:
        if not flag.startswith("--"):
            parser.error(f"unexpected argument {flag!r}: one model's directory, and flags as --name=value")
        if flag.removeprefix("--").partition("=")[0] in decided:
            parser.error(f"{flag}: this is what {what} or takes from MODEL_DIR")
    return options, flags


def _dashed(argument: str, parser: argparse.ArgumentParser) -> str:
    """A command's option with dashes, also if written with underscores like the server's flags."""
    name, equals, value = argument.partition("=")
    dashed = name.replace("_", "-")
    return f"{dashed}{equals}{value}" if dashed in parser._option_string_actions else argument


def count(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
