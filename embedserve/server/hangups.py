"""Ignoring hang-ups (SIGHUP), from the first statement of a server's process on.

The import of the module takes no time: the imports of a server take seconds, in which a hang-up would end the process.
"""

from __future__ import annotations

import signal
import threading

__all__ = ["PROGRAM", "SUB_COMMANDS", "outlive_hangups"]

PROGRAM = "python -m embedserve"

SUB_COMMANDS = (
    *("inspect", "status", "top", "predict", "tune", "verify", "client", "live", "completion", "install-command"),
)
"""First arguments of commands without a server: a hang-up ends such a command."""


def outlive_hangups() -> None:
    """Ignore SIGHUP from here on; child processes inherit the setting."""
    if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
