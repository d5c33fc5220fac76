"""Running the broker: one socket, one event loop, one way to stop."""

from __future__ import annotations

import socket

import uvicorn

from broker.app import create_app
from broker.observe import logs
from broker.settings import Settings

BACKLOG = 4096


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then take no more, and let what is running finish within its grace.

    Raises ``OSError`` when the address can't be listened on.
    """
    logs.configure(settings.broker_log_format, settings.broker_log_level)
    listener = _listen(settings.host, settings.port)
    settings = settings.model_copy(update={"port": listener.getsockname()[1]})
    server = uvicorn.Server(_config(settings))
    logs.info("listening", url=f"http://{settings.host}:{settings.port}", public_url=settings.public_url)
    server.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything else starts, so that a busy port is said at once and a free one is known."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _config(settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(settings),
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=settings.broker_shutdown_grace_seconds,
    )
