"""Coze OAuth apps of the JWT kind: who one is, and the key that proves it."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

MIN_RSA_BITS = 2048


@dataclass(frozen=True)
class OAuthApp:
    """A Coze OAuth app of the JWT kind: who it is, and the key that proves it."""

    client_id: str
    public_key_id: str
    private_key: RSAPrivateKey

    def __repr__(self) -> str:
        return f"OAuthApp({self.client_id!r})"


@functools.cache
def parse_rsa(pem: bytes) -> RSAPrivateKey:
    """Parsed once: cryptography checks a private key when it loads it, which takes tens of milliseconds."""
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, RSAPrivateKey) or key.key_size < MIN_RSA_BITS:
        raise ValueError
    return key
