"""Forms: whatever a body is and however it is cut, it has one outcome.

An input's first line says how the body is cut: each byte is the size of a piece, over and over. The rest
is the body.
"""

from __future__ import annotations

import asyncio
from itertools import cycle, islice

from broker.transfer.multipart import FormReader
from tests.support.passage import Sent, cut, passed

BOUNDARY = "b"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def check(data: bytes) -> None:
    """Fails when an outcome depends on the cut, or anything but a refusal comes out."""
    sizes, _, body = data.partition(b"\n")
    asyncio.run(_check(body, cut(body, islice(cycle(sizes), len(body)))))


async def _check(body: bytes, pieces: list[bytes]) -> None:
    whole = await passed(cut(body, []), HEADERS)
    with_length = HEADERS | {"Content-Length": str(len(body))}
    assert await passed(cut(body, []), with_length) == whole
    assert await passed(pieces, HEADERS) == whole
    assert await passed(pieces, with_length) == whole
    if isinstance(whole, Sent):
        assert whole.content in body
        assert _steps(pieces) <= 3 * len(pieces)


def _steps(pieces: list[bytes]) -> int:
    """In how many pieces the file comes out."""
    reader = FormReader(BOUNDARY.encode())
    return sum(len(reader.feed(piece)) for piece in pieces)
