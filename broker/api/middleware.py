"""What happens around every request: its record, its id, its last-resort answer.

Plain ASGI, so that nothing stands between an upload's bytes and their reader but one call.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.api import auditing
from broker.api.rendering import refusal_response
from broker.client_address import client_address
from broker.errors import OutcomeUnknown, Refusal, ShuttingDown
from broker.observe import events, logs

MAX_LOGGED_PATH = 200
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"cross-origin"),
)
"""Of every answer that has none of its own."""
_OF_BODIES = (b"content-length", b"transfer-encoding", b"expect")
_SLASHES = re.compile("/{2,}")


class RequestBody:
    """Passes a request's body on and knows how far it was read."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        # Once through the headers; of those that come twice the first counts, as for everybody else.
        said = {name: value for name, value in reversed(scope["headers"]) if name in _OF_BODIES}
        self.is_there = said.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in said
        self._receive = receive
        self._started = False
        self._expects_continue = said.get(b"expect", b"").lower() == b"100-continue"
        self.is_read = not self.is_there

    @property
    def awaits_continue(self) -> bool:
        """Whether the client holds the body back until it is asked for (RFC 9110 §10.1.1)."""
        return self._expects_continue and not self._started

    async def receive(self) -> Message:
        self._started = True
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.is_read = True
        return message


class RequestRecord:
    """Opens a request's record, gives it an id, and closes the record whatever happens."""

    def __init__(self, app: ASGIApp, trusted_proxies: int = 0) -> None:
        self._app = app
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        event, body = _open(scope, self._trusted_proxies), RequestBody(scope, receive)
        scope["state"]["body"] = body

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                event.status = message["status"]
                message["headers"] = [*message["headers"], *_added(event, message["headers"])]
            await send(message)

        try:
            await self._app(scope, body.receive, send_with_id)
        finally:
            logs.request_ended(event)
            auditing.note_ended(scope["state"], event)


class LastResort:
    """Stands innermost, so that an error nobody expected still gets its CORS headers and its id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # The server's time to stop is up. The task ends with this answer, so the cancellation ends here.
            if events.current().status is not None:
                raise
            await self._answer(_stopped(), scope, receive, send)
        except Exception as error:
            logs.unexpected(error)
            await self._answer(error, scope, receive, send)

    async def _answer(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        if events.current().status is not None:  # an answer has begun; all that is left is to break it off
            raise error
        await refusal_response(Request(scope, receive), error)(scope, receive, send)


def _stopped() -> Refusal:
    """What to say of a request that had to be stopped: was it before Coze could have the whole file?"""
    if events.current().sent == "all":
        return OutcomeUnknown(log="stopped by the shutdown while Coze's answer was awaited")
    return ShuttingDown(retry_after_seconds=1)


class OneSlash:
    """Some clients write ``//v1/…`` when their base URL ends in a slash; they mean ``/v1/…``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "//" in scope["path"]:
            scope["path"] = _SLASHES.sub("/", scope["path"])
        await self._app(scope, receive, send)


def _added(event: events.Event, own: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """What every answer's headers have besides its own."""
    yield b"x-request-id", event.request_id.encode()
    for name, value in (event.limit_headers or {}).items():
        yield name.lower().encode("latin-1"), value.encode("latin-1")
    known = {name for name, _ in own}
    yield from (header for header in SECURITY_HEADERS if header[0] not in known)


def _open(scope: Scope, trusted_proxies: int) -> events.Event:
    headers = Headers(scope=scope)
    address = client_address(scope.get("client"), scope["headers"], trusted_proxies)
    scope["state"]["address"] = address
    event = events.Event(
        method=scope["method"],
        path=scope["path"][:MAX_LOGGED_PATH],
        client_ip=address,
        origin=headers.get("origin", "")[:MAX_LOGGED_PATH] or None,
    )
    events.begin(event)
    return event
