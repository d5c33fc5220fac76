"""Tokens: nothing is taken for one of ours but what our ring signed as one, byte for byte."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.auth import receipts
from broker.auth.signing_keys import KeyRing, SigningKey
from broker.auth.upload_tokens import TYP, UploadToken, UploadTokens
from broker.errors import ExpiredCredential, InvalidCredential

ISSUER = "https://uploads.example.com"
NOW = 1_800_000_000
OURS, OLDER, FOREIGN = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3))
KEYS = [SigningKey.from_private_key(key) for key in (OURS, OLDER)]
RING = KeyRing(KEYS)
VERIFIER = UploadTokens(RING, ISSUER, now=lambda: NOW)
GRANT = {
    "iss": ISSUER,
    "aud": "coze-upload-broker/upload",
    "sub": "user-42",
    "jti": "nobody-guesses-this",
    "iat": NOW,
    "nbf": NOW,
    "exp": NOW + 120,
    "finish_by": NOW + 3720,
    "scope": "files:upload",
    "max_bytes": 1_000_000,
    "key_id": "k1",
}
SIGNED = {
    ring.sign(GRANT | more, typ=TYP).rpartition(".")[0]
    for ring in (RING, KeyRing(KEYS[::-1]))
    for more in ({}, {"origin": "https://app.example.com"}, {"content_types": ["text/csv"]})
}
"""What was signed: the only tokens that may ever pass."""


def check(data: bytes) -> None:
    """Fails when a text passes that is no token of ours, or is refused by anything but a refusal."""
    text = data.decode("latin-1")
    if _verified(text):
        assert text.rpartition(".")[0] in SIGNED
    head, _, rest = text.partition(".")
    claims = rest.partition(".")[0]
    for forged in _forgeries(f"{head}.{claims}"):
        assert not _verified(forged)
    _check_receipt(claims)


def _verified(text: str) -> UploadToken | None:
    try:
        return VERIFIER.verify(text)
    except (InvalidCredential, ExpiredCredential):
        return None


def _forgeries(signed: str) -> list[str]:
    """The same head and claims, signed by whoever has no key of ours."""
    content = signed.encode("latin-1")
    public = OURS.public_key()
    secrets = (
        public.public_bytes(Encoding.Raw, PublicFormat.Raw),
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        b"",
    )
    signatures = [
        b"",
        FOREIGN.sign(content),
        *(hmac.digest(secret, content, hashlib.sha256) for secret in secrets),
    ]
    return [f"{signed}.{encoded(signature)}" for signature in signatures]


def _check_receipt(claims: str) -> None:
    """What our ring signed as something else is no token, whatever it claims."""
    try:
        said = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    except (ValueError, RecursionError):
        return
    if isinstance(said, dict):
        assert not _verified(_signed_receipt(said))


def _signed_receipt(claims: dict[str, Any]) -> str:
    text = json.dumps(claims).encode("utf-8", "surrogatepass")
    head = json.dumps({"alg": "EdDSA", "typ": receipts.TYP, "kid": KEYS[0].kid}).encode()
    content = f"{encoded(head)}.{encoded(text)}"
    return f"{content}.{encoded(OURS.sign(content.encode()))}"


def encoded(data: bytes) -> str:
    """Base64 for URLs without padding, as JWTs have it (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
