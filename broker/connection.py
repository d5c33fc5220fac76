"""A caller's connection, below the application: what is no proper HTTP ends here.

uvicorn's own protocol sets no bound to a request's head and no time limit for it, takes the trailers of a
chunked body for headers, and answers what it can't read in plain text without CORS headers or an id.
"""

from __future__ import annotations

import asyncio
import json
import socket
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker import reads
from broker.api.rendering import rendered
from broker.errors import ClientTooSlow, HeadTooLarge, MalformedRequest, Refusal, UnsupportedEncoding
from broker.observe import events, logs

MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 100
LINGER_BYTES = 4 * 1024 * 1024
LINGER_SECONDS = 2.0
LOOK_SECONDS = 0.5
_GONE = (7, 8)
"""TCP_CLOSE and TCP_CLOSE_WAIT, the states that a reset and an end by the client lead to (tcp_states.h)."""


class Connection(HttpToolsProtocol):
    """One connection; ``bound_to`` makes the class for the settings of one server."""

    head_seconds: ClassVar[float] = 15.0
    idle_seconds: ClassVar[float] = 30.0
    allowed_origins: ClassVar[frozenset[str]] = frozenset()
    exposed_headers: ClassVar[str] = ""
    buffer: ClassVar[memoryview] = memoryview(bytearray(reads.FULL_BYTES))
    """Where reads go first; of a server, that is of one event loop."""

    @classmethod
    def bound_to(
        cls,
        *,
        head_seconds: float,
        idle_seconds: float,
        allowed_origins: tuple[str, ...],
        exposed_headers: tuple[str, ...],
    ) -> type[Connection]:
        """The class with its limits, in seconds, for a request's head to come and for a piece of an answer
        to be taken, and with the origins whose pages may read its refusals, and which headers of them.
        """
        fields = {
            "head_seconds": head_seconds,
            "idle_seconds": idle_seconds,
            "allowed_origins": frozenset(allowed_origins),
            "exposed_headers": ", ".join(exposed_headers),
            "buffer": memoryview(bytearray(reads.FULL_BYTES)),
        }
        return type("BoundConnection", (cls,), fields)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._head_bytes = 0
        self._body_left = 0
        """What is still to come of a body whose length was announced."""
        self._pieces = 0
        """How many pieces of the body came after the application had taken all that was there."""
        self._refusal: Refusal | None = None
        self._lingered: int | None = None
        """Bytes that were thrown away since the last answer; None while the connection is in use."""
        self._postponed: Refusal | None = None
        """Of what came behind a request that is still to be answered; that goes first."""
        self._head_alarm: asyncio.TimerHandle | None = None
        self._write_alarm: asyncio.TimerHandle | None = None
        self._look_alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type] # uvicorn means any transport of a stream
        # So that ``pause_writing`` tells of every byte that the client does not take.
        self.transport.set_write_buffer_limits(high=0)
        self.transport.set_protocol(reads.MeasuredReads(self, self.buffer))
        self._set_head_alarm()

    @property
    def read_bytes(self) -> int:
        """The more, the longer the application takes the body as it comes."""
        return reads.next_bytes(0 if self.cycle is None or self.cycle.body else self._pieces)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head_alarm()
        self._end_write_alarm()
        self._end_look_alarm()
        self._tell_of_leaving()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_alarm = self.loop.call_later(self.idle_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_write_alarm()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._postponed is not None:
            return
        if self._lingered is not None:
            self._linger(len(data))
            return
        if self._body_left:
            data = self._take_body(data)
        if not data or self.parser is None:
            return
        was_in_head = self._in_head
        self._parse(data)
        if was_in_head and self._in_head and self._lingered is None:
            self._count(len(data))

    def on_response_complete(self) -> None:
        was_last = not self.pipeline
        super().on_response_complete()
        if self._postponed is not None and was_last and not self.transport.is_closing():
            refusal, self._postponed = self._postponed, None
            self._unset_keepalive_if_required()
            self._answer(refusal)

    def _parse(self, data: bytes) -> None:
        while data and self.parser is not None:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = self._pass_over_upgrade(data[offer.args[0] :])
            except httptools.HttpParserError as error:
                self.send_400_response(str(error))
                return
            else:
                return

    def _pass_over_upgrade(self, rest: bytes) -> bytes:
        """An offer that need not be taken (RFC 9110 §7.8); Java's own client makes one with each request in
        the clear. To the parser the request is over, to us it has its body; returns what comes behind it.
        """
        if not self._body_left:
            self._renew_parser()
            return rest
        return self._take_body(rest) if rest else rest

    def _take_body(self, data: bytes) -> bytes:
        """Take what belongs to the body, and return what comes behind it.

        Where the length was announced, there is nothing to parse, and the parser would make a copy.
        """
        body, rest = data, b""
        if len(data) > self._body_left:
            body, rest = data[: self._body_left], data[self._body_left :]
        self.on_body(body)
        if not self._body_left:
            self.on_message_complete()
            self._renew_parser()
        return rest

    def _renew_parser(self) -> None:
        """The parser still waits for the body. After a request that closes there is no other
        (RFC 9112 §9.6): what comes is not read.
        """
        if not self.parser.should_keep_alive():
            self.parser = None  # type: ignore[assignment] # uvicorn's own way to say that nothing is read
            return
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()  # here, not at any byte: only a request keeps a connection open
        self._in_head, self._head_bytes, self._pieces = True, 0, 0
        self._set_head_alarm()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: RFC 9110 §6.5.1 lets nobody take one for a header that was not made for it
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse(HeadTooLarge(f"The request has more than {MAX_HEADERS} headers."))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unset_keepalive_if_required()
        self._end_head_alarm()
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge())
        if any(name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self.headers):
            self._refuse(UnsupportedEncoding())
        if self.parser.should_upgrade() and any(name == b"transfer-encoding" for name, _ in self.headers):
            self._refuse(UnsupportedEncoding("A chunked body can't come with an Upgrade."))
        self._body_left = int(dict(self.headers).get(b"content-length", b"0"))
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._body_left:  # else the parser only gave up, at an offer to upgrade
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """As uvicorn does it, but for the copies: one piece at a time goes to the application as it is."""
        if self._body_left:
            self._body_left -= len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        self._pieces += not cycle.body
        cycle.body = _joined(cycle.body, body)  # type: ignore[assignment] # is only measured, and made bytes
        if self._pieces <= reads.STARTING_PIECES or len(cycle.body) >= HIGH_WATER_LIMIT:
            self.flow.pause_reading()
            self._watch()
        cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """Where uvicorn ends up whenever the parser stops; ``_refusal`` is there when we stopped it."""
        self._answer(self._refusal or MalformedRequest("The request is no proper HTTP/1.1.", log=msg))

    def _count(self, size: int) -> None:
        """A head that is still not over; the parser holds what it has of it."""
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._answer(HeadTooLarge())

    def _refuse(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise httptools.HttpParserError(refusal.code)

    def _set_head_alarm(self) -> None:
        if self._head_alarm is None:
            self._head_alarm = self.loop.call_later(self.head_seconds, self._head_is_late)

    def _end_head_alarm(self) -> None:
        if self._head_alarm is not None:
            self._head_alarm.cancel()
            self._head_alarm = None

    def _end_write_alarm(self) -> None:
        if self._write_alarm is not None:
            self._write_alarm.cancel()
            self._write_alarm = None

    def _head_is_late(self) -> None:
        self._head_alarm = None
        if self._lingered is None and not self.transport.is_closing():
            self._answer(ClientTooSlow("The request's head did not come in time.", log="slow head"))

    def _answer(self, refusal: Refusal) -> None:
        """Say why, unless an answer is under way already, and close: what follows can't be trusted.

        What is still being sent is thrown away for a moment first: a client that is reset while it sends
        never reads the answer. A request before it that came whole is answered first.
        """
        if self._owes_an_answer():
            self._postponed = self._postponed or refusal
            self._end_head_alarm()
            self.flow.pause_reading()
            return
        event = events.Event(status=refusal.status, code=refusal.code, log=refusal.log)
        event.client_ip = self.client[0] if self.client else None
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(self._rendered(refusal, event.request_id))
        self._end_head_alarm()
        self._leave_request()
        self._lingered = 0
        self.flow.resume_reading()  # or nothing is thrown away, and not even the client's leaving is seen
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
        logs.request_ended(event)

    def _owes_an_answer(self) -> bool:
        """Whether a request that came whole waits for its answer; RFC 9112 §9.3.2 keeps the order."""
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()  # the one that broke off, behind others
            return True
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _leave_request(self) -> None:
        """To the application it is as if the client had left."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _watch(self) -> None:
        """Look now and then whether the client is still there; while nothing is read, nobody tells."""
        if self._look_alarm is None:
            self._look_alarm = self.loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._look_alarm = None
        if not self.flow.read_paused or self.transport.is_closing() or self.cycle.response_complete:
            return
        if not _has_left(self.transport):
            self._watch()
            return
        self._tell_of_leaving()
        self.transport.abort()

    def _tell_of_leaving(self) -> None:
        """Tell whoever serves the request, though it reads nothing now."""
        if self.cycle is None or self.cycle.response_complete:
            return
        if client_left := self.cycle.scope["state"].get("client_left"):
            client_left()

    def _end_look_alarm(self) -> None:
        if self._look_alarm is not None:
            self._look_alarm.cancel()
            self._look_alarm = None

    def _linger(self, size: int) -> None:
        self._lingered = (self._lingered or 0) + size
        if self._lingered > LINGER_BYTES:
            self.transport.close()

    def eof_received(self) -> None:
        if self._lingered is not None:
            self.transport.close()

    def _rendered(self, refusal: Refusal, request_id: str) -> bytes:
        content, headers = rendered(refusal, getattr(self, "url", b"").decode("latin-1"), request_id)
        body = json.dumps(content).encode()
        headers |= {"Content-Length": str(len(body)), "Connection": "close", "X-Request-Id": request_id}
        lines = [f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in (headers | self._cors_headers()).items()]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

    def _cors_headers(self) -> dict[str, str]:
        origin = dict(self.headers or ()).get(b"origin", b"").decode("latin-1")
        if origin not in self.allowed_origins:
            return {"Vary": "Origin"}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": self.exposed_headers,
            "Vary": "Origin",
        }


def _has_left(transport: asyncio.Transport) -> bool:
    """Whether the client ended the connection, though what it sent before was not read; on Linux alone."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:
        return False
    return info[0] in _GONE


def _joined(held: bytes | bytearray, more: bytes) -> bytes | bytearray:
    """A piece alone stays as it is; those that nobody has asked for yet grow in one place."""
    if not held:
        return more
    grown = held if isinstance(held, bytearray) else bytearray(held)
    grown += more
    return grown
