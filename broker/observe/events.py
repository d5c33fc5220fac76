"""One record a request, filled along the way and read by the log (and whatever else observes).

No secret may enter it: a token or key shows only as its id.
"""

from __future__ import annotations

import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

Sent = Literal["nothing", "part", "all"]
"""How much of a body Coze may have."""
Action = Literal[
    "token.mint",
    "token.revoke",
    "upload",
    "upload.complete",
    "key.create",
    "key.update",
    "key.rotate",
    "key.revoke",
    "signing_key.rotate",
    "refusal",
    "audit.gap",
    "audit.doubt",
]
"""``audit.gap``: rows were lost. ``audit.doubt``: what the writer found was not as it was left."""


@dataclass(slots=True)
class Event:
    """What is known of one request. Fields that stay None are left out of the record."""

    request_id: str = field(default_factory=lambda: secrets.token_hex(16))
    started: float = field(default_factory=time.monotonic)
    method: str = ""
    path: str = ""
    client_ip: str | None = None
    origin: str | None = None
    status: int | None = None
    action: Action | None = None
    """What the caller came for; None for what the audit leaves out."""
    # who
    caller: str | None = None
    key_id: str | None = None
    key_hint: str | None = None
    """Which of the key's secrets it was."""
    token_id: str | None = None
    subject: str | None = None
    # what
    route: str | None = None
    reason: str | None = None
    sensitive: bool | None = None
    scanned: bool | None = None
    bytes_received: int | None = None
    bytes_declared: int | None = None
    sent: Sent | None = None
    attempts: int | None = None
    replayed: bool | None = None
    file_id: str | None = None
    # how it ended
    code: str | None = None
    log: str | None = None
    logid: str | None = None
    # for whoever ends the request
    limit_headers: dict[str, str] | None = None
    audited: bool = False
    """Whether its row is in the audit already."""
    token_spent: bool = False
    """Whether one of its token's uses was taken."""

    def record(self) -> dict[str, Any]:
        """The record as flat values, without what is not known."""
        known = {name: getattr(self, name) for name in _RECORDED}
        known["seconds"] = round(time.monotonic() - self.started, 6)
        return {name: value for name, value in known.items() if value is not None}


_UNRECORDED = ("started", "limit_headers", "audited", "token_spent")
_RECORDED = tuple(name for name in Event.__dataclass_fields__ if name not in _UNRECORDED)
_current: ContextVar[Event | None] = ContextVar("event", default=None)


def begin(event: Event) -> None:
    """Make ``event`` the one that ``current`` gives for the rest of this request."""
    _current.set(event)


def is_open() -> bool:
    """Whether a request is being served."""
    return _current.get() is not None


def current() -> Event:
    """The record of the request being served; a fresh one outside of a request."""
    return _current.get() or Event()
