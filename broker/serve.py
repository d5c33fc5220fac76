"""Running the broker: one socket, one event loop a process, one way to stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from types import FrameType

import uvicorn

from broker import opening
from broker.app import CORS_ANSWER_HEADERS, create_app
from broker.connection import Connection
from broker.observe import logs, snapshot
from broker.settings import Settings, SettingsError, http_url
from broker.upstream.client import on_lost_error

BACKLOG = 4096
KEEP_ALIVE_SECONDS = 75
# A little more than a refusal takes to be sent to a client that is still sending.
LAST_WORDS_SECONDS = 6.0


# Over its grace and its last words, for closing connections to Coze and the stores.
CLOSING_SECONDS = 5.0


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; then take no more, and let what is running finish within its grace.

    Returns the exit code. Raises :class:`SettingsError` when the address, the data folder or the database
    can't be used.
    """
    logs.configure(settings.broker_log_format, settings.broker_log_level)
    listener = _listen(settings.host, settings.port)
    settings = settings.model_copy(update={"port": listener.getsockname()[1]})
    with opening.troubles_told():
        asyncio.run(opening.open_once(settings))
    config = _config(settings)
    config.load()
    # What is here now stays: the collector need not look at it again, nor write to what workers share.
    gc.freeze()
    gc.enable()
    logs.info("listening", url=http_url(settings.host, settings.port), public_url=settings.public_url)
    if settings.broker_workers > 1:
        return _supervised(config, listener, settings)
    _Server(config).run(sockets=[listener])
    return 0


def _supervised(config: uvicorn.Config, listener: socket.socket, settings: Settings) -> int:
    from broker.supervisor import Supervisor  # noqa: PLC0415 - one process needs none of it

    def work(lifeline: int) -> None:
        _Server(config, lifeline).run(sockets=[listener])

    stop_seconds = settings.broker_shutdown_grace_seconds + LAST_WORDS_SECONDS + CLOSING_SECONDS
    return Supervisor(work, listener, workers=settings.broker_workers, stop_seconds=stop_seconds).run()


class _Server(uvicorn.Server):
    """Lets an upload that it had to stop tell its client, and the log, before the process ends.

    uvicorn ends the process as soon as it has cancelled what was running. ``lifeline`` is a descriptor that
    can be read once the process's supervisor is gone.
    """

    def __init__(self, config: uvicorn.Config, lifeline: int | None = None) -> None:
        super().__init__(config)
        self._lifeline = lifeline

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        snapshot.count("client_connections", lambda: len(self.server_state.connections))
        snapshot.count("requests", lambda: len(self.server_state.tasks))
        snapshot.on_signal(asyncio.get_running_loop())
        asyncio.get_running_loop().set_exception_handler(on_lost_error)
        if self._lifeline is not None:
            asyncio.get_running_loop().add_reader(self._lifeline, self._stop_alone, self._lifeline)

    def _stop_alone(self, lifeline: int) -> None:
        asyncio.get_running_loop().remove_reader(lifeline)
        logs.warning("the supervisor is gone, so this worker stops")
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A worker leaves Ctrl-C to its supervisor: the terminal sends it to both, and one of the two is not
        to count as the second that ends all at once.
        """
        if self._lifeline is None or sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.server_state.tasks and not self.force_exit:
            await asyncio.wait(self.server_state.tasks, timeout=LAST_WORDS_SECONDS)


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything else starts, so that a busy port is said at once and a free one is known."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (TypeError, UnicodeError) as error:  # what no resolver is asked for
        raise SettingsError([f"HOST, PORT: can't listen on {host[:100]}:{port} (no host name)."]) from error
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        raise SettingsError([f"HOST, PORT: can't listen on {host}:{port} ({reason})."]) from error


def _config(settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(settings),
        http=Connection.bound_to(
            head_seconds=settings.broker_head_timeout_seconds,
            idle_seconds=settings.broker_client_idle_seconds,
            allowed_origins=settings.allowed_origins,
            exposed_headers=CORS_ANSWER_HEADERS,
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        # Longer than a proxy in front keeps its connections, or it may send on one that is being closed.
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.broker_shutdown_grace_seconds,
    )
