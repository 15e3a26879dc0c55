"""`python -m embedserve install-command`: makes `tensorflow_model_server` start this Python's server.

The command serves scripts and manifests with TensorFlow Serving's binary name. The installation is explicit, because
pip's console scripts cannot depend on an extra, and a machine may have the real binary.
"""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

__all__ = ["NAME", "install_command"]

NAME = "tensorflow_model_server"
EXIT_BAD_ARGUMENTS = 255

# Line of a script written by this command; only marked files are overwritten.
_MARK = "# Written by `python -m embedserve install-command`."


def install_command(arguments: Sequence[str], program: str) -> int:
    """Write the command into a directory, print the path, and return 0; 1 after a failure, 255 for bad arguments.

    Args:
        arguments: A directory, or empty for the directory of this Python's commands.
        program: The name of the program in messages.
    """
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(f"usage: {program} install-command [DIRECTORY]    writes DIRECTORY/{NAME}, which starts embedserve")
        return 0 if list(arguments) in (["--help"], ["-h"]) else EXIT_BAD_ARGUMENTS
    path = Path(*arguments or [sysconfig.get_path("scripts")]) / NAME
    try:
        if path.is_symlink() or (path.exists() and _MARK not in path.read_text(errors="replace")):
            print(f"{path} is there already and is not embedserve's: remove it, or name another directory")
            return 1
        path.write_text(f'#!/bin/sh\n{_MARK}\nexec {shlex.quote(sys.executable)} -m embedserve "$@"\n')
        path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror}")
        return 1
    print(path)
    if path.parent.resolve() not in (Path(part or ".").resolve() for part in os.get_exec_path()):
        print(f"{path.parent} is not on PATH", file=sys.stderr)
    return 0
