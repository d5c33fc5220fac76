"""The body that goes to Coze: the file as it comes in, counted, hashed and limited on the way."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing

from broker.errors import DigestMismatch, MalformedMultipart
from broker.observe import events
from broker.transfer.incoming import IncomingFile
from broker.transfer.multipart import Envelope
from broker.transfer.pace import Pace
from broker.transfer.policy import too_large
from broker.transfer.scanned import Scan, scanned

Sent = events.Sent
BeforeEnd = Callable[[str], Awaitable[None]]
"""Called with the file's SHA-256, in hex, before the last piece goes out; may still refuse."""


class OutgoingBody:
    """Iterated over once, by the HTTP client. Afterwards it tells how far it got, and why it stopped.

    The client may turn an error from in here into one of its own; ``failure`` keeps the real one.
    """

    def __init__(
        self,
        file: IncomingFile,
        envelope: Envelope,
        pace: Pace,
        *,
        max_bytes: int,
        sha256: str | None = None,
        before_end: BeforeEnd | None = None,
        scan: Scan | None = None,
    ) -> None:
        self._file = file
        self._envelope = envelope
        self._pace = pace
        self._max_bytes = max_bytes
        self._announced_sha256 = sha256
        self._before_end = before_end
        self._scan = scan
        self._hash = hashlib.sha256()
        self._event = events.current()
        self._event.sent = None
        self.file_bytes = 0
        self.failure: BaseException | None = None

    @property
    def sent(self) -> Sent:
        """How much was handed to the client. Kept in the request's record, for whoever ends the request."""
        return self._event.sent or "nothing"

    @sent.setter
    def sent(self, sent: Sent) -> None:
        self._event.sent = sent

    @property
    def content_length(self) -> int | None:
        """What the body will have, to the byte; None when it can't be known beforehand."""
        room = self._file.room_bytes
        return None if room is None else len(self._envelope.head) + room + len(self._envelope.closing)

    @property
    def sha256(self) -> str:
        """The digest of what was read of the file so far, in hex."""
        return self._hash.hexdigest()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            self.sent = "part"
            self._pace.wait_for("upstream")
            yield self._envelope.head
            self._pace.wait_for("client")
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    self._pace.wait_for("upstream")
                    yield piece
                    self._pace.wait_for("client")
            end = self._envelope.end(self._padding_bytes())
            await self._announce_end()
            # Said before it is true: should this last piece get lost, nobody can tell whether Coze had it.
            self.sent = "all"
            self._pace.wait_for("answer")
            yield end
            self._pace.wait_for("answer")
        except BaseException as error:
            self.failure = error
            raise

    def _pieces(self) -> AsyncGenerator[bytes]:
        """The file, past the scan where there is one."""
        return scanned(self._metered(), self._scan, self._pace) if self._scan else self._metered()

    async def _metered(self) -> AsyncGenerator[bytes]:
        async for piece in self._file:
            self._meter(piece)
            yield piece

    async def _announce_end(self) -> None:
        if self._scan:
            self._event.scanned = True
        if self._before_end:
            self._pace.wait_for("store")
            await self._before_end(self.sha256)

    def _meter(self, piece: bytes) -> None:
        self.file_bytes += len(piece)
        self._event.bytes_received = self.file_bytes
        if self.file_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        self._hash.update(piece)

    def _padding_bytes(self) -> int:
        """How much must follow the form to fill the promised length.

        The last chance to refuse: without the form's end, Coze has no file.
        """
        if self._announced_sha256 is not None and self._announced_sha256 != self.sha256:
            raise DigestMismatch
        room = self._file.room_bytes
        if room is None:
            return 0
        if room < self.file_bytes:
            raise MalformedMultipart(log="the form is longer than the request's Content-Length")
        return room - self.file_bytes
