"""What the pepper makes of a key's secret: the hash that is kept, and what requests are signed with."""

from __future__ import annotations

import base64
import hmac

from broker.auth.secrets_on_disk import derived
from broker.settings import SECRET_PREFIX

SIGNING_PREFIX = "cub_ss_"


class KeyHashing:
    """HMAC-SHA-256 with the pepper; what is in the database is of no use without it."""

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self._signing_pepper = derived(pepper, "request signing")

    def hash(self, secret: str) -> str:
        """The hash of a secret, in hex: the one thing of it that is kept."""
        return hmac.digest(self._pepper, secret.encode(), "sha256").hex()

    def signing_secret(self, secret_hash: str) -> bytes:
        """The HMAC key for requests that are signed in place of the secret with this hash; kept nowhere."""
        return self._signing_text(secret_hash).encode()

    def shown_signing_secret(self, secret: str) -> str | None:
        """The same as the owner of a secret sees it, who signs with this very text.

        None for a publishable key: a page can keep no secret.
        """
        return self._signing_text(self.hash(secret)) if secret.startswith(SECRET_PREFIX) else None

    def _signing_text(self, secret_hash: str) -> str:
        digest = hmac.digest(self._signing_pepper, secret_hash.encode(), "sha256")
        return SIGNING_PREFIX + base64.urlsafe_b64encode(digest).decode().rstrip("=")
