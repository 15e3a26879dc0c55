"""The sub-command: arguments → model, requests and plan → sweep → report, and the exit status.

The model is measured with the given flags of the server. The progress bar is drawn only between cells, so that no
measurement includes the drawing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embedserve.errors import ConfigError, ServingError
from embedserve.server import tensorflow_setup
from embedserve.server.config import ServerConfig
from embedserve.server.flags import FlagError
from embedserve.server.standalone import run, stop_on_signals
from embedserve.tuning.arguments import DECIDED, arguments_and_flags, count
from embedserve.tuning.deployment import deployment
from embedserve.tuning.model import TunedModel, check_whole, find
from embedserve.tuning.plan import ALONE, Cell, Grid, Setting, default_run_threads, plan
from embedserve.tuning.plot import check_plot_file, write_plot
from embedserve.tuning.recommendation import recommend
from embedserve.tuning.report import Report
from embedserve.tuning.requests import Requests, check_answered, chosen_signature, made_up, recorded
from embedserve.tuning.sweep import Pace, Result, sweep

__all__ = ["ProgressBar", "tune"]

# Exit statuses: a failure, and an interruption by a signal (128 + SIGINT, as in shells).
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def tune(arguments: Sequence[str], program: str, configured: Callable[[Sequence[str]], ServerConfig]) -> int:
    """Run the command.

    Args:
        arguments: The command line after `tune`.
        program: The name of the program in messages.
        configured: Interprets the server's flags.

    Returns:
        0, 1 with the reason on stderr, or 130 after an interruption, with a report of the cells measured so far; bad
        usage ends with SystemExit(2).
    """
    parser = _parser(program)
    options, flags = arguments_and_flags(parser, arguments, DECIDED, "the command finds out")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # The report is the only wanted output of the process.
    try:
        _check(options, parser)
        place = find(options.model)
        given = (f"--model_name={place.base_path.name}", f"--model_base_path={place.base_path}", *flags)
        config = configured(given)
        assert config.models is not None
        model = TunedModel(place, config.models[0], config.options)
        tensorflow_setup.apply(config.session_config)
        check_whole(place)
    except FlagError as error:
        parser.error(str(error))
    except ServingError as error:
        return _failed(error)
    found = _Sweep(model, options, tuple(flags))
    status = run(_measured(found))
    return status if status == EXIT_FAILED else _report(found, program, interrupted=status == EXIT_INTERRUPTED)


def _failed(error: Exception) -> int:
    print(error, file=sys.stderr)
    return EXIT_FAILED


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{program} tune",
        description="Measures a model in process, under every combination of run threads, batch limits and callers, "
        "and prints the flags to serve it with.",
        epilog="Any flag of the server that says how a model is loaded or run may be given too, as --name=value.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL_DIR", help="a model's directory, whose newest version is measured, or a version's")
    add("--signature", metavar="NAME", help="signature to ask; serving_default, or the only one")
    add("--requests", action="append", type=Path, default=[], metavar="FILE", help=_REQUESTS_HELP)
    add("--rows", type=count, metavar="N", help="rows of a made-up request, 1 if not given")
    add("--concurrency", type=_counts, default=(1, 4, 16, 64), metavar="N,...", help="callers; 1,4,16,64")
    add("--batch-limits", type=_counts, default=(ALONE, 8, 32, 128), metavar="N,...", help=_LIMITS_HELP)
    add("--run-threads", type=_counts, metavar="N,...", help="threads that run the model; 1, half the CPUs and all")
    add("--seconds-per-cell", type=_seconds, default=2.0, metavar="SECONDS", help="for each combination; 2")
    add("--budget", type=_seconds, default=300.0, metavar="SECONDS", help="for all of it, loads included; 300")
    add("--target-latency", type=_seconds, metavar="SECONDS", help="recommend what holds this p99")
    add("--json", type=Path, metavar="FILE", help="write everything there as JSON; - prints it instead of the report")
    add("--plot", type=Path, metavar="FILE", help="draw the plot there (.png, .svg, .pdf); needs embedserve[plot]")
    return parser


_REQUESTS_HELP = (
    "recorded requests, a warm-up file or a request log, may be repeated; the version's own warm-up file if there is "
    "one, else a request is made up from the signature"
)
_LIMITS_HELP = f"rows that share a run at most, {ALONE} for no batching; 1,8,32,128"


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse bad arguments before the load."""
    if options.rows is not None and options.requests:
        parser.error("--rows is for made-up requests, --requests gives recorded ones")
    for file in (options.plot, options.json):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"{file} cannot be written: there is no directory {file.parent}")
    if options.plot is not None:
        check_plot_file(options.plot)


@dataclass
class _Sweep:
    """The work of the command, and the results so far."""

    model: TunedModel
    options: argparse.Namespace
    flags: tuple[str, ...]
    requests: Requests | None = None
    notes: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    unsafe: list[str] = field(default_factory=list)

    async def measure(self) -> None:
        """Fill in `requests`, `notes` and `results`.

        Raises:
            ServingError: The model cannot be loaded, or no request for the model can be found.
        """
        options = self.options
        pace = Pace(options.seconds_per_cell, options.budget)
        threads = options.run_threads or default_run_threads(self.model.options.num_batch_threads)
        with ProgressBar() as progress:
            self.requests = await self._requests(Setting(min(threads), max(options.batch_limits)))
            signature = self.requests.signature
            grid = Grid(options.concurrency, options.batch_limits, threads)
            cells, self.notes = plan(grid, signature.batching)
            progress.planned(len(cells))
            await sweep(self.model, self.requests, cells, pace, self.results, progress)
        if len(self.results) < len(cells):
            self.notes.append(
                f"{len(cells) - len(self.results)} of {len(cells)} cells were not measured: the budget of "
                f"{options.budget:g} s was used up (--budget)."
            )

    async def _requests(self, setting: Setting) -> Requests:
        place, config, options = self.model.place, self.model.config, self.options
        # Only a batching registry judges whether a signature can be batched.
        judging = Setting(setting.run_threads, max(setting.batch_limit, 2))
        async with self.model.registry(judging) as registry, registry.acquire(config.name) as handle:
            signature = chosen_signature(handle.signatures, options.signature)
            self.unsafe = [each.name for each in handle.signatures.values() if not each.batching.batchable]
            if files := options.requests:
                requests = await asyncio.to_thread(recorded, files, handle.signatures, signature)
            elif options.rows is None and (own := await asyncio.to_thread(_own_requests, place.path)):
                try:
                    requests = await asyncio.to_thread(recorded, [own], handle.signatures, signature)
                except ConfigError:
                    requests = await made_up(handle, signature, place.path, config.saved_model_tags, 1)
            else:
                rows = options.rows or 1
                requests = await made_up(handle, signature, place.path, config.saved_model_tags, rows)
            await check_answered(handle, requests)
            return requests

    def report(self, interrupted: bool) -> Report:
        """The report; needs at least one result."""
        assert self.requests is not None
        notes = list(self.notes)
        place = self.model.place
        if place.version != place.newest:
            notes.append(f"The flags serve version {place.newest}, the newest; measured was {place.version}.")
        choice = recommend(self.results, self.options.target_latency)
        if choice is not None and choice.setting.batch_limit != ALONE and self.unsafe:
            notes.append(
                "--enable_batching batches every signature, also these, which are not known to be safe: "
                f"{', '.join(self.unsafe)}. In an embedding service only safe ones are."
            )
        most_rows = max(self.options.concurrency) * self.requests.most_rows
        served = None if choice is None else deployment(self.model, choice.setting, most_rows, self.flags)
        cpus = self.model.options.num_batch_threads
        return Report(self.model, self.requests, self.results, cpus, notes, choice, served, interrupted)


def _own_requests(path: Path) -> Path | None:
    from embedserve.saved_model.files.meta_graph import warmup_file

    file = warmup_file(path)
    return file if file.is_file() else None


async def _measured(found: _Sweep) -> int:
    """Measure until the end or the first signal, and return the exit status; a second signal ends the process."""
    with stop_on_signals() as stop:
        measuring, stopped = asyncio.ensure_future(found.measure()), asyncio.ensure_future(stop.wait())
        await asyncio.wait({measuring, stopped}, return_when=asyncio.FIRST_COMPLETED)
        interrupted = not measuring.done()
        for task in (measuring, stopped):
            task.cancel()
        await asyncio.wait({measuring, stopped})
    if not measuring.cancelled() and (error := measuring.exception()) is not None:
        if not isinstance(error, ServingError):
            raise error
        return _failed(error)
    return EXIT_INTERRUPTED if interrupted else 0


def _report(found: _Sweep, program: str, interrupted: bool) -> int:
    """Print and write the results, and return the exit status."""
    status = EXIT_INTERRUPTED if interrupted else 0
    if not any(result.measured.answered for result in found.results):
        reasons = [reason for result in found.results for reason in result.measured.failed]
        why = f"every request failed: {reasons[0]}" if reasons else " ".join(["Nothing was measured.", *found.notes])
        print(why, file=sys.stderr)
        return status or EXIT_FAILED
    report = found.report(interrupted)
    document = json.dumps(report.document(), indent=2)
    file, plot = found.options.json, found.options.plot
    print(document if file == Path("-") else report.text(program), flush=True)
    try:
        if file is not None and file != Path("-"):
            file.write_text(document + "\n")
        if plot is not None:
            write_plot(plot, f"{found.model.config.name}: throughput and p99", report.results, report.choice)
    except OSError as error:
        return _failed(error)
    return status


class ProgressBar:
    """Shows the progress of a sweep; implements `sweep.Progress`. The bar disappears at the end."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description:<60}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(file=sys.stderr),
            auto_refresh=False,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("loading the model", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        self._bar.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def planned(self, cells: int) -> None:
        """Set the number of cells."""
        self._bar.update(self._task, total=cells)

    def loading(self, setting: Setting) -> None:
        """As `sweep.Progress`."""
        self._say(f"loading for {setting}")

    def measuring(self, cell: Cell) -> None:
        """As `sweep.Progress`."""
        self._say(f"{cell.setting}, {cell.concurrency} caller{'s' * (cell.concurrency > 1)}")

    def measured(self) -> None:
        """As `sweep.Progress`."""
        self._bar.advance(self._task)

    def _say(self, what: str) -> None:
        self._bar.update(self._task, description=what)
        self._bar.refresh()
