"""The look at uploads under way, which must never be the last one."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import sqlalchemy as sa

from broker.api.watch import Watch
from broker.auth.api_keys import ApiKeys
from broker.auth.caller import Call, Caller, Issued
from broker.auth.standing import Standing
from broker.errors import InvalidCredential, RevokedCredential
from broker.state.database import Database
from broker.state.generation import AlwaysAsk
from broker.state.revocations import Revocations
from broker.transfer.pace import Pace, Patience

LONG = 60.0
PATIENCE = Patience(LONG, LONG, LONG, LONG, LONG, LONG, LONG)
OF_NO_KEY = Caller(kind="secret_key", key_id="key_0000000000000000", scopes=(), call=Call())


class Stumbling(AlwaysAsk):
    """Fails as nobody expects, the first time that it is asked."""

    def __init__(self) -> None:
        self.times_asked = 0

    async def newest(self) -> str | None:
        self.times_asked += 1
        if self.times_asked == 1:
            raise RuntimeError
        return None


async def test_after_what_nobody_expected_it_looks_again(database: Database) -> None:
    standing = Standing(ApiKeys(database, b"pepper"), Revocations(database, ttl_seconds=60))
    generation, pace = Stumbling(), Pace(PATIENCE)
    watch = Watch(standing, generation)
    looking = asyncio.create_task(watch.run())
    with watch.over(OF_NO_KEY, pace), pytest.raises(InvalidCredential):
        async with pace.kept():
            await asyncio.Event().wait()
    assert generation.times_asked > 1
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking


async def kept(pace: Pace) -> None:
    async with pace.kept():
        await asyncio.Event().wait()


class Fixed(AlwaysAsk):
    """Where nothing changes any more."""

    def current(self) -> str | None:
        return "the same"

    async def newest(self) -> str | None:
        return "the same"


async def test_who_came_after_the_look_that_saw_the_change_is_looked_at(database: Database) -> None:
    """Let in before a change, and here after it was seen; later looks see none."""
    standing = Standing(ApiKeys(database, b"pepper"), Revocations(database, ttl_seconds=60))
    watch = Watch(standing, Fixed())
    pace = Pace(PATIENCE)
    with watch.over(OF_NO_KEY, Pace(PATIENCE)):
        await watch.look()
    with watch.over(OF_NO_KEY, pace):
        upload = asyncio.create_task(kept(pace))
        await asyncio.sleep(0)  # until it is under way
        await watch.look()
        with pytest.raises(InvalidCredential):
            await asyncio.wait_for(upload, 5)


async def test_a_look_asks_once_for_each_key_however_many_uploads_it_has(database: Database) -> None:
    """Also where no generation is known; and the next look asks anew."""
    keys = ApiKeys(database, b"pepper")
    ids = [(await keys.create(name=name, scopes=["token:mint"]))[0].id for name in ("one", "other")]
    revocations = Revocations(database, ttl_seconds=60)
    watch = Watch(Standing(keys, revocations), AlwaysAsk())
    asked: list[str] = []

    def note(_: Any, __: Any, statement: str, *rest: Any) -> None:
        asked.extend([statement] * statement.startswith("SELECT"))

    with ExitStack() as stack:
        uploads = {}
        for number in range(20):
            issued = Issued(f"jti {number}", f"subject {number}", ids[number % 2], int(time.time()))
            caller = Caller(kind="upload_token", key_id=issued.key_id, scopes=(), call=Call(), issued=issued)
            pace = Pace(PATIENCE)
            stack.enter_context(watch.over(caller, pace))
            uploads[issued.subject] = asyncio.create_task(kept(pace))
        await asyncio.sleep(0)  # until all are under way
        sa.event.listen(database.engine.sync_engine, "before_cursor_execute", note)
        await watch.look()
        assert len(asked) == 3
        await revocations.revoke("subject", "subject 7")
        await keys.revoke(ids[0])
        asked.clear()
        await watch.look()
        revoked = {"subject 7", *(f"subject {number}" for number in range(0, 20, 2))}
        await asyncio.wait([uploads[subject] for subject in revoked])
        assert {subject for subject, task in uploads.items() if task.done()} == revoked
        assert {type(uploads[subject].exception()) for subject in revoked} == {RevokedCredential}
        assert len(asked) == 3
        for task in uploads.values():
            task.cancel()
        await asyncio.gather(*uploads.values(), return_exceptions=True)
