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

from broker.auth.signing_keys import KeyRing
from broker.errors import ExpiredCredential, InvalidCredential

TYP = "complete+jwt"
AUDIENCE = "coze-upload-broker/complete"
LEEWAY_SECONDS = 5


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
        self._ring = ring
        self._issuer = issuer
        self._now = now

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
        return self._ring.sign(_claims(token, self._issuer), typ=TYP), token

    def verify(self, text: str) -> CompletionToken:
        """What a token says.

        Raises :class:`InvalidCredential`, or :class:`ExpiredCredential` when it only came too late.
        """
        claims = self._ring.claims_of(text, typ=TYP)
        if claims.get("aud") != AUDIENCE or claims.get("iss") != self._issuer:
            raise InvalidCredential(log="completion token for another audience, or from another issuer")
        self._check_times(claims)
        return _token(claims)

    def _check_times(self, claims: dict[str, Any]) -> None:
        now = self._now()
        for name in ("iat", "exp"):
            if type(claims.get(name)) is not int:
                raise InvalidCredential(log=f"completion token without a whole number for {name}")
        if claims["iat"] > now + LEEWAY_SECONDS:
            raise InvalidCredential(log="completion token from the future")
        if claims["exp"] <= now - LEEWAY_SECONDS:
            raise ExpiredCredential(log="completion token has expired")


def _claims(token: CompletionToken, issuer: str) -> dict[str, Any]:
    claims = {
        "iss": issuer,
        "aud": AUDIENCE,
        "jti": token.upload_id,
        "sub": token.subject,
        "iat": token.issued_at,
        "exp": token.expires_at,
        "bytes": token.size,
        "file_name": token.file_name,
        "origin": token.origin,
        "key_id": token.key_id,
    }
    return {name: value for name, value in claims.items() if value is not None}


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
