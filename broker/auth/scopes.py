"""The things a key or token may be allowed to do."""

from __future__ import annotations

TOKEN_MINT = "token:mint"  # noqa: S105 - a scope's name
FILES_UPLOAD = "files:upload"
FILES_READ = "files:read"

ALL = (TOKEN_MINT, FILES_UPLOAD, FILES_READ)
"""Every scope a secret key may have."""

PUBLISHABLE = (TOKEN_MINT,)
"""What a key that stands in a page may have, and no more."""
