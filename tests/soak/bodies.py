"""The bytes of an upload as they go over the wire, each manner in its way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from tests.soak.plan import BOUNDARY, Upload

PIECES_PER_SECOND = 10
TRICKLE_SECONDS = 0.2
MORE_BYTES, FEWER_BYTES = 1000, 5
MIDWAY = frozenset({"stalls", "leaves midway", "resets midway"})


class Leaves(Exception):
    """The client goes now: by FIN, by RST, or by saying that it has no more to say."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


def head(upload: Upload, credential: str) -> bytes:
    """The request's first line and headers."""
    headers = {
        "Host": "broker.test",
        "Authorization": f"Bearer {credential}",
        "Origin": upload.origin,
        **_type_of(upload),
        **_framing(upload),
    }
    lines = [f"POST {upload.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def body(upload: Upload) -> AsyncIterator[bytes]:
    """The body as this client sends it. Raises :class:`Leaves` where it goes."""
    sent, half = 0, _length(upload) // 2
    async for piece in _paced(upload):
        if upload.manner in MIDWAY and sent + len(piece) > half:
            yield _framed(upload, piece[: half - sent])
            break
        sent += len(piece)
        yield _framed(upload, piece)
    else:
        yield b"0\r\n\r\n" if upload.is_chunked else b""
    await _then(upload)


async def _then(upload: Upload) -> None:
    """What this client does once it has sent what it sends."""
    match upload.manner:
        case "stalls":
            await asyncio.Event().wait()
        case "leaves midway" | "leaves unanswered":
            raise Leaves("FIN")
        case "resets midway":
            raise Leaves("RST")
        case "promises more":
            raise Leaves("half-close")


async def _paced(upload: Upload) -> AsyncIterator[bytes]:
    """The pieces, as fast as they are taken or as slowly as this client is."""
    for piece in _pieces(upload):
        if upload.manner == "trickles":
            for place in range(len(piece)):
                yield piece[place : place + 1]
                await asyncio.sleep(TRICKLE_SECONDS)
        elif upload.bytes_per_second:
            step = max(upload.bytes_per_second // PIECES_PER_SECOND, 1)
            for place in range(0, len(piece), step):
                yield piece[place : place + step]
                await asyncio.sleep(1 / PIECES_PER_SECOND)
        else:
            yield piece


def _pieces(upload: Upload) -> Iterator[bytes]:
    if not upload.is_form:
        yield from upload.content()
        return
    before, after = _around(upload)
    yield before
    yield from upload.content()
    yield after


def _around(upload: Upload) -> tuple[bytes, bytes]:
    """What stands before and after the file in a form."""
    field = _part(b'name="purpose"', b"soak") if upload.has_fields else b""
    second = _part(b'name="file"; filename="second.csv"', b"x") if upload.manner == "brings two" else b""
    file = _part(b'name="file"; filename="%b"' % upload.file_name.encode(), b"")[:-2]
    return field + file, b"\r\n" + second + field + b"--%b--\r\n" % BOUNDARY


def _part(named: bytes, content: bytes) -> bytes:
    return b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (BOUNDARY, named, content)


def _framed(upload: Upload, piece: bytes) -> bytes:
    """As a chunk (RFC 9112 §7.1) where there is no length; an empty one would be the end."""
    return b"%x\r\n%b\r\n" % (len(piece), piece) if upload.is_chunked and piece else piece


def _length(upload: Upload) -> int:
    return upload.size + (sum(map(len, _around(upload))) if upload.is_form else 0)


def _framing(upload: Upload) -> dict[str, str]:
    if upload.is_chunked:
        return {"Transfer-Encoding": "chunked"}
    lie = {"promises more": MORE_BYTES, "promises less": -FEWER_BYTES}.get(upload.manner, 0)
    return {"Content-Length": str(_length(upload) + lie)}


def _type_of(upload: Upload) -> dict[str, str]:
    if upload.is_form:
        return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
    name = upload.file_name.replace(chr(7), "%07")
    return {"Content-Type": "text/csv", "Content-Disposition": f"attachment; filename*=UTF-8''{name}"}
