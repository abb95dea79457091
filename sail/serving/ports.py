"""Where a server of ours listens: a port of this machine, or a socket file that nobody else can open."""

import errno
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings

LOOPBACK = "127.0.0.1"
_FAULTS_OF_A_PORT = (errno.EADDRINUSE, errno.EACCES)


@contextmanager
def reserved_address(settings: VllmSettings) -> Iterator[str]:
    """http://HOST:PORT, held until the server listens on it; in mode colocate unix:PATH in a new folder of ours."""
    if settings.mode == "colocate":
        yield f"unix:{tempfile.mkdtemp(prefix='sail-')}/engine"
        return
    with reserved_port(settings.port, settings.host) as port:
        yield f"http://{settings.host}:{port}"


@contextmanager
def reserved_port(wanted: int, host: str = LOOPBACK) -> Iterator[int]:
    """`wanted`, or a free port if that is 0, held until the server listens on it.

    vLLM binds with SO_REUSEPORT: two servers can share a port without an error, each answering some of the
    requests. Held with the same option and never listening, our socket keeps others from being handed the
    port, and vLLM can still bind it. (The server's unique model name catches what slips through.)
    """
    if wanted:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections in TIME_WAIT do not count
            _bind(probe, host, wanted)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(holder, host, wanted)
        yield holder.getsockname()[1]


def _bind(listener: socket.socket, host: str, port: int) -> None:
    try:
        listener.bind((host, port))
    except OSError as error:
        if error.errno in _FAULTS_OF_A_PORT:
            raise UserError(
                f"port {port} cannot be used ({error.strerror})", where="vllm.port",
                cure="Stop the process that listens there, or set vllm.port=0 for a free port",
            ) from None  # fmt: skip
        raise UserError(
            f"{host!r} is no address a server can listen at here ({error.strerror})", where="vllm.host",
            cure="Give an IPv4 address or a name of this machine; 0.0.0.0 is all of them, the default 127.0.0.1 itself",
        ) from None  # fmt: skip
