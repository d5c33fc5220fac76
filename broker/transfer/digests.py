"""The digest that a caller announces for its file, in the header ``Repr-Digest`` (RFC 9530)."""

from __future__ import annotations

import base64
import binascii
import re

from broker.errors import DigestMismatch, InvalidRequest

SHA256_BYTES = 32
_SHA256 = re.compile(r"(?:\A|,)[ \t]*sha-256[ \t]*=[ \t]*([^,;]*)")
_BINARY = re.compile(r":([A-Za-z0-9+/]*={0,2}):[ \t]*")
"""A byte sequence of RFC 8941 §3.3.5."""


def announced_sha256(repr_digest: str | None, of_token: str | None) -> str | None:
    """The SHA-256 that the file must have, in hex: from the header's value, or from the token.

    Other algorithms are passed over, as RFC 9530 §2 lets a recipient do.
    Raises :class:`InvalidRequest` for a header that can't be read, :class:`DigestMismatch` when they differ.
    """
    of_header = None if repr_digest is None else _sha256(repr_digest)
    if of_header and of_token and of_header != of_token:
        raise DigestMismatch("Repr-Digest and the token name two different digests. Nothing was stored.")
    return of_header or of_token


def _sha256(repr_digest: str) -> str | None:
    member = _SHA256.search(repr_digest)
    if member is None:
        return None
    binary = _BINARY.fullmatch(member[1])
    digest = _decoded(binary[1]) if binary else b""
    if len(digest) != SHA256_BYTES:
        raise InvalidRequest("Repr-Digest can't be read. Write it as: sha-256=:<the digest in Base64>:")
    return digest.hex()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return b""
