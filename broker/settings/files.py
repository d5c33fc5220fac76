"""Files that settings name: opened only where reading them comes to an end."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def check_is_file(path: Path) -> None:
    """Raises ``OSError`` for what is not there, and for what is no file: nobody may ever write into a pipe,
    and a device may never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bytes(path: Path) -> bytes:
    """What is in a file. Raises ``OSError``."""
    check_is_file(path)
    return path.read_bytes()


def read_text(path: Path) -> str:
    """The same as text. Raises ``OSError``, and ``UnicodeDecodeError``."""
    return read_bytes(path).decode()
