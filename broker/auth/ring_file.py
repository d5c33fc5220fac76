"""A file of signing keys: read when it changes, replaced as a whole."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.observe import logs
from broker.settings import ed25519_keys
from broker.settings.ed25519_keys import Ed25519Key
from broker.settings.files import check_is_file

_Seen = tuple[int, int, int] | str
"""What tells one state of a file from another, or why there is none."""


class RingFile:
    """The keys in a file, and whether they are still those that were read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: _Seen = "never"

    def read(self) -> list[Ed25519Key]:
        """What the file holds now. Raises ``OSError``, and ``ValueError`` for what is no ring of keys."""
        check_is_file(self._path)
        with self._path.open("rb") as file:
            # Looked at first: whoever writes while it is read leaves it other than it was seen.
            self._seen = _seen(os.fstat(file.fileno()))
            text = file.read()
        try:
            return ed25519_keys.parse(text.decode())
        except UnicodeDecodeError:
            raise ValueError(ed25519_keys.NOT_KEYS) from None

    def changed(self) -> list[Ed25519Key] | None:
        """What the file holds, if it is not what was seen last; None when nothing changed.

        None also when it can't be read or is no ring, as while someone writes it: that is logged once, and
        what was read before stays good.
        """
        try:
            if _seen(self._path.stat()) == self._seen:
                return None
            keys = self.read()
        except OSError as error:
            self._complain(error.strerror or type(error).__name__)
        except ValueError as error:
            logs.warning("signing keys stay as they were", file=str(self._path), reason=str(error))
        else:
            logs.info("signing keys read again", file=str(self._path), keys=len(keys))
            return keys
        return None

    def _complain(self, reason: str) -> None:
        if self._seen != reason:
            self._seen = reason
            logs.warning("signing keys stay as they were", file=str(self._path), reason=reason)


@contextmanager
def edited(path: Path, change: Callable[[list[Ed25519Key]], list[Ed25519Key]]) -> Iterator[list[Ed25519Key]]:
    """Replace the keys in a file by what ``change`` makes of them; of two who do so at once, one waits.

    The new keys lie ready within the block, and take their place when it ends; an error from it leaves all as
    it was. A reader finds the old file or the new one, whole. It keeps its owner, and may be read by nobody
    else whom it was not open to before. Raises ``OSError``, and ``ValueError`` from ``change`` or for a file
    that is no ring; where there is no file, it is made.
    """
    path = path.resolve()  # what a link leads to is replaced, not the link
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(path.parent):
        keys = change(RingFile(path).read() if path.exists() else [])
        with _replaced(path, ed25519_keys.render(keys).encode()):
            yield keys


def _seen(status: os.stat_result) -> _Seen:
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder itself is the lock: a file beside the keys would stay there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _replaced(path: Path, content: bytes) -> Iterator[None]:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _give(descriptor, path)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        yield
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _give(descriptor: int, path: Path) -> None:
    """The file's owner stays its owner, or root's rotation would leave the broker with a file that it can't
    read. A new one belongs to the folder's.
    """
    like = path.stat() if path.exists() else path.parent.stat()
    mine = os.fstat(descriptor)
    if (like.st_uid, like.st_gid) != (mine.st_uid, mine.st_gid):
        os.fchown(descriptor, like.st_uid, like.st_gid)
    if path.exists():
        os.fchmod(descriptor, stat.S_IRUSR | stat.S_IWUSR | (like.st_mode & stat.S_IRGRP))
