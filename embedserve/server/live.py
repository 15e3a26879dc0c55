"""`python -m embedserve live`: is the server on this machine alive? For a container's health check, or an exec probe.

The command reads the server's flags from its command line or from the running server, and asks `/-/live` at the REST
port. The module imports neither TensorFlow nor grpc, and does not decide the meaning of alive.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from embedserve.errors import ServingError
from embedserve.http.sockets import EVERY_IPV4, EVERY_IPV6, bracketed
from embedserve.server.config import GrpcConfig, RestConfig, TlsFiles
from embedserve.server.flags import FlagError, parse
from embedserve.server.hangups import SUB_COMMANDS
from embedserve.server.port_flags import ports

__all__ = ["live", "server_arguments"]

# Seconds for the connection and for the answer each. Docker's default timeout for a check is 30 s.
PATIENCE = 5.0
EXIT_ALIVE, EXIT_NOT_ALIVE, EXIT_BAD_FLAGS = 0, 1, 255

_USAGE = """\
usage: python -m embedserve live [flags of the server]

Asks the server on this machine at /-/live whether it is alive. Without flags, the flags of the running server are read
from /proc; without a running server, the server's defaults hold (REST port 8501).

Exit status: 0 alive, 1 not alive or no answer, 255 impossible flags."""

_COMMANDS = ("embedserve", "tensorflow_model_server")


def live(arguments: Sequence[str]) -> int:
    """Print the finding and return 0 for a live server, 1 for a dead server, 255 for impossible flags.

    With `--help`, print the usage and return 0.

    Args:
        arguments: The server's flags. Without flags, the flags and the working directory of the running server are
            taken;
            without a running server, the defaults.
    """
    try:
        if arguments and parse(arguments).help:
            print(_USAGE)
            return EXIT_ALIVE
        flags = parse(arguments or server_arguments(Path("/proc")))
        alive, said = _ask(*ports(flags))
    except (FlagError, ServingError) as error:
        print(error)
        return EXIT_BAD_FLAGS
    print(said)
    return EXIT_ALIVE if alive else EXIT_NOT_ALIVE


def server_arguments(proc: Path) -> list[str]:
    """The arguments of the running server with the lowest process number; also changes to its working directory.

    Args:
        proc: The directory of processes, `/proc` on Linux.
    """
    numbers = sorted(int(path.name) for path in proc.glob("[0-9]*")) if proc.is_dir() else []
    for number in numbers:
        with suppress(OSError):
            words = (proc / str(number) / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
            found = _arguments_of_server(words)
            if found is not None and number != os.getpid():
                with suppress(OSError):  # Flags may name files relative to the server's working directory.
                    os.chdir(proc / str(number) / "cwd")
                return found
    return []


def _arguments_of_server(words: Sequence[str]) -> list[str] | None:
    """The words after the server's name in a command line; None for another program or a sub-command."""
    for i, word in enumerate(words[:-1]):
        if word == "-m" and words[i + 1] == "embedserve":
            found = list(words[i + 2 :])
            break
    else:
        if len(words) < 2 or os.path.basename(words[1]) not in _COMMANDS:
            return None
        found = list(words[2:])
    return None if found and not _is_server(found) else found


def _is_server(arguments: Sequence[str]) -> bool:
    with suppress(FlagError):
        flags = parse(arguments)
        return not flags.help and not flags.on("version") and arguments[0] not in SUB_COMMANDS
    return False


def _ask(grpc: GrpcConfig, rest: RestConfig) -> tuple[bool, str]:
    """Whether the server is alive, and a line with the reason."""
    if rest.port is None:
        return _connect(grpc)
    tls = rest.tls
    host = _reachable(rest.hosts)
    where = f"{'http' if tls is None else 'https'}://{bracketed(host)}:{rest.port}/-/live"
    connection: http.client.HTTPConnection
    if tls is None:
        connection = http.client.HTTPConnection(host, rest.port, timeout=PATIENCE)
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # The server is on this machine, whatever name the certificate has.
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, rest.port, timeout=PATIENCE, context=context)
    with closing(connection):
        try:
            connection.request("GET", "/-/live")
            answer = connection.getresponse()
            return answer.status == 200, f"{where}: {answer.status} {answer.read(1000).decode(errors='replace')}"
        except ssl.SSLError as error:
            # Without a client certificate the handshake ends here; a server demanding a certificate is alive.
            asks = _asks_for_certificates(tls)
            return asks, f"{where}: {'asks for a certificate' if asks else f'no TLS: {error}'}"
        except (OSError, http.client.HTTPException) as error:
            return False, f"{where}: {_failure(error, f'{bracketed(host)}:{rest.port}')}"


def _failure(error: Exception, place: str) -> str:
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return f"no server answers at {place} ({error.strerror})"
    return str(error) or type(error).__name__


def _asks_for_certificates(tls: TlsFiles | None) -> bool:
    return tls is not None and tls.client_ca is not None


def _reachable(hosts: Sequence[str]) -> str:
    return hosts[0] if hosts and hosts[0] not in (EVERY_IPV4, EVERY_IPV6) else "127.0.0.1"


def _connect(config: GrpcConfig) -> tuple[bool, str]:
    """Connect to the gRPC port instead: without a REST port, no server answers `/-/live`."""
    try:
        if config.port is not None:
            place = f"{bracketed(_reachable(config.hosts))}:{config.port}"
            socket.create_connection((_reachable(config.hosts), config.port), timeout=PATIENCE).close()
        else:
            place = str(config.socket_path)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(PATIENCE)
                connection.connect(place)
    except OSError as error:
        return False, f"gRPC at {place}: {_failure(error, place)}"
    return True, f"gRPC at {place}: open; without a REST port nothing more can be asked"
