"""Tokens as an attacker, or a broken program, would make them: signed with the broker's own keys, or not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.broker_process import Broker


def ring_key(broker: Broker) -> Ed25519PrivateKey:
    """The private key that the broker signs with."""
    pem = (Path(broker.environment["BROKER_DATA_DIR"]) / "signing-keys.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def header_of(token: str) -> dict[str, Any]:
    return dict(jwt.get_unverified_header(token))


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def signed(claims: dict[str, Any], header: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """A token with exactly this header and these claims, whatever they are, and a signature that is right."""
    text = f"{_part(header)}.{_part(claims)}"
    return f"{text}.{_base64url(key.sign(text.encode()))}"


def unsigned(claims: dict[str, Any], header: dict[str, Any], signature: bytes = b"") -> str:
    return f"{_part(header)}.{_part(claims)}.{_base64url(signature)}"


def _part(value: dict[str, Any]) -> str:
    return _base64url(json.dumps(value).encode())


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
