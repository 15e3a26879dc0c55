"""A worker process, started by a supervisor with inherited descriptors."""

from __future__ import annotations

import sys

from embedserve.server.hangups import outlive_hangups


def main() -> int:
    """Run the worker and return the exit status; the supervisor handles hang-ups, also during the imports."""
    outlive_hangups()
    from embedserve.server.standalone import run
    from embedserve.server.workers.worker import run_worker

    return run(run_worker(*map(int, sys.argv[1:])))


if __name__ == "__main__":
    raise SystemExit(main())
