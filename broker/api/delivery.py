"""The delivery of a file to Coze, once all that can be known beforehand speaks for it: a slot, a scan, the
credential, the token's one use, and the sending itself, again where that is safe.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from tenacity import AsyncRetrying, RetryCallState

from broker.api.file_owners import own_soon
from broker.api.sensitive import scan_of
from broker.api.services import Services
from broker.auth.body_digests import BodyDigest
from broker.auth.caller import Caller
from broker.auth.signed_claims import LEEWAY_SECONDS
from broker.auth.upload_tokens import UploadToken
from broker.errors import (
    StoreUnavailable,
    TokenUsed,
    UpstreamAborted,
    UpstreamCredentialRefused,
    UpstreamCredentialReplaced,
    UpstreamFailed,
    UpstreamLimit,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from broker.observe import events
from broker.state.limits import Limit, Turn
from broker.state.uninterrupted import uninterrupted
from broker.transfer import filenames
from broker.transfer.incoming import IncomingFile
from broker.transfer.multipart import Envelope
from broker.transfer.outgoing import BeforeEnd, OutgoingBody
from broker.transfer.pace import Pace
from broker.transfer.scanned import Scan
from broker.upstream.coze import StoredFile
from broker.upstream.guard import Budget, repeating

CLAIM_MARGIN_SECONDS = 60
CHECK_AGAIN_SECONDS = 1.0
"""How old the look at a caller's standing may be when its file is finished."""
SPREAD_SECONDS = 1.0
"""Over how long those go on who waited for the end of the same pause, and have no turns to take."""
MARGIN_SECONDS = 0.05
"""After the end of a pause: a turn in its last millisecond, for clocks are rounded, would be lost."""
PASSING = (UpstreamUnreachable, UpstreamTimeout, UpstreamAborted, UpstreamFailed)
"""After these Coze has no file, and may take it the next time."""


@dataclass(frozen=True)
class Grant:
    """What this upload may do, whichever credential says so."""

    caller: Caller
    max_bytes: int
    forms_only: bool = False

    @property
    def key_id(self) -> str:
        """The key that the caller has, or that its token was minted with."""
        return self.caller.key_id

    @property
    def subject(self) -> str | None:
        """Whom the upload is for."""
        return self.caller.subject

    @property
    def token(self) -> UploadToken | None:
        """The token that is to be used up."""
        return self.caller.token


@dataclass(frozen=True)
class Upload:
    """A file that Coze confirmed, and which request brought it, when (Unix seconds)."""

    stored: StoredFile
    file_name: str
    sha256: str
    request_id: str
    stored_at: int


@dataclass(frozen=True)
class Delivery:
    """A file, and what every step to Coze needs to know of it."""

    broker: Services
    grant: Grant
    pace: Pace
    file: IncomingFile
    sha256: str | None
    """The digest that was announced."""
    is_sensitive: bool
    signed: BodyDigest | None = None
    """The request's body, where it is signed."""
    entered: float = field(default_factory=lambda: events.current().started)
    """When the request came, by the monotonic clock: its caller was looked at right after."""


async def deliver(delivery: Delivery, before_end: BeforeEnd | None = None) -> Upload:
    """Get all that is needed to send the file, then send it.

    The token is spent last of all before Coze hears of the file, so that nothing else can waste it.
    """
    broker, pace = delivery.broker, delivery.pace
    broker.guard.check()
    pace.wait_for("slot")
    async with broker.admission.slot(delivery.grant.key_id), _scan(delivery) as scan:
        upload = await _Sending(delivery, broker.guard.budget(), scan, before_end).persistently()
    pace.over()  # Coze has the file: whoever leaves or is revoked from here on changes nothing
    if broker.browser_app is not None:  # else nothing goes direct
        await own_soon(broker, upload.stored.file_id, f"request:{upload.request_id}")
    return upload


@asynccontextmanager
async def _scan(delivery: Delivery) -> AsyncIterator[Scan | None]:
    """The scan that the file must still pass on its way; one that is all here passes it before it leaves."""
    delivery.pace.wait_for("scanner")
    async with scan_of(delivery.broker, delivery.file, sensitive=delivery.is_sensitive) as scan:
        if scan is None or not delivery.file.kept:
            yield scan
            return
        for piece in delivery.file.kept:
            await scan.feed(piece)
        await scan.verdict()
        events.current().scanned = True
    yield None


async def _take_turn(delivery: Delivery, give_up_at: float) -> None:
    """Coze takes so many uploads a second of the whole account, whichever worker they come from, and none
    while there is a pause. Raises :class:`UpstreamLimit` for whoever would wait too long.
    """
    delivery.pace.wait_for("turn")
    broker = delivery.broker
    pause_seconds = await broker.guard.pause.seconds_left()
    # Whoever goes first after a pause may begin the next. A turn whose moment comes in one is over: all of
    # those would go on at once when it ends.
    while await _wait(broker, pause_seconds, give_up_at):
        pause_seconds = await broker.guard.pause.seconds_left()
        if not pause_seconds:
            return


async def _wait(broker: Services, pause_seconds: float, give_up_at: float) -> bool:
    """Until the pause is over and it is this upload's turn; whether that was some time."""
    if broker.upstream_limit is None:
        return await _wait_for_pause(pause_seconds, give_up_at)
    return await _wait_for_turn(broker, broker.upstream_limit, pause_seconds, give_up_at)


async def _wait_for_pause(pause_seconds: float, give_up_at: float) -> bool:
    if not pause_seconds:
        return False
    latest = give_up_at - asyncio.get_running_loop().time()
    if pause_seconds > latest:
        raise _comes_too_early(pause_seconds, pause_seconds)
    spread = random.uniform(0, min(SPREAD_SECONDS, latest - pause_seconds))  # noqa: S311 - nobody gains by guessing
    await asyncio.sleep(pause_seconds + spread)
    return True


async def _wait_for_turn(broker: Services, limit: Limit, pause_seconds: float, give_up_at: float) -> bool:
    most = max(0.0, give_up_at - asyncio.get_running_loop().time())
    least = pause_seconds + MARGIN_SECONDS if pause_seconds else 0.0
    turn = await broker.limits.reserve(limit, min_wait_seconds=least, max_wait_seconds=most)
    if not isinstance(turn, Turn):
        raise _comes_too_early(turn, pause_seconds)
    if turn.wait_seconds:
        await _until(turn)
    return turn.wait_seconds > 0


def _comes_too_early(seconds: float, pause_seconds: float) -> UpstreamLimit:
    """For whoever would have to wait so long."""
    log = "Coze asked for a pause" if pause_seconds else None
    return UpstreamLimit(log=log, retry_after_seconds=max(1, math.ceil(seconds)))


async def _until(turn: Turn) -> None:
    """Whoever leaves meanwhile leaves the turn to the next one."""
    try:
        await asyncio.sleep(turn.wait_seconds)
    except asyncio.CancelledError:
        with suppress(StoreUnavailable):
            await uninterrupted(turn.give_back)()
        raise


class _Sending:
    """The attempts to send one file, as many as are safe: again after a passing fault, and once with another
    access token, as long as all of the file is here.
    """

    def __init__(
        self, delivery: Delivery, budget: Budget, scan: Scan | None, before_end: BeforeEnd | None
    ) -> None:
        self._delivery = delivery
        self._budget = budget
        self._scan = scan
        self._before_end = before_end
        self._refused_credentials = 0
        self._is_fetching = False
        """The credential, which was fetched again already where that may help."""

    async def persistently(self) -> Upload:
        """Raises the last attempt's refusal."""
        try:
            upload: Upload = await self.repeating()(self._send)
        except UpstreamCredentialRefused as refusal:
            if not (refusal.is_replaced and self._refused_credentials == 1):
                raise
            raise UpstreamCredentialReplaced(
                log=refusal.log, logid=refusal.logid, reply=refusal.reply
            ) from refusal
        return upload

    def repeating(self) -> AsyncRetrying:
        """What makes an attempt again where that is safe."""
        return repeating(self._budget, self._may_go_again, self._before_next)

    def _may_go_again(self, error: BaseException) -> bool:
        if isinstance(error, UpstreamCredentialRefused):
            self._refused_credentials += 1
            is_of_use = error.is_replaced and self._refused_credentials == 1
        else:
            is_of_use = isinstance(error, PASSING) and not self._is_fetching
        return is_of_use and self._delivery.file.start_over()

    def _before_next(self, _: RetryCallState) -> None:
        """Until then nothing is under way: whoever stops the request now leaves no doubt behind."""
        events.current().sent = None
        self._delivery.pace.wait_for("connection")

    async def _send(self) -> Upload:
        """One attempt."""
        delivery = self._delivery
        broker, pace, event = delivery.broker, delivery.pace, events.current()
        authorization = await self._turn()
        async with broker.guard.attempt(lambda: pace.ended_by):
            pace.wait_for("store")
            await _spend(broker, delivery.grant)
            event.attempts = (event.attempts or 0) + 1
            file_name = delivery.file.file_name
            envelope = Envelope.around(file_name, filenames.content_type_of(file_name))
            body = _body(delivery, envelope, self._scan, self._before_end)
            pace.wait_for("connection")
            stored = await broker.files.upload(body, envelope, authorization)
        event.route, event.file_id, event.logid = "proxy", stored.file_id, stored.logid
        return Upload(stored, file_name, body.sha256, event.request_id, int(time.time()))

    async def _turn(self) -> str:
        """The credential, once it is this upload's turn. What would be refused then anyway takes none."""
        delivery, broker = self._delivery, self._delivery.broker
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + broker.settings.broker_upstream_wait_seconds
        if not broker.files.has_credential:  # for an exchange there is a pause, too
            delivery.pace.wait_for("turn")
            while await _wait_for_pause(await broker.guard.pause.seconds_left(), give_up_at):
                pass  # meanwhile another one may have begun
        began = loop.time()
        await self._authorization()
        give_up_at += loop.time() - began  # the patience is for a turn
        if broker.upstream_limit is not None:
            delivery.pace.wait_for("store")
            await _check_unused(broker, delivery.grant)
        broker.guard.check()
        await _take_turn(delivery, give_up_at)  # or all who waited for one exchange would go on at once
        return await self._authorization()  # the one from before may have been replaced meanwhile

    async def _authorization(self) -> str:
        self._delivery.pace.wait_for("credential")
        self._is_fetching = True
        authorization = await self._delivery.broker.files.authorization(self._budget)
        self._is_fetching = False
        return authorization


def _body(
    delivery: Delivery, envelope: Envelope, scan: Scan | None, before_end: BeforeEnd | None
) -> OutgoingBody:
    """The file in its form; before the last piece goes out, all is asked that can still speak against it."""

    async def last_check(sha256: str) -> None:
        if delivery.signed is not None:
            await delivery.signed.finish()
        await _check_again(delivery)
        if before_end is not None:
            await before_end(sha256)

    return OutgoingBody(
        delivery.file,
        envelope,
        delivery.pace,
        max_bytes=delivery.grant.max_bytes,
        sha256=delivery.sha256,
        before_end=last_check,
        scan=scan,
    )


async def _check_again(delivery: Delivery) -> None:
    """Who was revoked meanwhile gets no file stored. A store that can't be asked holds up nobody who was let
    in: a second ago it knew of nothing.
    """
    broker = delivery.broker
    if time.monotonic() - delivery.entered > CHECK_AGAIN_SECONDS:
        with suppress(StoreUnavailable):
            generation = await broker.generation.newest()
            await broker.standing.check_revoked(delivery.grant.caller, generation)


async def _check_unused(broker: Services, grant: Grant) -> None:
    """Whoever comes with a used token learns it before anything is taken for it; ``_spend`` decides."""
    if grant.token is None or events.current().token_spent:
        return
    if await broker.claims.used(_name_of(grant.token)) >= grant.token.uses:
        raise TokenUsed


def _name_of(token: UploadToken) -> str:
    return f"upload:{token.jti}"


async def _spend(broker: Services, grant: Grant) -> None:
    """Use the token up: of two who come with it, one gets in. Once for all attempts.

    It stays used until nobody can be under way with it: who began in time may get here long after ``exp``.
    """
    if grant.token is None or events.current().token_spent:
        return
    seconds_left = max(0, grant.token.finish_by - int(time.time()))
    ttl_seconds = seconds_left + LEEWAY_SECONDS + CLAIM_MARGIN_SECONDS
    name, token = _name_of(grant.token), grant.token
    if not await broker.claims.claim(name, ttl_seconds=ttl_seconds, uses=token.uses, epoch=token.epoch):
        raise TokenUsed
    events.current().token_spent = True
