"""A mark that changes whenever a key or a revocation does, so that what was looked up before is not believed.

Whoever changes them bumps it, after the change is committed. Whoever keeps an answer keeps with it the mark
that was current *before* it asked, and believes it for as long as the mark is the same.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from broker.errors import StoreUnavailable
from broker.observe import logs
from broker.state.redis import Redis, Script, Shared


class Generation(Protocol):
    """The mark."""

    async def bump(self) -> None:
        """Make it another one, for all processes. Raises :class:`StoreUnavailable` if that can't be done."""

    def current(self) -> str | None:
        """The mark; None when it isn't known, and nothing that was kept is to be believed."""

    async def newest(self) -> str | None:
        """The mark as it is now, whoever has to be asked."""


class FileGeneration:
    """A file beside the database, for all processes of one machine: a byte more for each change.

    Its size is the mark. Times would not do, as two changes may fall within one tick of the clock, and a file
    that is replaced may get back the number that an earlier one had.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def bump(self) -> None:
        """Append a byte, in one write that needs no lock."""
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, b".")
            finally:
                os.close(file)
        except OSError as error:
            raise StoreUnavailable(log=f"{type(error).__name__}: {error}") from error

    def current(self) -> str | None:
        """The file's size and number; before the first change there is no file."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - a third of the time of Path.stat, on every request
        except FileNotFoundError:
            return "none yet"
        except OSError:
            return None
        return f"{found.st_ino}:{found.st_size}"

    async def newest(self) -> str | None:
        """The same."""
        return self.current()


class AlwaysAsk:
    """For a database that other hosts change, without Redis to tell of it: no answer is believed twice."""

    async def bump(self) -> None:
        """Does nothing: no mark is ever known."""

    def current(self) -> str | None:
        """None."""
        return None

    async def newest(self) -> str | None:
        """None."""
        return None


_LOOK = Script("return {epoch, generation}")
_BUMP = Script("return {epoch, redis.call('HINCRBY', KEYS[1], 'generation', 1)}")


class RedisGeneration:
    """A counter in Redis. It begins anew when Redis is emptied, but under another epoch."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def bump(self) -> None:
        """Count."""
        await self._redis.run(_BUMP, [])

    def current(self) -> str | None:
        """As of the newest answer of Redis to this process; a call just before makes it as of now."""
        return mark_of(self._redis.shared)

    async def newest(self) -> str | None:
        """As of now; None while Redis is down."""
        with suppress(StoreUnavailable):
            await self._redis.run(_LOOK, [])
        return self.current()


async def announce(generation: Generation) -> None:
    """Bump after a change that stands in any case, whether the others can be told or not."""
    try:
        await generation.bump()
    except StoreUnavailable as error:
        logs.warning("other workers see a change of keys or revocations a second later", detail=error.log)


def mark_of(shared: Shared | None) -> str | None:
    """The mark in what a call of Redis brought along."""
    return None if shared is None else f"{shared.epoch}:{shared.generation}"
