"""Starts Python programs as forks of one process that has imported TensorFlow and has never run it.

A server's start costs four seconds of processor time, and `import tensorflow` most of them. All test processes of a run
share the forking process; TensorFlow is imported there at the first request. All else is as in any start: command line,
working directory, environment, files, signals, exit status, the end of the interpreter, and the imports of embedserve
and of every package that TensorFlow does not import.

The Python processes that a warm program starts are its children and warm too, such as a server's workers.

usage: python -m tests.support.warm DESCRIPTOR     of the listening socket; ends with its standard input
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import json
import os
import random
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# Names the socket to all test processes of a run.
SOCKET = "WARM_STARTS"
# Variables that are read once, when Python, TensorFlow or a library below starts: another value takes a real start.
_READ_AT_START = ("PYTHON", "TF_", "XLA_", "OMP_", "DNNL_", "ONEDNN_", "OPENBLAS_", "CUDA_", "LD_", "MALLOC_")
# Of the length of a request, a process's number, an exit status.
_NUMBER = struct.Struct("i")
# Variables that imports have set.
_set_by_imports: set[str] = set()
# Linux takes so many descriptors with one message.
_MOST_FILES = 253
# From linux/prctl.h.
_PR_SET_CHILD_SUBREAPER = 36
# In place of a process's number: this program takes a real start.
_REFUSED = 0


class WarmProcess:
    """A started program: what tests use of `subprocess.Popen`."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit status, minus the number of the signal that ended the process, or None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the status when the process has ended.

        Raises:
            subprocess.TimeoutExpired: The process still runs after `timeout` seconds.
        """
        with self._lock:
            if self.returncode is None:
                self._connection.settimeout(timeout)
                try:
                    self.returncode = _answer(self._connection)
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0) from None
                self._connection.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = WarmProcess | subprocess.Popen[bytes]


def start(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: int, stderr: int, warm: bool = True
) -> Process:
    """Start `python ARGUMENTS` on the given descriptors; warm, unless its options or variables need a real start."""
    place = os.environ.get(SOCKET)
    if warm and place is not None and _may_be_warm(arguments):
        files = {1: stdout, 2: stderr}
        program = _Program(list(arguments), str(cwd), dict(env), files, False, list(os.sched_getaffinity(0)))
        started = _request(place, program)
        if started is not None:
            return started
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)


def _request(place: str, program: _Program) -> WarmProcess | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(place)
        program.send(connection)
        pid = _answer(connection)
        if pid == _REFUSED:
            connection.close()
            return None
        command = [sys.executable, *program.arguments]
        sys.audit("subprocess.Popen", sys.executable, command, program.cwd, program.environment)
        return WarmProcess(connection, pid)
    except BaseException:
        connection.close()
        raise


def _may_be_warm(arguments: Sequence[str]) -> bool:
    """Whether no option to Python itself is given."""
    return bool(arguments) and (arguments[0] in ("-m", "-c") or not arguments[0].startswith("-"))


def _answer(connection: socket.socket) -> int:
    answer = connection.recv(_NUMBER.size)
    if not answer:
        raise RuntimeError("the process that starts programs warm has ended; its `log` lies beside its socket")
    number: int = _NUMBER.unpack(answer)[0]
    return number


@contextlib.contextmanager
def offered(pythonpath: str) -> Iterator[None]:
    """Have a process that starts programs warm while the body runs, for this process and those that it starts."""
    with tempfile.TemporaryDirectory(prefix="warm-") as directory, socket.socket(socket.AF_UNIX) as listening:
        place = f"{directory}/socket"
        listening.bind(place)
        listening.listen(128)
        with open(f"{directory}/log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm", str(listening.fileno())],
                cwd=Path(__file__).parents[2],
                env=os.environ | {"PYTHONPATH": pythonpath},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[listening.fileno()],
            )
        os.environ[SOCKET] = place
        try:
            yield
        finally:
            del os.environ[SOCKET]
            process.communicate(timeout=60)


class _Program(NamedTuple):
    """What runs where: `files` are this process's descriptors by their numbers in the program."""

    arguments: list[str]
    cwd: str
    environment: dict[str, str]
    files: dict[int, int]
    new_session: bool
    cpus: list[int]

    def send(self, connection: socket.socket) -> None:
        request = json.dumps(self._replace(files=dict.fromkeys(self.files, 0))).encode()
        socket.send_fds(connection, [_NUMBER.pack(len(request))], list(self.files.values()))
        connection.sendall(request)

    @classmethod
    def received(cls, connection: socket.socket) -> _Program | None:
        """Read a request; None when the client has left."""
        length, files, *_ = socket.recv_fds(connection, _NUMBER.size, _MOST_FILES)
        if not length:
            return None
        request = b""
        while len(request) < _NUMBER.unpack(length)[0]:
            request += connection.recv(_NUMBER.unpack(length)[0] - len(request))
        arguments, cwd, environment, numbers, new_session, cpus = json.loads(request)
        return cls(arguments, cwd, environment, dict(zip(map(int, numbers), files, strict=True)), new_session, cpus)

    def close_files(self) -> None:
        for file in self.files.values():
            os.close(file)


class _Starter:
    """Forks a child for each connection, sends its number and its status, and kills it when the connection ends."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._selector = selectors.DefaultSelector()
        self._selector.register(listening, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)
        # By the descriptors of a connection and of its process (a pidfd), which are kept both as long as the process.
        self._children: dict[int, _Child] = {}

    def next_program(self) -> _Program | None:
        """Return what to run, in a child; or None, in the parent, when standard input has ended."""
        while True:
            for key, _ in self._selector.select():
                if key.fd == 0:
                    for child in {*self._children.values()}:
                        os.kill(child.pid, signal.SIGKILL)
                        child.tell_end()
                    return None
                if key.fd == self._listening.fileno():
                    program = self._accept()
                    if program is not None:
                        return program
                elif key.fd in self._children:
                    self._heard(key.fd, self._children[key.fd])

    def _accept(self) -> _Program | None:
        connection, _ = self._listening.accept()
        program = _Program.received(connection)
        if program is None:
            connection.close()
            return None
        if _read_at_start(program.environment) != _read_at_start(os.environ):
            pid = _REFUSED
        else:
            _import_tensorflow()
            pid = os.fork()
            if pid == 0:
                self._forget(connection)
                return program
            self._keep(_Child(pid, os.pidfd_open(pid), connection))
        program.close_files()
        with contextlib.suppress(OSError):  # The client has left.
            connection.sendall(_NUMBER.pack(pid))
        if pid == _REFUSED:
            connection.close()
        return None

    def _keep(self, child: _Child) -> None:
        for descriptor in (child.pidfd, child.connection.fileno()):
            self._children[descriptor] = child
            self._selector.register(descriptor, selectors.EVENT_READ)

    def _heard(self, descriptor: int, child: _Child) -> None:
        self._selector.unregister(descriptor)
        if descriptor != child.pidfd:  # The client has left.
            os.kill(child.pid, signal.SIGKILL)
            return
        child.tell_end()
        for kept in (child.pidfd, child.connection.fileno()):
            del self._children[kept]
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.connection)
        os.close(child.pidfd)
        child.connection.close()

    def _forget(self, connection: socket.socket) -> None:
        """Close, in a child, what is the parent's."""
        self._selector.close()
        self._listening.close()
        connection.close()
        for descriptor, child in self._children.items():
            if descriptor == child.pidfd:
                os.close(descriptor)
            else:
                child.connection.close()


class _Child(NamedTuple):
    pid: int
    pidfd: int
    connection: socket.socket

    def tell_end(self) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with contextlib.suppress(OSError):  # The client has left.
            self.connection.sendall(_NUMBER.pack(status))


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_START)}


def _import_tensorflow() -> None:
    if "tensorflow" not in sys.modules:
        before = set(os.environ)
        __import__("tensorflow")
        _set_by_imports.update(os.environ.keys() - before)
        gc.collect()
        gc.freeze()  # No collection of a child writes to what all share.


class _Nested:
    """Starts the Python processes that a warm program starts: as its children, forks of an idle fork of the program.

    The idle fork was made before the program began. A fork of its fork becomes the program's own child, for the program
    is the reaper of orphans among its descendants.
    """

    def __init__(self, helper: socket.socket) -> None:
        self._helper = helper
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._real = subprocess._fork_exec  # type: ignore[attr-defined]
        subprocess._fork_exec = self._fork_exec  # type: ignore[attr-defined]
        self._real_on_loop = asyncio.create_subprocess_exec
        asyncio.create_subprocess_exec = self._exec_on_loop

    async def _exec_on_loop(self, *command: Any, **options: Any) -> Any:
        """Stand in for asyncio's function, because uvloop starts processes by itself."""
        if command[0] != sys.executable or subprocess.PIPE in options.values():
            return await self._real_on_loop(*command, **options)
        return _ProcessOnLoop(subprocess.Popen(command, **options))

    def _fork_exec(self, *how: Any) -> int:
        """Stand in for the function of this name, whose arguments are those of CPython 3.11 to 3.13."""
        command, executables, close_fds, kept, cwd, env, stdin, _, _, stdout, _, stderr, _, reported = how[:14]
        new_session, group, *others = how[15:22]
        words = [os.fsdecode(word) for word in command]
        environment = dict(os.environ)
        if env is not None:
            environment = dict(os.fsdecode(pair).split("=", 1) for pair in env)
        if (
            os.getpid() != self._owner
            or [os.fsdecode(executable) for executable in executables] != [sys.executable]
            or not _may_be_warm(words[1:])
            or not close_fds
            or (group, *others) != (-1, None, None, None, -1, None)
            or _read_at_start(environment) != _read_at_start(os.environ)
        ):
            return int(self._real(*how))
        files = {number: number for number in kept if number != reported}
        files |= {place: place if given == -1 else given for place, given in enumerate((stdin, stdout, stderr))}
        cwd = os.getcwd() if cwd is None else os.path.abspath(os.fsdecode(cwd))
        program = _Program(words[1:], cwd, environment, files, bool(new_session), list(os.sched_getaffinity(0)))
        with self._lock:
            program.send(self._helper)
            return _answer(self._helper)


class _ProcessOnLoop:
    """A process without pipes: what of `asyncio.subprocess.Process` programs use."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._end)

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def _end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(self._process.wait())

    async def wait(self) -> int:
        status: int = await asyncio.shield(self._ended)
        return status

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _with_nested(program: _Program) -> _Program:
    """Return the program to run with its idle fork beside it; in a process that the fork starts, what that runs."""
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        _Nested(ours)
        return program
    ours.close()
    program.close_files()
    with open(os.devnull, "r+b") as nowhere:
        for place in range(3):
            os.dup2(nowhere.fileno(), place)
    while True:
        nested = _Program.received(theirs)
        if nested is None:
            os._exit(0)
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            os.close(reading)
            pid = os.fork()
            if pid == 0:
                os.close(writing)
                theirs.close()
                return _with_nested(nested)
            os.write(writing, _NUMBER.pack(pid))
            os._exit(0)
        os.close(writing)
        nested.close_files()
        answer = os.read(reading, _NUMBER.size)
        os.close(reading)
        os.waitpid(between, 0)
        theirs.sendall(answer)


def _place(files: Mapping[int, int]) -> None:
    """Give each descriptor its number in the program; 0, the standard input, is empty unless given."""
    above = max(3, *files, *files.values()) + 1
    moved = {number: fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for number, file in files.items()}
    for file in set(files.values()):
        os.close(file)
    moved.setdefault(0, os.open(os.devnull, os.O_RDONLY))
    for number, file in moved.items():
        os.dup2(file, number)
        os.close(file)


def _run(program: _Program) -> None:
    """Become what `python ARGUMENTS` runs, up to the end of its main module."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    sys.modules["numpy"].random.seed()
    if program.new_session:
        os.setsid()
    os.sched_setaffinity(0, program.cpus)
    os.chdir(program.cwd)
    if "multiprocessing.process" in sys.modules:
        vars(sys.modules["multiprocessing.process"])["ORIGINAL_DIR"] = os.getcwd()
    for name in os.environ.keys() - program.environment.keys() - _set_by_imports:
        del os.environ[name]
    os.environ.update(program.environment)
    first, *rest = program.arguments
    sys.orig_argv[:] = [sys.executable, *program.arguments]
    if first == "-m":
        sys.path[0], sys.argv = os.getcwd(), rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        sys.modules["__main__"] = main = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0], sys.argv = os.path.dirname(os.path.realpath(first)), [first, *rest]
        runpy.run_path(os.path.abspath(first), run_name="__main__")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal's; the end of the standard input is what counts.
    started = _Starter(socket.socket(fileno=int(sys.argv[1]))).next_program()
    if started is not None:
        started = _with_nested(started)
        _place(started.files)
        _run(started)
