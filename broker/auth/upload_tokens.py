"""Proxy tokens: what one says, how one is made, when one is refused. Opens no socket; gets the clock.

A token is a JWT (``typ: upload+jwt``) for one upload through this broker, or as many as its ``uses``, and
nothing else. ``exp`` is the last moment to *start*; ``finish_by`` the last moment to be done.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.auth.scopes import FILES_UPLOAD
from broker.auth.signed_claims import SignedClaims
from broker.auth.signing_keys import KeyRing

TYP = "upload+jwt"
AUDIENCE = "coze-upload-broker/upload"


@dataclass(frozen=True)
class UploadToken:
    """What a token grants. Times are Unix seconds; ``None`` means not bound."""

    jti: str
    subject: str
    key_id: str
    issued_at: int
    expires_at: int
    finish_by: int
    max_bytes: int
    content_types: tuple[str, ...] | None = None
    origin: str | None = None
    sha256: str | None = None
    sensitive: bool = False
    uses: int = 1
    """How many uploads it is good for."""
    epoch: str = ""
    """Of the store that knows how often it was used; another store can't tell."""


class UploadTokens:
    """Makes tokens and reads them back."""

    def __init__(self, ring: KeyRing, issuer: str, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._signed = SignedClaims(
            ring,
            issuer,
            now,
            kind="upload token",
            typ=TYP,
            fixed={"aud": AUDIENCE, "scope": FILES_UPLOAD},
            times=("iat", "nbf", "exp", "finish_by"),
        )

    def mint(
        self,
        *,
        subject: str,
        key_id: str,
        ttl_seconds: int,
        upload_max_seconds: int,
        max_bytes: int,
        content_types: tuple[str, ...] | None = None,
        origin: str | None = None,
        sha256: str | None = None,
        sensitive: bool = False,
        uses: int = 1,
        epoch: str = "",
    ) -> tuple[str, UploadToken]:
        """A fresh token, as text and as what it says."""
        now = int(self._now())
        token = UploadToken(
            jti=secrets.token_urlsafe(16),
            subject=subject,
            key_id=key_id,
            issued_at=now,
            expires_at=now + ttl_seconds,
            finish_by=now + ttl_seconds + upload_max_seconds,
            max_bytes=max_bytes,
            content_types=content_types,
            origin=origin,
            sha256=sha256,
            sensitive=sensitive,
            uses=uses,
            epoch=epoch,
        )
        return self._signed.sign(_claims(token)), token

    def verify(self, text: str) -> UploadToken:
        """What a token says.

        Raises :class:`InvalidCredential`, or :class:`ExpiredCredential` when it only came too late.
        """
        return _token(self._signed.read(text))


def _claims(token: UploadToken) -> dict[str, Any]:
    return {
        "sub": token.subject,
        "jti": token.jti,
        "iat": token.issued_at,
        "nbf": token.issued_at,
        "exp": token.expires_at,
        "finish_by": token.finish_by,
        "max_bytes": token.max_bytes,
        "content_types": token.content_types and list(token.content_types),
        "origin": token.origin,
        "sha256": token.sha256,
        "sensitive": token.sensitive or None,
        "uses": None if token.uses == 1 else token.uses,
        "epoch": token.epoch or None,
        "key_id": token.key_id,
    }


def _token(claims: dict[str, Any]) -> UploadToken:
    """Our signature vouches for the claims' types."""
    types = claims.get("content_types")
    return UploadToken(
        jti=claims["jti"],
        subject=claims["sub"],
        key_id=claims["key_id"],
        issued_at=claims["iat"],
        expires_at=claims["exp"],
        finish_by=claims["finish_by"],
        max_bytes=claims["max_bytes"],
        content_types=None if types is None else tuple(types),
        origin=claims.get("origin"),
        sha256=claims.get("sha256"),
        sensitive=claims.get("sensitive", False),
        uses=claims.get("uses", 1),
        epoch=claims.get("epoch", ""),
    )
