"""Completion tokens: what a page shows to get a receipt for a file that it sent straight to Coze.

A JWT (``typ: complete+jwt``) that says which file was announced, by whom; it uploads nothing. Opens no
socket; gets the clock.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.auth.signed_claims import SignedClaims
from broker.auth.signing_keys import KeyRing

TYP = "complete+jwt"
AUDIENCE = "coze-upload-broker/complete"


@dataclass(frozen=True)
class CompletionToken:
    """The upload that a token is about. Times are Unix seconds; ``None`` means that it was not told."""

    upload_id: str
    subject: str
    key_id: str
    issued_at: int
    expires_at: int
    size: int
    file_name: str | None = None
    origin: str | None = None


class CompletionTokens:
    """Makes tokens and reads them back."""

    def __init__(self, ring: KeyRing, issuer: str, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._signed = SignedClaims(
            ring,
            issuer,
            now,
            kind="completion token",
            typ=TYP,
            fixed={"aud": AUDIENCE},
            times=("iat", "exp"),
        )

    def mint(
        self,
        *,
        subject: str,
        key_id: str,
        expires_at: int,
        size: int,
        file_name: str | None = None,
        origin: str | None = None,
    ) -> tuple[str, CompletionToken]:
        """A fresh token for a file of ``size`` bytes, as text and as what it says."""
        token = CompletionToken(
            upload_id=secrets.token_urlsafe(16),
            subject=subject,
            key_id=key_id,
            issued_at=int(self._now()),
            expires_at=expires_at,
            size=size,
            file_name=file_name,
            origin=origin,
        )
        return self._signed.sign(_claims(token)), token

    def verify(self, text: str) -> CompletionToken:
        """What a token says.

        Raises :class:`InvalidCredential`, or :class:`ExpiredCredential` when it only came too late.
        """
        return _token(self._signed.read(text))


def _claims(token: CompletionToken) -> dict[str, Any]:
    return {
        "jti": token.upload_id,
        "sub": token.subject,
        "iat": token.issued_at,
        "exp": token.expires_at,
        "bytes": token.size,
        "file_name": token.file_name,
        "origin": token.origin,
        "key_id": token.key_id,
    }


def _token(claims: dict[str, Any]) -> CompletionToken:
    """Our signature vouches for the claims' types."""
    return CompletionToken(
        upload_id=claims["jti"],
        subject=claims["sub"],
        key_id=claims["key_id"],
        issued_at=claims["iat"],
        expires_at=claims["exp"],
        size=claims["bytes"],
        file_name=claims.get("file_name"),
        origin=claims.get("origin"),
    )
