"""`python -m embedserve.request_log to-warmup LOG... --output FILE`: warm-up requests for a version from request logs.

Reads what the log writers have written, keeps what a version can replay, and writes it without the answers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.errors import ServingError
from embedserve.tfs.constants import MAX_WARMUP_RECORDS

if TYPE_CHECKING:
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

_REPLAYABLE = ("predict_log", "classify_log", "regress_log", "multi_inference_log")


class _CommandError(Exception):
    """The reason why the command fails."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, or 1 with the reason on stderr."""
    options = _parser().parse_args(arguments)
    try:
        print(to_warmup(options.logs, options.output, options.limit, options.model, force=options.force))
    except (_CommandError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m embedserve.request_log", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("to-warmup", help="make a warm-up file from request logs")
    command.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="a .tfrecord file of a request log")
    command.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="for instance models/NAME/1/assets.extra/tf_serving_warmup_requests",
    )
    command.add_argument(
        "--limit",
        type=_limit,
        default=MAX_WARMUP_RECORDS,
        help=f"records at most, up to {MAX_WARMUP_RECORDS}, the default",
    )
    command.add_argument("--model", help="take this model's requests; needed when the logs hold several models'")
    command.add_argument("--force", action="store_true", help="replace FILE")
    return parser


def _limit(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_WARMUP_RECORDS:
        raise argparse.ArgumentTypeError(f"a version loads 1 to {MAX_WARMUP_RECORDS} warm-up records, not {value}")
    return value


def to_warmup(logs: Sequence[Path], output: Path, limit: int, model: str | None, *, force: bool = False) -> str:
    """Write a warm-up file and describe the file's contents.

    Raises:
        _CommandError: The file exists, or the logs hold several models or no replayable request.
        OSError: A log cannot be read, or the file cannot be written.
    """
    if output.exists() and not force:
        raise _CommandError(f"{output} exists; --force replaces it")
    counts = Counter[str]()
    kept: dict[bytes, None] = {}
    models: set[str] = set()
    for log in _read(logs, counts):
        name = log.log_metadata.model_spec.name
        if model is not None and name != model:
            counts["of other models"] += 1
            continue
        models.add(name)
        request = _request_only(log)
        reason = _why_not(request)
        if reason is None and request.SerializeToString(deterministic=True) in kept:
            reason = "repeated"
        if reason is None and len(kept) >= limit:
            reason = "over the limit"
        if reason is None:
            kept[request.SerializeToString(deterministic=True)] = None
        else:
            counts[reason] += 1
    if len(models) > 1:
        raise _CommandError(f"the logs hold requests of several models ({', '.join(sorted(models))}): add --model=NAME")
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    if not kept:
        raise _CommandError(f"there is nothing to replay in {len(logs)} log(s)" + (f": {left_out}" if left_out else ""))
    _write(output, kept)
    return f"{len(kept)} records in {output}" + (f"; left out: {left_out}" if left_out else "")


def _read(logs: Sequence[Path], counts: Counter[str]) -> Iterator[PredictionLog]:
    from embedserve.saved_model.load.warmup import read_logs

    for path in logs:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            yield from read_logs(path)
        except ServingError as error:  # The log of a killed writer ends in half a record.
            counts[f"after what could not be read of {path} ({error.message.splitlines()[0]})"] += 1


def _request_only(log: PredictionLog) -> PredictionLog:
    request = type(log)()
    kind = log.WhichOneof("log_type")
    if kind is not None:
        getattr(request, kind).request.CopyFrom(getattr(log, kind).request)
    return request


def _why_not(log: PredictionLog) -> str | None:
    """The reason why no version could replay a record, whatever the signatures; None for a replayable record."""
    from embedserve.tensors import proto

    kind = log.WhichOneof("log_type")
    if kind not in _REPLAYABLE:
        return f"of a kind that is not replayed ({kind})"
    request = getattr(log, kind).request
    if kind != "predict_log":
        return None if request.input.WhichOneof("kind") else "without examples"
    try:
        for name, tensor in request.inputs.items():
            proto.decode(tensor, name)
    except ServingError:
        return "with a broken tensor"
    return None


def _write(output: Path, records: Iterable[bytes]) -> None:
    """Write beside `output` and move into place, because a registry may be watching."""
    import tensorflow as tf

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=output.parent) as directory:
        temporary = os.path.join(directory, output.name)
        with tf.io.TFRecordWriter(temporary) as writer:
            for record in records:
                writer.write(record)
        os.replace(temporary, output)


if __name__ == "__main__":
    sys.exit(main())
