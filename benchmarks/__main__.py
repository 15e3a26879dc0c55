"""The benchmark suite: embedserve beside other servers, on the same models, in one run.

python -m benchmarks [--servers embedserve,noop,naive] [--workloads half] [--concurrency 1,64] [--json FILE]

Every server runs on one processor core and h2load (Debian: nghttp2-client) on another. Peers are installed into
environments of their own, below $EMBEDSERVE_BENCHMARKS or ~/.cache/embedserve-benchmarks, the first time they are
asked for. Answers are checked before and after; Markdown goes to standard output, progress to standard error.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from benchmarks.suite import alone, load, measure, plots, report
from benchmarks.suite.contenders import CONTENDERS, chosen, groups
from benchmarks.suite.workloads import WORKLOADS, models_directory


def parser() -> argparse.ArgumentParser:
    cores = sorted(os.sched_getaffinity(0))
    found = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument(
        "--servers",
        type=names,
        default=[],
        metavar="NAMES",
        help=f"which, by name or group; all by default. Names: {', '.join(CONTENDERS)}. Groups: {groups()}",
    )
    found.add_argument("--workloads", type=names, default=[], metavar="NAMES", help=f"of {', '.join(WORKLOADS)}")
    found.add_argument("--concurrency", type=numbers, default=[], metavar="NUMBERS", help="only these")
    found.add_argument("--seconds", type=float, default=1.0, help="of one measurement; twice that for mobilenet")
    found.add_argument("--repeats", type=int, default=3, help="rounds; medians are reported")
    found.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    found.add_argument("--plots", type=Path, metavar="DIRECTORY", help="write a picture for each workload there")
    found.add_argument("--page", type=Path, metavar="FILE", help="put ratios and pictures into this Markdown file")
    found.add_argument("--quick", action="store_true", help="one short round, to see that it works")
    found.add_argument("--read", type=Path, metavar="FILE", help="measure nothing: report what --json wrote")
    found.add_argument("--install-only", action="store_true", help="make models and environments, measure nothing")
    found.add_argument("--server-core", type=int, default=cores[0], help="processor of the servers")
    found.add_argument("--load-core", type=int, default=cores[-1], help="processor of the load generator")
    return found


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    return [int(number) for number in names(text)]


def run(options: argparse.Namespace) -> report.Report:
    contenders = chosen(options.servers)
    workloads = measure.narrowed(options.workloads, options.concurrency)
    if not workloads:
        raise SystemExit("nothing to measure: no workload of that name has that concurrency")
    if options.server_core == options.load_core:
        raise SystemExit("one processor is not enough: server and load generator each need their own")
    load.h2load()
    models = models_directory(workload.name for workload in workloads)
    seconds, repeats = (0.4, 1) if options.quick else (options.seconds, options.repeats)
    plan = measure.Plan(contenders, workloads, seconds, repeats, options.server_core, options.load_core)
    results = measure.run(plan, models)
    without_load = None
    if not options.quick and any(each.group == "embedserve" for each in contenders) and not options.workloads:
        without_load = alone.measure(models, repeats, options.server_core)
    return report.Report(results, without_load, report.about(seconds, repeats))


def main() -> int:
    options = parser().parse_args()
    # As Ctrl-C: whatever was started is ended on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.install_only:
            for name, reason in measure.install(chosen(options.servers)).items():
                print(f"{name}: {reason}")
            return 0
        found = report.from_json(options.read.read_text()) if options.read else run(options)
    except (load.NoLoadGenerator, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        options.json.write_text(report.to_json(found))
    if options.page:
        options.page.write_text(report.page(found, options.page.read_text()))
        plots.write(found.results.samples, options.page.parent)
    if options.plots:
        plots.write(found.results.samples, options.plots)
    print(report.markdown(found))
    return 1 if found.results.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
