"""Which models are batched, by what decision, and why not, and whether their answers stay the same beside neighbours.

python -m benchmarks.verdicts [--models dense,lstm] [--pairs 20] [--directory DIRECTORY]

Prints a Markdown row for each signature: the verdict with its reason, then the largest difference of an answer beside
neighbours from the answer of plain TensorFlow. Models are those of the tests, of the benchmarks, and of
`tests.support.survey_models`; random weights, nothing is downloaded. The exit status is 1 where an answer differs.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import models
from embedserve.config import ModelConfig, RegistryOptions
from embedserve.errors import ServingError
from embedserve.tuning.model import Place
from embedserve.verify.ways import Findings, Plan, Way, compare_ways
from examples.neighbours import export as neighbours
from examples.tf1_cnn import export as tf1_cnn
from tests.support import saved_models, survey_models

Builder = Callable[[Path], object]

BESIDE = "beside neighbours"


def _saved(module: Callable[[], object]) -> Builder:
    return lambda path: models.save(module(), path)


BUILDERS: Mapping[str, Builder] = {
    **saved_models.MODELS,
    **survey_models.SURVEYED,
    "benchmark_half": _saved(models.Half),
    "benchmark_mlp": _saved(models.Mlp),
    "benchmark_recurrent": _saved(models.Recurrent),
    "benchmark_conv2d": _saved(models.Conv2D),
    "benchmark_text_cnn": _saved(models.TextCNN),
    "example_neighbours": lambda path: neighbours.main(str(path)),
    "example_tf1_cnn": lambda path: tf1_cnn.main(str(path)),
    "benchmark_mobilenet": lambda path: models.save_mobilenet(1, path),
}


@dataclass(frozen=True)
class Row:
    """What was found out about one signature of one model.

    Attributes:
        model: Its name in `BUILDERS`.
        found: What `verify` found.
    """

    model: str
    found: Findings

    @property
    def beside(self) -> Way | None:
        """The answers beside neighbours, where requests share runs."""
        return next((way for way in self.found.ways if way.name == BESIDE), None)

    def __str__(self) -> str:
        verdict, beside = self.found.verdict, self.beside
        largest = max((each.largest for each in beside.differences.values()), default=0.0) if beside else 0.0
        answer = "exact" if not largest else "other values" if math.isinf(largest) else f"{largest:.1e}"
        if "the same answer" in self.found.requests:
            answer += " (all answers are alike)"
        cells = [
            *(self.model, self.found.signature, "yes" if verdict.batchable else "no", verdict.by, verdict.reason),
            *((str(beside.runs), answer) if beside else ("", self.found.skipped and "not compared")),
        ]
        return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


COLUMNS = ("model", "signature", "batched", "by", "why", "runs shared", "largest difference")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


async def survey(names: Iterable[str], directory: Path, plan: Plan, print_row: Callable[[str], object]) -> list[Row]:
    """Build each model below `directory` unless it is there, load it, and compare.

    Args:
        names: Keys of `BUILDERS`.
        directory: Where models are kept, `<name>/1` each.
        plan: What is compared.
        print_row: Given each line of the table as soon as it is known.

    Raises:
        ServingError: A model cannot be loaded.
    """
    rows: list[Row] = []
    print_row(HEADER)
    for name in names:
        path = directory / name / "1"
        if not path.exists():
            BUILDERS[name](path)
        place = Place(path.parent, 1, path, 1)
        config = ModelConfig(name=name, base_path=path.parent)
        for found in await compare_ways(place, config, RegistryOptions(), plan):
            rows.append(Row(name, found))
            print_row(str(rows[-1]))
    return rows


def summary(rows: Sequence[Row]) -> str:
    """The counts, and what is wrong."""
    batched = [row for row in rows if row.found.verdict.batchable]
    runs = sum(row.beside.runs for row in batched if row.beside is not None)
    differing = [f"{row.model} ({row.found.signature})" for row in rows if row.found.differs]
    ways = Counter(row.found.verdict.by for row in batched)
    lines = [
        f"{len({row.model for row in rows})} models, {len(rows)} signatures: {ways['proof']} batched by proof, "
        f"{ways['probe']} by probe, {len(rows) - len(batched)} not; {runs:,} runs shared by unlike requests, "
        f"answers differ in {len(differing)} signatures"
    ]
    for row in rows:
        for way in row.found.ways:
            lines += [f"{row.model}, {way.name}: {each.example}" for each in way.differences.values() if each.over]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", metavar="NAMES", help=f"only these, of {', '.join(BUILDERS)}")
    parser.add_argument("--pairs", type=int, default=20, help="groups of unlike requests for each signature")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes up other requests")
    parser.add_argument("--directory", type=Path, help="keep the models there, and use those that are there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    names = [name for name in options.models.split(",") if name] or list(BUILDERS)
    unknown = [name for name in names if name not in BUILDERS]
    if unknown:
        print(f"no model is called {', '.join(unknown)}", file=sys.stderr)
        return 2
    plan = Plan(pairs=options.pairs, seed=options.seed, padded=False)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        try:
            rows = asyncio.run(survey(names, directory, plan, lambda line: print(line, flush=True)))
        except ServingError as error:
            print(error, file=sys.stderr)
            return 2
    print(f"\n{summary(rows)}\n{time.monotonic() - started:.0f} seconds, --pairs {options.pairs}")
    return 1 if any(row.found.differs for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
