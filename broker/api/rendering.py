"""How a refusal looks on the wire: problem+json (RFC 9457), Coze's envelope on Coze's own paths, and
``success``, ``message``, ``data`` on those that front ends for Coze use.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from broker.errors import InternalError, MalformedRequest, MethodNotAllowed, NotFound, Refusal
from broker.observe import events

COZE_PREFIXES = ("/v1/", "/v3/", "/open_api/", "/api/permission_api/")
FRONT_END_PREFIX = "/api/v1/"
NO_STORE = {"Cache-Control": "no-store"}
DRAIN_BYTES = 16 * 1024 * 1024
DRAIN_SECONDS = 5.0


class RefusalResponse(JSONResponse):
    """A refusal. Of a request with a body it ends the connection: who was wrong about the one may be wrong
    about where it ends. When it comes before the whole body was read, it is sent whole, then what the
    caller is still sending is drained within bounds: a browser that is reset while it sends never shows
    the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = scope["state"]["body"]
        if body.is_there:
            self.headers["Connection"] = "close"
        if body.is_read:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if not body.awaits_continue:
            await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def refusal_response(request: Request, error: Exception) -> Response:
    """The answer for any exception; what it was goes into the request's record."""
    refusal = as_refusal(error)
    event = events.current()
    event.code, event.log, event.logid = refusal.code, refusal.log, refusal.logid or event.logid
    content, headers = rendered(refusal, request.url.path, event.request_id)
    if isinstance(error, HTTPException):
        headers |= error.headers or {}
    return RefusalResponse(content, refusal.status, headers)


def rendered(refusal: Refusal, path: str, request_id: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The body of a refusal in the shape that belongs to the path, and its headers."""
    headers = {**NO_STORE, **refusal.headers}
    if path.startswith(FRONT_END_PREFIX):
        return front_end_envelope(refusal, request_id), {**headers, "Content-Type": "application/json"}
    if not path.startswith(COZE_PREFIXES):
        return problem(refusal, request_id), {**headers, "Content-Type": "application/problem+json"}
    headers |= {"X-Tt-Logid": refusal.logid or request_id, "Content-Type": "application/json"}
    return coze_envelope(refusal, request_id), headers


def as_refusal(error: Exception) -> Refusal:
    """Our own refusals as they are, the router's renamed, anything else as an internal error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        return _OF_ROUTER.get(error.status_code, MalformedRequest)()
    return InternalError(log=f"{type(error).__name__}: {error}")


_OF_ROUTER: dict[int, type[Refusal]] = {404: NotFound, 405: MethodNotAllowed}


def problem(refusal: Refusal, request_id: str) -> dict[str, Any]:
    """RFC 9457's members, and ours: ``code``, ``request_id``, ``retryable``."""
    members = {
        "type": f"urn:coze-upload-broker:problem:{refusal.code}",
        "title": refusal.title,
        "status": refusal.status,
        "detail": refusal.detail,
        "code": refusal.code,
        "request_id": request_id,
        "retryable": refusal.retryable,
    }
    if refusal.retry_after_seconds is not None:
        members["retry_after_seconds"] = refusal.retry_after_seconds
    return members


def front_end_envelope(refusal: Refusal, request_id: str) -> dict[str, Any]:
    """What front ends for Coze read; a program finds the rest in ``data``."""
    data = {"code": refusal.code, "request_id": request_id, "retryable": refusal.retryable}
    return {"success": False, "message": refusal.detail, "data": data}


def coze_envelope(refusal: Refusal, request_id: str) -> dict[str, Any]:
    """What the official clients read: ``code`` and always ``msg``; ``logid`` is Coze's where there is one."""
    return {
        "code": refusal.coze_code,
        "msg": refusal.detail,
        "detail": {"logid": refusal.logid or request_id},
    }


async def _drain(receive: Receive) -> None:
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
