"""A body's way through the broker without a socket: ``open_file``, ``IncomingFile``, ``OutgoingBody``."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from starlette.datastructures import Headers

from broker.errors import Refusal
from broker.transfer import filenames
from broker.transfer.incoming import open_file
from broker.transfer.multipart import Envelope, FormReader, boundary_of
from broker.transfer.outgoing import OutgoingBody
from broker.transfer.pace import Pace, Patience

FOREVER = Patience(client=60, slot=60, store=60, credential=60, connection=60, upstream=60, answer=60)
MAX_BYTES = 1_000_000
LOOKS_ESCAPED = re.compile("%(22|0D|0A)", re.IGNORECASE)
"""A form can't tell these from what browsers write for a quote and line ends (WHATWG HTML)."""


@dataclass(frozen=True)
class Sent:
    """A file that went to Coze, as the caller is told of it."""

    file_name: str
    content_type: str
    content: bytes
    sha256: str


@dataclass(frozen=True)
class _Form:
    """The same file as it stands in the form that went out."""

    file_name: str
    content_type: str
    body: bytes


Outcome = Sent | type[Refusal]


async def passed(pieces: Iterable[bytes], headers: dict[str, str], *, max_bytes: int = MAX_BYTES) -> Outcome:
    """What becomes of a body that comes in these pieces: the file that Coze finds, or the refusal's class.

    Fails when what goes out is not one form around one file, of the length that was promised for it.
    """
    try:
        sent_type, sha256, form = await _passed(pieces, headers, max_bytes)
    except Refusal as refusal:
        return type(refusal)
    return Sent(form.file_name, sent_type, _only_file(form), sha256)


async def _passed(pieces: Iterable[bytes], headers: dict[str, str], max_bytes: int) -> tuple[str, str, _Form]:
    file = await open_file(Headers(headers), _stream(pieces), max_bytes=max_bytes)
    envelope = Envelope.around(file.file_name, filenames.content_type_of(file.file_name))
    outgoing = OutgoingBody(file, envelope, Pace(FOREVER), max_bytes=max_bytes)
    promised = outgoing.content_length
    body = b"".join([piece async for piece in outgoing])
    assert promised in (None, len(body))
    return file.content_type, outgoing.sha256, _Form(file.file_name, envelope.content_type, body)


def _only_file(form: _Form) -> bytes:
    """What a reader of the form finds. Fails when that is anything but this one file."""
    boundary = boundary_of(form.content_type)
    assert form.body.count(b"--" + boundary) == 2
    if LOOKS_ESCAPED.search(form.file_name):
        return form.body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--" + boundary)[0]
    reader = FormReader(boundary)
    content = b"".join(reader.feed(form.body))
    reader.close()
    assert reader.file is not None
    assert reader.file.file_name == form.file_name
    return content


def cut(body: bytes, sizes: Iterable[int]) -> list[bytes]:
    """The body in pieces of these sizes, and its rest in one."""
    ends = [*accumulate(sizes), len(body)]
    return [body[start:end] for start, end in pairwise([0, *ends])]


async def _stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        if piece:
            yield piece
