"""The outermost layer: gives each request its event and each answer its log id."""

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.sandbox.events import Event, EventLog, new_event
from broker.sandbox.faults import CONTROL_PREFIX
from broker.sandbox.logid import HEADER, new_logid


class Recording:
    def __init__(self, app: ASGIApp, *, events: EventLog, now: Callable[[], float]) -> None:
        self._app = app
        self._events = events
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        event = self._open(scope)
        try:
            await self._app(scope, _counted(receive, event), _labelled(send, event))
        finally:
            event.settle("aborted" if event.status is None else "answered")

    def _open(self, scope: Scope) -> Event:
        now = self._now()
        event = new_event(scope, at=now, logid=new_logid(now))
        scope.setdefault("state", {})["event"] = event
        if not event.path.startswith(CONTROL_PREFIX):
            self._events.add(event)
        return event


def _counted(receive: Receive, event: Event) -> Receive:
    async def counted() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect":
            event.settle("aborted")
        event.body_bytes += len(message.get("body", b""))
        return message

    return counted


def _labelled(send: Send, event: Event) -> Send:
    async def labelled(message: Message) -> None:
        if message["type"] == "http.response.start":
            event.status = message["status"]
            MutableHeaders(scope=message)[HEADER] = event.logid
        await send(message)

    return labelled
