"""`python -m embedserve`: the standalone server; see `embedserve.server.cli`."""

from __future__ import annotations

import sys

from embedserve.server.cli import main

if __name__ == "__main__":
    sys.exit(main())
