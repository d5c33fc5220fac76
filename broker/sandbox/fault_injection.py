"""The layer that carries out the ordered faults, and lets any origin read the answers."""

import asyncio

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.sandbox.answers import drain, logid_detail, send_and_close
from broker.sandbox.connection import connection_of
from broker.sandbox.events import event_of
from broker.sandbox.faults import Fault, Faults

PADDING_CHUNK = b" " * 65536


class FaultInjection:
    def __init__(self, app: ASGIApp, *, faults: Faults, cors: bool) -> None:
        self._app = app
        self._faults = faults
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A preflight uses no fault up: it shows only whether the request behind it would be shared.
        is_preflight = scope["method"] == "OPTIONS"
        fault = self._faults.peek(scope["path"]) if is_preflight else self._faults.take(scope["path"])
        app = self._app if fault is None or is_preflight else FaultyApp(self._app, fault)
        if self._cors and (fault is None or fault.cors):
            app = shared_with_any_origin(app)
        await app(scope, receive, send)


def shared_with_any_origin(app: ASGIApp) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origin_regex=".*",
        allow_methods=("GET", "POST", "PUT", "DELETE", "OPTIONS"),
        allow_headers=("Authorization", "Content-Type", "X-Coze-Client-User-Agent"),
        expose_headers=("x-tt-logid",),
        # A browser that remembers a preflight would not notice a fault ordered after it.
        max_age=0,
    )


class FaultyApp:
    """One request under one fault."""

    def __init__(self, app: ASGIApp, fault: Fault) -> None:
        self._app = app
        self._fault = fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault
        event = event_of(scope)
        event.fault = fault.summary()
        if fault.abort_after_bytes is not None:
            await self._abort(scope, receive, fault.abort_after_bytes)
            return
        response = await self._response(scope, receive)
        await asyncio.sleep(fault.delay_seconds)
        if fault.never_answer:
            await _until_gone(receive)
        elif fault.abort_answer:
            await _reset(scope, receive)
        elif fault.before_body:
            await send_and_close(response, receive, send)
        else:
            await self._deliver(response, scope, receive, send)

    async def _abort(self, scope: Scope, receive: Receive, after_bytes: int) -> None:
        if after_bytes:
            await drain(receive, max_bytes=after_bytes - 1)
        event_of(scope).settle("faulted")
        await _reset(scope, receive)

    async def _response(self, scope: Scope, receive: Receive) -> Response:
        fault = self._fault
        if not fault.replaces_answer and not fault.before_body:
            response = await _captured(self._app, scope, receive)
        else:
            if not fault.before_body:
                await drain(receive)
            event_of(scope).settle("faulted")
            response = _own_answer(fault, scope)
        response.headers.update(fault.headers)
        return response

    async def _deliver(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault
        body = bytes(response.body)
        if fault.half_json:
            body = body[: len(body) // 2]
        announced = max(len(body), fault.oversize_bytes)
        response.headers["content-length"] = str(announced)
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        )
        if fault.truncate:
            await send(_body(body[: len(body) // 2], more=True))
            connection_of(scope).close()
            await _until_gone(receive)
        else:
            await send(_body(body, more=True))
            await _pad(announced - len(body), send)


async def _pad(size: int, send: Send) -> None:
    """White space after JSON is still JSON: only a limit on the answer's size stops a reader."""
    for start in range(0, size, len(PADDING_CHUNK)):
        await send(_body(PADDING_CHUNK[: size - start], more=True))
    await send(_body(b"", more=False))


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _own_answer(fault: Fault, scope: Scope) -> Response:
    if fault.html:
        page = f"<!doctype html><title>{fault.status or 502}</title><h1>Bad gateway</h1>"
        return HTMLResponse(page, fault.status or 502)
    if fault.redirect is not None:
        return Response(status_code=fault.status or 307, headers={"location": fault.redirect})
    code = 5000 if fault.code is None else fault.code
    event_of(scope).code = code
    if event_of(scope).kind == "token":
        return JSONResponse({"error_code": code, "error_message": fault.msg}, fault.status or 200)
    body = {"code": code, "msg": fault.msg, "detail": logid_detail(scope)}
    return JSONResponse(body, fault.status or 200)


async def _captured(app: ASGIApp, scope: Scope, receive: Receive) -> Response:
    """Let the request be handled and hold its small answer back."""
    response = Response()
    body = bytearray()

    async def capture(message: Message) -> None:
        if message["type"] == "http.response.start":
            response.status_code = message["status"]
            response.raw_headers = list(message["headers"])
        body.extend(message.get("body", b""))

    await app(scope, receive, capture)
    response.body = bytes(body)
    return response


async def _reset(scope: Scope, receive: Receive) -> None:
    connection_of(scope).reset()
    await _until_gone(receive)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
