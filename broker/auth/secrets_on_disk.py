"""Secrets that the broker makes for itself at its first start, readable by its own user alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.settings import weakness

PEPPER_BYTES = 32
DERIVED_BYTES = 32


def read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    """What the file holds; where there is none, what ``make`` returns, written there first.

    Two processes that start at once agree: the one that links its file first wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _write_once(path, make())
    return path.read_bytes()


def _write_once(path: Path, content: bytes) -> None:
    """Never half a file, never overwritten: written aside, then linked into place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        path.hardlink_to(aside)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def pepper(given: str | None, data_dir: Path) -> bytes:
    """The secret that API keys are hashed with: the given one, or one made and kept in the data folder.

    Raises ``ValueError`` when the kept one is damaged.
    """
    if given is not None:
        return given.encode()
    made = read_or_make(data_dir / "key-pepper", lambda: secrets.token_hex(PEPPER_BYTES).encode())
    weak = weakness(made.decode(errors="replace"))
    if weak:
        raise ValueError(f"key-pepper {weak.rstrip('.')}")
    return made


def derived(secret: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose, from one secret (HKDF, RFC 5869): none tells of another."""
    info = f"coze-upload-broker/{purpose}".encode()
    return HKDF(algorithm=SHA256(), length=DERIVED_BYTES, salt=None, info=info).derive(secret)
