"""What must be kept and holds a secret is kept sealed: who reads the database has no use of it."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES = 12


class Sealer:
    """AES-256-GCM over JSON; each text is bound to the name that it is kept under."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, value: dict[str, Any], name: str) -> str:
        """The value as a text that only ``open`` with the same name turns back."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, json.dumps(value).encode(), name.encode())
        return base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, text: str, name: str) -> dict[str, Any]:
        """The value. Raises ``ValueError`` for one that was sealed under another key or name, or changed."""
        content = base64.urlsafe_b64decode(text)
        try:
            plain = self._cipher.decrypt(content[:NONCE_BYTES], content[NONCE_BYTES:], name.encode())
        except InvalidTag as error:
            raise ValueError("sealed with another key, or changed") from error
        value: dict[str, Any] = json.loads(plain)
        return value
