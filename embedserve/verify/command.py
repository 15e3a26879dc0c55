"""The sub-command: arguments → version and plan → comparison → report, and the exit status.

The model is loaded with the given flags of the server.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from embedserve.config import Batching
from embedserve.errors import ConfigError, ServingError
from embedserve.server import tensorflow_setup
from embedserve.server.config import ServerConfig
from embedserve.server.flags import FlagError
from embedserve.server.standalone import run
from embedserve.tuning.arguments import DECIDED, arguments_and_flags, count
from embedserve.tuning.model import Place, check_whole, find
from embedserve.verify.report import document, text
from embedserve.verify.ways import Findings, Plan, compare_ways

__all__ = ["verify"]

# Exit statuses: an answer differs, and no comparison was possible.
EXIT_DIFFERENT = 1
EXIT_BAD_ARGUMENTS = 2

_BATCHING: dict[str, Batching] = {"auto": "auto", "true": True, "false": False}


class _Parser(argparse.ArgumentParser):
    """Reports bad arguments in a single line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(EXIT_BAD_ARGUMENTS)


def verify(arguments: Sequence[str], program: str, configured: Callable[[Sequence[str]], ServerConfig]) -> int:
    """Run the command.

    Args:
        arguments: The command line after `verify`.
        program: The name of the program in messages.
        configured: Interprets the server's flags.

    Returns:
        0; 1 if an answer differs by more than the tolerance; 2 with the reason on stderr if no answer could be
            compared.
        Bad usage ends with SystemExit(2).
    """
    parser = _parser(program)
    options, flags = arguments_and_flags(parser, arguments, DECIDED | {"prefer_tflite_model"}, "the command decides")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # The report is the only wanted output of the process.
    try:
        _check(options)
        place = find(options.model)
        given = (f"--model_name={place.base_path.name}", f"--model_base_path={place.base_path}", *flags)
        config = configured(given)
        assert config.models is not None
        tensorflow_setup.apply(config.session_config)
        check_whole(place)
        model = config.models[0].model_copy(update={"batching": _BATCHING[options.batching]})
        plan = _plan(options)
        findings = run(compare_ways(place, model, config.options, plan))
    except FlagError as error:
        parser.error(str(error))
    except ServingError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_BAD_ARGUMENTS
    return _report(place, plan, findings, options.json)


def _parser(program: str) -> _Parser:
    parser = _Parser(
        prog=f"{program} verify",
        description="Answers requests by plain TensorFlow and by embedserve: alone, beside neighbours in one run, "
        "padded and optimised. Prints whether requests share a run, why, and the largest difference of each output.",
        epilog="Any flag of the server that says how a model is loaded or run may be given too, as --name=value.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL_DIR", help="a model's directory, whose newest version is checked, or a version's")
    add("--requests", action="append", type=Path, default=[], metavar="FILE", help=_REQUESTS_HELP)
    add("--signature", metavar="NAME", help="the only signature to check; all if not given")
    add("--pairs", type=count, default=20, metavar="N", help="random groups of requests that share a run; 20")
    add("--seed", type=int, default=0, metavar="N", help="another seed makes up other requests and groups; 0")
    add("--tolerance", type=_tolerance, default=1e-5, metavar="X", help="difference that floats may have; 1e-5")
    add("--batching", choices=_BATCHING, default="auto", help="true checks signatures that are not batched by itself")
    add("--pad-variable-length-inputs", action="store_true", help="let requests of other lengths share a run too")
    add("--optimize", choices=("none", "freeze", "xla"), default="none", help="compare optimised execution too")
    add("--json", type=Path, metavar="FILE", help="write everything there as JSON; - prints it instead of the report")
    return parser


_REQUESTS_HELP = (
    "recorded requests, a warm-up file or a request log, may be repeated; without it unlike requests are made up"
)


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number from 0 on")
    return value


def _check(options: argparse.Namespace) -> None:
    """Refuse bad arguments before the load."""
    for file in options.requests:
        if not file.is_file():
            raise ConfigError(f"there is no file {file}")
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"{options.json} cannot be written: there is no directory {options.json.parent}")


def _plan(options: argparse.Namespace) -> Plan:
    return Plan(
        pairs=options.pairs,
        seed=options.seed,
        tolerance=options.tolerance,
        ragged=options.pad_variable_length_inputs,
        optimize=options.optimize,
        files=options.requests,
        signature=options.signature,
    )


def _report(place: Place, plan: Plan, findings: Sequence[Findings], file: Path | None) -> int:
    written = json.dumps(document(place, plan, findings), indent=2)
    print(written if file == Path("-") else text(place, plan, findings), flush=True)
    if file is not None and file != Path("-"):
        try:
            file.write_text(written + "\n")
        except OSError as error:
            print(f"{file} cannot be written: {error.strerror}", file=sys.stderr)
            return EXIT_BAD_ARGUMENTS
    return EXIT_DIFFERENT if any(found.differs for found in findings) else 0
