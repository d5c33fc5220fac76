"""Signing requests to the broker, so that the key itself is never sent (RFC 9421, ``hmac-sha256``)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import AsyncGenerator, Generator
from io import BufferedReader

import httpx

NONCE_BYTES = 16
ALSO_SIGNED = ("content-type", "content-disposition", "content-digest", "idempotency-key", "repr-digest")
"""Headers that are signed where they are there."""
_WORD = re.compile("[A-Za-z0-9_-]+")


class SignedAuth(httpx.Auth):
    """Signs every request of an httpx client with a key's signing secret (``cub_ss_…``).

    A body without a ``Content-Digest`` is read into memory for it; for a large one see :func:`file_digest`.
    """

    def __init__(self, key_id: str, signing_secret: str) -> None:
        self._key_id = key_id
        self._secret = signing_secret.encode(errors="surrogateescape")

    def __repr__(self) -> str:
        return f"SignedAuth({self._key_id!r})"

    @property
    def is_well_formed(self) -> bool:
        """Whether id and secret have no characters that none has; else no request can be signed."""
        return bool(_WORD.fullmatch(self._key_id) and _WORD.fullmatch(self._secret.decode("latin-1")))

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add ``Content-Digest``, ``Signature-Input`` and ``Signature``, fresh each time."""
        if "content-digest" not in request.headers and (content := request.read()):
            request.headers["Content-Digest"] = content_digest(hashlib.sha256(content).digest())
        covered = ["@method", "@path", "@query", *(name for name in ALSO_SIGNED if name in request.headers)]
        names = " ".join(f'"{name}"' for name in covered)
        nonce = secrets.token_urlsafe(NONCE_BYTES)
        parameters = f'({names});created={int(time.time())};keyid="{self._key_id}";nonce="{nonce}"'
        lines = [f'"{name}": {_value(request, name)}' for name in covered]
        base = "\n".join([*lines, f'"@signature-params": {parameters}'])
        signature = hmac.digest(self._secret, base.encode("ascii"), "sha256")
        request.headers["Signature-Input"] = f"broker={parameters}"
        request.headers["Signature"] = f"broker=:{base64.b64encode(signature).decode()}:"
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """The same for an asynchronous client, whose bodies are read otherwise."""
        if "content-digest" not in request.headers:
            await request.aread()
        for signed in self.auth_flow(request):
            yield signed


def content_digest(sha256: bytes) -> str:
    """The value of ``Content-Digest`` (RFC 9530) for a body with this SHA-256."""
    return f"sha-256=:{base64.b64encode(sha256).decode()}:"


def file_digest(file: BufferedReader) -> str:
    """The value of ``Content-Digest`` for a body that is this open file; it is read, and rewound."""
    digest = hashlib.file_digest(file, "sha256").digest()
    file.seek(0)
    return content_digest(digest)


def _value(request: httpx.Request, name: str) -> str:
    """A component's value (RFC 9421 §2)."""
    path, _, query = request.url.raw_path.decode("ascii").partition("?")
    derived = {"@method": request.method, "@path": path, "@query": f"?{query}"}
    return derived[name] if name in derived else request.headers[name]
