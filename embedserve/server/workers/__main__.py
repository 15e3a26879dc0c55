"""A worker process, started by a supervisor with inherited descriptors."""

from __future__ import annotations

import sys

from embedserve.server.standalone import outlive_hangups, run
from embedserve.server.workers.worker import run_worker

if __name__ == "__main__":
    outlive_hangups()  # The supervisor handles hang-ups.
    raise SystemExit(run(run_worker(*map(int, sys.argv[1:]))))
