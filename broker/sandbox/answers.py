"""Answers in Coze's shapes, and the way to answer a request whose body is left unread."""

import asyncio
import contextlib

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from broker.sandbox.events import event_of
from broker.sandbox.refusals import OAuthRefusal, Refusal

LINGER_SECONDS = 1.0
LINGER_BYTES = 4 * 1024 * 1024


def logid_detail(scope: Scope) -> dict[str, str]:
    return {"logid": event_of(scope).logid}


def api_refused(scope: Scope, refusal: Refusal) -> Response:
    event = event_of(scope)
    event.code = refusal.code
    event.settle("refused")
    body = {"code": refusal.code, "msg": refusal.msg, "detail": logid_detail(scope)}
    return JSONResponse(body, refusal.status)


def oauth_refused(scope: Scope, refusal: OAuthRefusal) -> Response:
    event = event_of(scope)
    event.code = refusal.error_code
    event.settle("refused")
    body = {"error_code": refusal.error_code, "error_message": refusal.error_message}
    return JSONResponse(body, refusal.status)


async def read_body(request: Request, *, max_bytes: int) -> bytes | None:
    """The whole of a small body, or None when it is larger than that."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)


async def drain(receive: Receive, *, max_bytes: float = float("inf")) -> None:
    """Read and drop the body, at most up to the chunk that passes `max_bytes`."""
    taken, more = 0, True
    while more and taken <= max_bytes:
        message = await receive()
        taken += len(message.get("body", b""))
        more = message.get("more_body", False)


async def send_and_close(response: Response, receive: Receive, send: Send) -> None:
    """Answer at once, then close.

    A socket closed over unread bytes is reset, and a reset can overtake the answer on its way.
    So a little of the body is still taken in, as nginx does with its lingering close.
    """
    response.headers["connection"] = "close"
    head = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "http.response.start", **head})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            await drain(receive, max_bytes=LINGER_BYTES)
    await send({"type": "http.response.body", "body": b""})
