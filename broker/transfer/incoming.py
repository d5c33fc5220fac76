"""The file that comes in: out of a form, or as the bare body of the request."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from starlette.datastructures import Headers

from broker.errors import BadFileName, EmptyFile, MalformedRequest, UnsupportedMediaType
from broker.transfer import filenames
from broker.transfer.multipart import MAX_OTHER_BYTES, FormReader, boundary_of, media_type, options
from broker.transfer.policy import too_large
from broker.transfer.sniffing import HEAD_BYTES, declared_type

FORM = "multipart/form-data"
NOT_A_FILE = ("application/x-www-form-urlencoded", "multipart/mixed", "multipart/related")


class IncomingFile:
    """One file on its way in. ``open_file`` makes it; iterate over it once for its bytes.

    ``room_bytes`` is what the file needs upstream, known when the request's length is: the file's
    size, and for a form whatever stands after it that will be filled up. ``None`` when unknown.
    ``head`` is what it begins with: its first 4,096 bytes, or the whole of it.
    """

    def __init__(
        self, body: AsyncIterator[bytes], reader: FormReader | None, content_length: int | None
    ) -> None:
        self.file_name = ""
        self.content_type = ""
        self.room_bytes = content_length
        self._body_bytes = content_length
        self.head = b""
        self._body = body
        self._reader = reader
        self._ready: deque[bytes] = deque()
        self._read_bytes = 0
        self.kept: tuple[bytes, ...] = ()
        """The whole file, once ``keep`` has read it; nothing of a file that is too large for that."""
        self._was_begun = False
        self._whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._was_begun = True
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self._whole:
                return
            await self._read()

    async def read_ahead(self) -> None:
        """Read until the file's head is there, and its name with it.

        Raises a refusal of the 400 family; :class:`EmptyFile` when there is no first byte.
        """
        while len(self.head) < HEAD_BYTES and not self._whole:
            await self._read()
        self._check_end()
        if not self._ready:
            raise EmptyFile
        if (
            not self._whole
            and self._reader
            and self._reader.head_bytes is not None
            and self.room_bytes is not None
        ):
            self.room_bytes -= self._reader.head_bytes + self._reader.closing_bytes

    async def keep(self, max_bytes: int) -> None:
        """Read a file of no more than ``max_bytes`` to its end and keep it, so that it can be sent again.

        Raises as ``read_ahead`` does.
        """
        if self.room_bytes is not None and self.room_bytes > max_bytes:
            return
        while not self._whole and self._read_bytes <= max_bytes:
            await self._read()
        self._check_end()
        if self._whole:
            self.kept = tuple(self._ready)

    def start_over(self) -> bool:
        """Make the next iteration begin at the first byte; False when it is gone."""
        if self.kept:
            self._ready = deque(self.kept)
            self._was_begun = False
        return not self._was_begun

    def _check_end(self) -> None:
        """Once all was read, it must have been a whole form, and the length is known for certain."""
        if not self._whole:
            return
        if self._reader:
            self._reader.close()
        self.room_bytes = self._read_bytes

    @property
    def least_bytes(self) -> int | None:
        """What the file has at least; of a form it is not known before its end, fields may follow."""
        return self.room_bytes if self._whole or self._reader is None else None

    async def _read(self) -> None:
        chunk = await anext(self._body, b"")
        if self._reader is None:
            self._take([chunk] if chunk else [], ended=not chunk)
        elif chunk:
            self._take(self._reader.feed(chunk), ended=self._reader.ended)
            if self._whole and self._body_bytes is not None:  # the rest is not read, but filled up upstream
                self._reader.check_other_bytes(self._body_bytes)
        else:
            self._reader.close()
            self._take([], ended=True)

    def _take(self, pieces: list[bytes], *, ended: bool) -> None:
        for piece in pieces:
            self._read_bytes += len(piece)
            if len(self.head) < HEAD_BYTES:
                self.head += piece[: HEAD_BYTES - len(self.head)]
        self._ready.extend(pieces)
        self._whole = ended


async def open_file(
    headers: Headers, body: AsyncIterator[bytes], *, max_bytes: int, forms_only: bool = False
) -> IncomingFile:
    """The file of a request, read as far as its head.

    With ``forms_only`` a bare file is refused. ``max_bytes`` is held against the request's own length
    here; real bytes are counted elsewhere.
    Raises a refusal of the 400 family, 413 or 415.
    """
    length = _content_length(headers)
    content_type = headers.get("content-type", "")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the file as it is, without a Content-Encoding.")
    is_form = media_type(content_type) == FORM
    if forms_only and not is_form:
        raise UnsupportedMediaType(f"Send {FORM} with a part named 'file'.")
    if length is not None and length > max_bytes + (MAX_OTHER_BYTES if is_form else 0):
        raise too_large(max_bytes)
    file = await (_from_form if is_form else _bare)(headers, body, length)
    if file.least_bytes is not None and file.least_bytes > max_bytes:
        raise too_large(max_bytes)
    return file


async def _from_form(headers: Headers, body: AsyncIterator[bytes], length: int | None) -> IncomingFile:
    reader = FormReader(boundary_of(headers["content-type"]))
    file = IncomingFile(body, reader, length)
    await file.read_ahead()
    assert reader.file is not None  # noqa: S101 - read_ahead returns only once it has the file's first byte
    file.file_name, file.content_type = reader.file.file_name, reader.file.content_type
    return file


async def _bare(headers: Headers, body: AsyncIterator[bytes], length: int | None) -> IncomingFile:
    file = IncomingFile(body, None, length)
    file.content_type = declared_type(headers.get("content-type", ""))
    if file.content_type in NOT_A_FILE:
        raise UnsupportedMediaType(
            "Send multipart/form-data with a part named 'file', or the bare file with its own Content-Type."
        )
    file.file_name = _bare_name(headers, file.content_type)
    await file.read_ahead()
    return file


def _bare_name(headers: Headers, content_type: str) -> str:
    _, parameters = options(headers.get("content-disposition", ""))
    name = filenames.from_parameters(parameters) or filenames.for_content_type(content_type)
    if name is None:
        raise BadFileName(
            "The file has no name. Send Content-Disposition: attachment; filename*=UTF-8''name.ext"
        )
    return name


def _content_length(headers: Headers) -> int | None:
    """The request's length. The server refused anything but digits already; it is checked all the same."""
    value = headers.get("content-length")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()) or len(value) > 18:  # noqa: PLR2004 - no file has 10^18 bytes
        raise MalformedRequest("The Content-Length is not a whole number of bytes.")
    return int(value)
