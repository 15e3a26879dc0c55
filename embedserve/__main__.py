"""`python -m embedserve`: the standalone server; see `embedserve.cli`."""

from __future__ import annotations

import sys

from embedserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
