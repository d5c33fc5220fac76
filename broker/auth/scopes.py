"""The things a key or token may be allowed to do."""

from __future__ import annotations

TOKEN_MINT = "token:mint"  # noqa: S105 - a scope's name
FILES_UPLOAD = "files:upload"
FILES_READ = "files:read"
CHAT = "chat"
WORKFLOW_RUN = "workflow:run"
CONVERSATIONS = "conversations"
BOTS_READ = "bots:read"
WORKSPACES_READ = "workspaces:read"
USERS_READ = "users:read"
KEYS_ADMIN = "keys:admin"

ALL = (
    TOKEN_MINT,
    FILES_UPLOAD,
    FILES_READ,
    CHAT,
    WORKFLOW_RUN,
    CONVERSATIONS,
    BOTS_READ,
    WORKSPACES_READ,
    USERS_READ,
    KEYS_ADMIN,
)
"""Every scope a secret key may have."""

PUBLISHABLE = (TOKEN_MINT,)
"""What a key that stands in a page may have, and no more."""
