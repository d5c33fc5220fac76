"""The body of a signed request: it is what was signed, or nothing comes of it (RFC 9530, RFC 9421 §7.2.8)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from typing import Any

import http_sf

from broker.errors import InvalidSignature

SHA256 = "sha-256"
SHA256_BYTES = 32
MAX_REST_BYTES = 65_536
"""What may follow a form's end."""


def sha256_of(content_digest: str) -> bytes:
    """The SHA-256 that a ``Content-Digest`` names; other algorithms are passed over.

    Raises :class:`InvalidSignature` when there is none, or the header can't be read.
    """
    try:
        members: Any = http_sf.parse(content_digest.encode(), tltype="dictionary")
        digest = members[SHA256][0]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidSignature(log=f"no sha-256 in Content-Digest: {type(error).__name__}") from error
    if not isinstance(digest, bytes) or len(digest) != SHA256_BYTES:
        raise InvalidSignature(log="the sha-256 in Content-Digest is no SHA-256")
    return digest


def check_body(content: bytes, sha256: bytes) -> None:
    """Hold a whole body against its digest. Raises :class:`InvalidSignature`."""
    _check(hashlib.sha256(content).digest(), sha256)


class BodyDigest:
    """Passes the pieces of a body on, the last one only when the whole is what was signed.

    A form may end before its body does: whoever stops reading there calls ``finish`` before anything
    that can't be taken back.
    """

    def __init__(self, pieces: AsyncIterator[bytes], sha256: bytes) -> None:
        self._pieces = pieces
        self._sha256 = sha256
        self._hash = hashlib.sha256()
        self._held: bytes | None = None
        self._at_end = False

    def __aiter__(self) -> BodyDigest:
        return self

    async def __anext__(self) -> bytes:
        """The next piece. Raises :class:`InvalidSignature` in the place of the last one."""
        while not self._at_end:
            piece, self._held = self._held, await self._next()
            if piece is not None:
                return piece
        raise StopAsyncIteration

    async def finish(self) -> None:
        """Read what is left, and judge the whole. Raises :class:`InvalidSignature`."""
        rest_bytes = 0
        async for piece in self:
            rest_bytes += len(piece)
            if rest_bytes > MAX_REST_BYTES:
                raise InvalidSignature(log=f"more than {MAX_REST_BYTES} bytes after the file")
        _check(self._hash.digest(), self._sha256)

    async def _next(self) -> bytes | None:
        piece = await anext(self._pieces, None)
        if piece is None:
            self._at_end = True
            _check(self._hash.digest(), self._sha256)
        else:
            self._hash.update(piece)
        return piece


def _check(digest: bytes, sha256: bytes) -> None:
    if not hmac.compare_digest(digest, sha256):
        raise InvalidSignature(
            "The body is not the one that Content-Digest was signed for. Nothing was stored.",
            log="the body's SHA-256 is another than the signed one",
        )
