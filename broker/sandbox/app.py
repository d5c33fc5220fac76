"""Puts one sandbox together."""

import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route

from broker.sandbox.access_tokens import AccessTokens
from broker.sandbox.assertions import Assertions
from broker.sandbox.config import SandboxConfig
from broker.sandbox.control import Control
from broker.sandbox.events import EventLog
from broker.sandbox.fault_injection import FaultInjection
from broker.sandbox.faults import Faults
from broker.sandbox.files_endpoint import FilesEndpoint
from broker.sandbox.recording import Recording
from broker.sandbox.refusing import Refusing, unknown_path, wrong_method
from broker.sandbox.stored_files import StoredFiles
from broker.sandbox.token_endpoint import TokenEndpoint


def create_app(config: SandboxConfig, *, now: Callable[[], float] = time.time) -> Starlette:
    """A sandbox of its own; the faults that break a connection need `broker.sandbox.serve`."""
    tokens = AccessTokens(config, now)
    stored = StoredFiles(config.max_records)
    events = EventLog(config.max_records)
    ordered = Faults()
    files = FilesEndpoint(stored, tokens, max_file_bytes=config.max_file_bytes, now=now)
    routes = _api_routes(TokenEndpoint(Assertions(config, now), tokens), files)
    app = Starlette(
        routes=routes + _control_routes(Control(ordered, stored, events)),
        middleware=[
            Middleware(Recording, events=events, now=now),
            Middleware(FaultInjection, faults=ordered, cors=config.cors),
            Middleware(Refusing),
        ],
        exception_handlers={404: unknown_path, 405: wrong_method},
    )
    app.router.redirect_slashes = False
    return app


def _api_routes(token: TokenEndpoint, files: FilesEndpoint) -> list[BaseRoute]:
    return [
        Route("/api/permission/oauth2/token", token.exchange, methods=["POST"]),
        Route("/v1/files/upload", files.upload, methods=["POST"]),
        Route("/v1/files/retrieve", files.retrieve, methods=["GET"]),
    ]


def _control_routes(control: Control) -> list[BaseRoute]:
    return [
        Route("/_sandbox/faults", control.list_faults, methods=["GET"]),
        Route("/_sandbox/faults", control.order_faults, methods=["PUT"]),
        Route("/_sandbox/faults", control.drop_faults, methods=["DELETE"]),
        Route("/_sandbox/files", control.list_files, methods=["GET"]),
        Route("/_sandbox/events", control.list_events, methods=["GET"]),
        Route("/_sandbox/events", control.drop_events, methods=["DELETE"]),
    ]
