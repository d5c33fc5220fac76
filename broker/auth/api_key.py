"""What is known of an API key: everything but the key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from broker.auth.key_format import KeyKind
from broker.auth.rights import Rights

KeyStatus = Literal["active", "expired", "revoked"]
_TIMES = ("created_at", "updated_at", "last_used_at", "expires_at", "revoked_at")
_OF_A_ROW = ("id", "kind", "name", "owner", *_TIMES)
_OF_A_SECRET = ("hint", "created_at", "expires_at", "hash")


@dataclass(frozen=True)
class KeySecret:
    """One secret of a key, masked. Times are Unix seconds; ``expires_at`` 0 is never.

    A key has one that never ends, and after a rotation older ones until their grace is over.
    """

    hint: str
    created_at: int
    expires_at: int
    hash: str = field(repr=False)

    def is_live(self, now: float) -> bool:
        """Whether it is good at ``now``; its key may be revoked or expired all the same."""
        return not 0 < self.expires_at <= now


@dataclass(frozen=True)
class ApiKey:
    """A key's kind, owner, rights and times. Times are Unix seconds; ``expires_at`` 0 is never."""

    id: str
    kind: KeyKind
    name: str
    owner: str
    scopes: tuple[str, ...]
    origins: tuple[str, ...]
    rights: Rights
    created_at: int
    updated_at: int
    last_used_at: int | None
    expires_at: int
    revoked_at: int | None
    secrets: tuple[KeySecret, ...]
    """The newest first; with those whose grace is over, until the next rotation."""
    used: KeySecret | None = field(default=None, compare=False)
    """The one that it was authenticated with."""

    @property
    def hint(self) -> str:
        """The mask of the secret that was used; of the newest one where none was."""
        return (self.used or self.secrets[0]).hint

    @property
    def secret_expires_at(self) -> int:
        """When the secret that was used ends: 0 for never, else the end of its grace."""
        return (self.used or self.secrets[0]).expires_at

    def allows_origin(self, origin: str | None) -> bool:
        """Whether the key may be used from ``origin``; a key without origins may be used from any."""
        return not self.origins or origin in self.origins

    def has_expired(self, now: float) -> bool:
        """Whether the key's own time is over."""
        return 0 < self.expires_at <= now

    def is_live(self, secret: KeySecret, now: float) -> bool:
        """Whether a secret that the key had once is still one of its own, and good at ``now``."""
        return any(each.hash == secret.hash and each.is_live(now) for each in self.secrets)

    def status(self, now: float) -> KeyStatus:
        """Whether it can be used, and if not, why."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.has_expired(now) else "active"

    def described(self, now: float) -> dict[str, Any]:
        """All that its administrator may see, as JSON has it; its live secrets are masked."""
        described = {name: getattr(self, name) for name in _OF_A_ROW}
        return {
            **described,
            "status": self.status(now),
            "hint": self.secrets[0].hint,
            "secrets": [_masked(secret) for secret in self.secrets if secret.is_live(now)],
            "scopes": list(self.scopes),
            "origins": list(self.origins),
            "rights": asdict(self.rights),
        }


def from_rows(row: Any, secret_rows: Iterable[Any]) -> ApiKey:
    """The key that a row and the rows of its secrets describe."""
    found = (KeySecret(**{name: each[name] for name in _OF_A_SECRET}) for each in secret_rows)
    return ApiKey(
        **{name: row[name] for name in _OF_A_ROW},
        scopes=tuple(row["scopes"]),
        origins=tuple(row["origins"]),
        rights=Rights.from_dict(row["rights"]),
        secrets=tuple(sorted(found, key=_age)),
    )


def _age(secret: KeySecret) -> tuple[bool, int, int]:
    """The one that never ends is the newest; of the others the one that ends last."""
    return secret.expires_at != 0, -secret.expires_at, -secret.created_at


def _masked(secret: KeySecret) -> dict[str, Any]:
    return {"hint": secret.hint, "created_at": secret.created_at, "expires_at": secret.expires_at}
