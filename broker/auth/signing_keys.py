"""The ring of Ed25519 keys that the broker signs its own tokens with.

The first private key signs and all keys verify, so a key can be replaced without refusing what is under
way. The algorithm belongs to the key: a token's header chooses among our keys by ``kid`` and nothing
else (RFC 8725 §3.1, §3.10).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from broker.auth.ring_file import RingFile
from broker.auth.secrets_on_disk import read_or_make
from broker.errors import InvalidCredential
from broker.settings import ed25519_keys
from broker.settings.ed25519_keys import Ed25519Key

ALGORITHM = "EdDSA"
FILE_NAME = "signing-keys.pem"
LOOK_SECONDS = 1.0
"""How often a ring in a file is held against its file, when nothing else asks for it."""


@dataclass(frozen=True)
class SigningKey:
    """One key and the name it goes by: its RFC 7638 thumbprint. Without a private half it only verifies."""

    kid: str
    public_key: Ed25519PublicKey
    private_key: Ed25519PrivateKey | None = None

    @classmethod
    def from_private_key(cls, private_key: Ed25519PrivateKey) -> Self:
        """Name a key by what it is, so that every process gives it the same name."""
        return cls.of(Ed25519Key(private_key.public_key(), private_key))

    @classmethod
    def of(cls, key: Ed25519Key) -> Self:
        """The key as it stands in a ring's text, with its name."""
        return cls(kid_of(key), key.public, key.private)

    @property
    def jwk(self) -> dict[str, str]:
        """The public half, as RFC 8037 writes it."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": _base64url(Ed25519Key(self.public_key).public_bytes),
            "kid": self.kid,
            "use": "sig",
            "alg": ALGORITHM,
        }

    def __repr__(self) -> str:
        return f"SigningKey({self.kid!r})"


class KeyRing:
    """Signs with its first private key, verifies with any.

    ``reread`` gives the keys anew when they have changed since it was asked last, and None when they have
    not. It is asked once a second at most, and for each token whose key is not known: of several workers one
    may sign with a new key before another has seen it. So it must cost no more than a look at a file.
    """

    def __init__(
        self,
        keys: Sequence[SigningKey],
        reread: Callable[[], Sequence[Ed25519Key] | None] | None = None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reread = reread or (lambda: None)
        self._ticks = ticks
        self._look_again_at = ticks() + LOOK_SECONDS
        self._take(keys)

    def sign(self, claims: dict[str, Any], *, typ: str) -> str:
        """A JWT with these claims and this ``typ``, in its compact form (RFC 7515 §7.1).

        PyJWT, which verifies them, takes as long to make one as the signature itself does.
        """
        self._look_now_and_then()
        kid, private_key = self._signer
        signed = f"{_header(typ, kid)}.{_base64url(_encode(claims).encode())}"
        return f"{signed}.{_base64url(private_key.sign(signed.encode()))}"

    def claims_of(self, token: str, *, typ: str) -> dict[str, Any]:
        """The claims of a JWT that one of our keys signed as this ``typ``; times are not looked at.

        Raises :class:`InvalidCredential` for anything else.
        """
        try:
            header = jwt.get_unverified_header(token)
            key = self._public_key(header.get("kid")) if header.get("typ") == typ else None
            if key is None:
                raise InvalidCredential(log="token of another typ, or signed by a key that is not ours")
            return jwt.decode(token, key, algorithms=[ALGORITHM], options=_SIGNATURE_ONLY)
        except (jwt.InvalidTokenError, TypeError, ValueError) as error:
            raise InvalidCredential(log=f"token: {type(error).__name__}") from error

    @property
    def jwks(self) -> dict[str, Any]:
        """The public keys (RFC 7517), for whoever verifies a receipt."""
        self._look_now_and_then()
        return {"keys": [key.jwk for key in self._keys.values()]}

    def _public_key(self, kid: Any) -> Ed25519PublicKey | None:
        self._look_now_and_then()
        if kid not in self._keys:
            self._look()
        key = self._keys.get(kid)
        return None if key is None else key.public_key

    def _look_now_and_then(self) -> None:
        if self._ticks() >= self._look_again_at:
            self._look()

    def _look(self) -> None:
        self._look_again_at = self._ticks() + LOOK_SECONDS
        changed = self._reread()
        if changed is not None:
            self._take([SigningKey.of(key) for key in changed])

    def _take(self, keys: Sequence[SigningKey]) -> None:
        signers = [(key.kid, key.private_key) for key in keys if key.private_key is not None]
        if not signers:
            raise ValueError("a key ring needs a key to sign with")
        self._signer = signers[0]
        self._keys = {key.kid: key for key in keys}


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


def load(pem: str | None, data_dir: Path, file: Path | None = None) -> KeyRing:
    """The ring from PEM text; or from a file, which is read again when it changes: the given one, or
    ``signing-keys.pem`` in the data folder, made there when missing.

    Raises ``ValueError`` when it holds anything but keys that are fit to sign with, and ``OSError``.
    """
    if pem:
        return KeyRing([SigningKey.of(key) for key in ed25519_keys.parse(pem.replace("\\n", "\n"))])
    path = file or data_dir / FILE_NAME
    if file is None:
        read_or_make(path, _first_ring)
    ring_file = RingFile(path)
    return KeyRing([SigningKey.of(key) for key in ring_file.read()], ring_file.changed)


def _first_ring() -> bytes:
    return ed25519_keys.render([replace(fresh_key(), signs_since=int(time.time()))]).encode()


def fresh_key() -> Ed25519Key:
    """A new key; none whose name a command line would take for an option."""
    while True:
        private_key = Ed25519PrivateKey.generate()
        key = Ed25519Key(private_key.public_key(), private_key)
        if not kid_of(key).startswith("-"):
            return key


def kid_of(key: Ed25519Key) -> str:
    """The name of a key: its thumbprint (RFC 7638, RFC 8037 §2)."""
    x = _base64url(key.public_bytes)
    members = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"))
    return _base64url(hashlib.sha256(members.encode()).digest())


@functools.lru_cache(maxsize=64)
def _header(typ: str, kid: str) -> str:
    return _base64url(_encode({"alg": ALGORITHM, "kid": kid, "typ": typ}).encode())


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
