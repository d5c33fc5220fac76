"""Uploads under way whose caller is revoked are stopped, not only kept from being finished.

One look for all of them, which asks for the revocations and for each key once; and only for those who came
since the last one, unless keys or revocations changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from broker.auth.caller import Caller
from broker.auth.standing import Standing
from broker.errors import Refusal, StoreUnavailable
from broker.observe import logs
from broker.state.generation import Generation
from broker.transfer.pace import Pace

SECONDS = 1.0
"""Between two looks."""


class Watch:
    """The uploads of one process."""

    def __init__(self, standing: Standing, generation: Generation) -> None:
        self._standing = standing
        self._generation = generation
        self._seen: object = None
        self._running: dict[Pace, Caller] = {}
        self._new: set[Pace] = set()
        """Not looked at yet: a change may have been seen between their being let in and their coming here."""

    @contextmanager
    def over(self, caller: Caller, pace: Pace) -> Iterator[None]:
        """Stop ``pace`` with what speaks against ``caller``, should that come up within the block."""
        self._running[pace] = caller
        self._new.add(pace)
        try:
            yield
        finally:
            del self._running[pace]
            self._new.discard(pace)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(SECONDS)
            try:
                await self.look()
            except StoreUnavailable:
                pass  # what is let in by then is looked at when it ends
            except Exception as error:  # whatever it is, it must not be the last look
                logs.unexpected(error)

    async def look(self) -> None:
        """Stop whom the stores speak against."""
        if not self._running:
            return
        generation = await self._generation.newest()
        is_the_same = generation is not None and generation == self._seen
        # Where no generation is known no answer is believed twice, but within one look it may be.
        mark = object() if generation is None else generation
        for pace in list(self._new if is_the_same else self._running):
            if pace in self._running:
                await self._look_at(pace, mark)
        self._seen = generation

    async def _look_at(self, pace: Pace, mark: object) -> None:
        caller = self._running[pace]
        try:
            await self._standing.check_revoked(caller, mark)
        except StoreUnavailable:
            raise
        except Refusal as refusal:
            pace.stop(refusal)
        self._new.discard(pace)
