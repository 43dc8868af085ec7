"""Runs the server until a signal ends it."""

import contextlib
import logging
import os
import socket
import tempfile
from collections.abc import Collection

import uvicorn

from ..core.console import quiet_transformers
from ..core.errors import ConfigError
from ..core.interrupts import StopSignals
from .app import build_app
from .guard import LOOPBACK, Guard
from .service import Service

logger = logging.getLogger(__name__)

# Open connections for each picture that may wait: browsers hold some open.
_CONNECTIONS = 4
_SECONDS_TO_END = 5


def listen(host: str, port: int) -> socket.socket:
    """Opens the socket of a server, so that a port in use is known before a checkpoint is loaded.

    Args:
        host: A name or an address of this machine.
        port: The port; 0 for any that is free.

    Raises:
        ConfigError: Nothing can listen there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: nothing can listen there ({reason}).") from error


def serve(service: Service, listener: socket.socket, allowed_hosts: Collection[str] = ()) -> None:
    """Serves a captioner until SIGINT or SIGTERM. What runs then is answered, and what waits is refused.

    Args:
        service: The captioner and its limits.
        listener: The socket, as [`listen`] opens it. It is closed at the end.
        allowed_hosts: Names that requests may use for this server, beside those of the machine itself.

    Raises:
        KeyboardInterrupt: A signal ended it.
    """
    host, port = listener.getsockname()[:2]
    is_local = host.startswith("127.") or host == "::1"
    names = {*LOOPBACK, *allowed_hosts, *(() if is_local else (socket.gethostname(), socket.getfqdn()))}
    server_logger = logging.getLogger("uvicorn")
    server_logger.handlers, server_logger.propagate = logging.getLogger(__name__.partition(".")[0]).handlers, False
    server_logger.setLevel(logging.WARNING)
    with StopSignals(), tempfile.TemporaryDirectory(prefix="vlm-caption-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of this server alone, and gone with it
        guard = Guard(build_app(service), names, not is_local, service.limits)
        config = uvicorn.Config(
            guard,
            log_config=None,
            access_log=False,
            lifespan="on",
            ws="none",
            limit_concurrency=_CONNECTIONS * service.limits.max_waiting,
            timeout_graceful_shutdown=_SECONDS_TO_END,
            server_header=False,
        )
        place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        logger.info("Serving %s. Page: %s/  API: %s/v1  Ctrl-C ends.", service.name, place, place)
        quiet = contextlib.nullcontext() if service.is_exported else quiet_transformers()
        with quiet:
            try:
                _Server(config, service).run(sockets=[listener])
            finally:
                service.batcher.close()
                service.batcher.join(_SECONDS_TO_END)  # Python ends badly while a thread is inside a library


class _Server(uvicorn.Server):
    """Refuses what waits as soon as a signal comes, so that its clients are told before the connections are closed."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.batcher.close()  # not in the signal's handler, which may interrupt `Batcher.submit`
        await super().shutdown(sockets)
