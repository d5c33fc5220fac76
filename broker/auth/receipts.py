"""Receipts: the broker's word that Coze stored a file, for an app that hears of it through a browser."""

from __future__ import annotations

from broker.auth.signing_keys import KeyRing

TYP = "receipt+jwt"
AUDIENCE = "coze-upload-broker/receipt"


class Receipts:
    """Signs receipts; anyone can verify them with ``/.well-known/jwks.json``."""

    def __init__(self, ring: KeyRing, issuer: str) -> None:
        self._ring = ring
        self._issuer = issuer

    def sign(
        self,
        *,
        file_id: str,
        file_name: str,
        size: int,
        sha256: str | None,
        subject: str | None,
        route: str,
        issued_at: int,
    ) -> str:
        """A JWT (``typ: receipt+jwt``) that says which file of which bytes came from whom, by which route.

        The same values give the same text (Ed25519, RFC 8032): a repeated answer has the same receipt.
        ``issued_at`` in Unix seconds. Without ``sha256`` for a file whose bytes the broker did not see.
        """
        claims = {
            "iss": self._issuer,
            "aud": AUDIENCE,
            "iat": issued_at,
            "file_id": file_id,
            "file_name": file_name,
            "bytes": size,
            "sha256": sha256,
            "route": route,
            "sub": subject,
        }
        return self._ring.sign({name: value for name, value in claims.items() if value is not None}, typ=TYP)
