"""The ring of Ed25519 keys that the broker signs its own tokens with.

The newest key signs and all of them verify, so a key can be replaced without refusing what is under
way. The algorithm belongs to the key: a token's header chooses among our keys by ``kid`` and nothing
else (RFC 8725 §3.1, §3.10).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.auth.secrets_on_disk import read_or_make
from broker.errors import InvalidCredential

ALGORITHM = "EdDSA"
PEM_BLOCK = re.compile(rb"-----BEGIN PRIVATE KEY-----.+?-----END PRIVATE KEY-----", re.DOTALL)


@dataclass(frozen=True)
class SigningKey:
    """One key and the name it goes by: its RFC 7638 thumbprint."""

    kid: str
    private_key: Ed25519PrivateKey

    @classmethod
    def from_private_key(cls, private_key: Ed25519PrivateKey) -> Self:
        """Name a key by what it is, so that every process gives it the same name."""
        members = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": _x(private_key)}, separators=(",", ":"))
        return cls(kid=_base64url(hashlib.sha256(members.encode()).digest()), private_key=private_key)

    @property
    def jwk(self) -> dict[str, str]:
        """The public half, as RFC 8037 writes it."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": _x(self.private_key),
            "kid": self.kid,
            "use": "sig",
            "alg": ALGORITHM,
        }

    def __repr__(self) -> str:
        return f"SigningKey({self.kid!r})"


class KeyRing:
    """Signs with its first key, verifies with any."""

    def __init__(self, keys: list[SigningKey]) -> None:
        if not keys:
            raise ValueError("a key ring needs a key")
        self._signer = keys[0]
        self._keys = {key.kid: key for key in keys}
        self._public = {key.kid: key.private_key.public_key() for key in keys}

    def sign(self, claims: dict[str, Any], *, typ: str) -> str:
        """A JWT with these claims and this ``typ``."""
        return jwt.encode(
            claims,
            self._signer.private_key,
            algorithm=ALGORITHM,
            headers={"typ": typ, "kid": self._signer.kid},
        )

    def claims_of(self, token: str, *, typ: str) -> dict[str, Any]:
        """The claims of a JWT that one of our keys signed as this ``typ``; times are not looked at.

        Raises :class:`InvalidCredential` for anything else.
        """
        try:
            header = jwt.get_unverified_header(token)
            if header.get("typ") != typ or header.get("kid") not in self._public:
                raise InvalidCredential(log="token of another typ, or signed by a key that is not ours")
            return jwt.decode(
                token, self._public[header["kid"]], algorithms=[ALGORITHM], options=_SIGNATURE_ONLY
            )
        except (jwt.InvalidTokenError, TypeError, ValueError) as error:
            raise InvalidCredential(log=f"token: {type(error).__name__}") from error

    @property
    def jwks(self) -> dict[str, Any]:
        """The public keys (RFC 7517), for whoever verifies a receipt."""
        return {"keys": [key.jwk for key in self._keys.values()]}


# Times, audience and issuer are judged by the rules of each kind of token, with the clock they are given.
_SIGNATURE_ONLY: Any = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


def load(pem: str | None, data_dir: Path) -> KeyRing:
    """The ring from PEM text, or from ``signing-keys.pem`` in the data folder, made there when missing.

    Raises ``ValueError`` when a block is no Ed25519 key.
    """
    text = (
        pem.replace("\\n", "\n").encode() if pem else read_or_make(data_dir / "signing-keys.pem", _fresh_pem)
    )
    blocks = PEM_BLOCK.findall(text)
    return KeyRing([SigningKey.from_private_key(_parse(block)) for block in blocks])


def _parse(block: bytes) -> Ed25519PrivateKey:
    key = serialization.load_pem_private_key(block, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("a signing key is not an Ed25519 key")  # noqa: TRY004 - a bad value in a file
    return key


def _fresh_pem() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _x(key: Ed25519PrivateKey) -> str:
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return _base64url(raw)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
