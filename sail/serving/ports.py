"""Where a server of ours listens: a port of this machine, or a socket file that nobody else can open."""

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from sail.core.errors import UserError
from sail.core.run_settings import VllmSettings

LOOPBACK = "127.0.0.1"


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
        _refuse_taken(wanted, host)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, wanted))
        yield holder.getsockname()[1]


def _refuse_taken(port: int, host: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections in TIME_WAIT do not count
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used ({error.strerror})",
                where="vllm.port",
                cure="Stop the process that listens there, or set vllm.port=0 for a free port",
            ) from None
