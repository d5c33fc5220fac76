"""The journey of a file through the broker, whichever path it came by: read its head, get all that is
needed to send it, spend its token, pull it through to Coze.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from starlette.requests import Request
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, stop_after_delay
from tenacity.wait import wait_random_exponential

from broker.api import idempotency
from broker.api.bodies import stream
from broker.api.sensitive import is_sensitive, scan_of
from broker.api.services import Services, services
from broker.auth.upload_tokens import LEEWAY_SECONDS, UploadToken
from broker.errors import (
    DigestMismatch,
    IdempotencyKeyReused,
    TokenUsed,
    TypeNotGranted,
    UpstreamAborted,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from broker.observe import events
from broker.state.idempotency import Begun
from broker.transfer import filenames
from broker.transfer.digests import announced_sha256
from broker.transfer.incoming import IncomingFile, open_file
from broker.transfer.multipart import Envelope
from broker.transfer.outgoing import BeforeEnd, OutgoingBody
from broker.transfer.pace import Pace, Patience
from broker.transfer.policy import too_large
from broker.transfer.scanned import Scan
from broker.transfer.sniffing import FileTypes
from broker.upstream.coze import StoredFile

CLAIM_MARGIN_SECONDS = 60
STORE_SECONDS = 20.0
"""Longer than the store's own limits, and than the wait for the same request to be over."""
KEPT_BYTES = 65_536
"""A file this small is read whole before Coze hears of it, and can be sent again."""
MAX_ATTEMPTS = 3
PASSING = (UpstreamUnreachable, UpstreamTimeout, UpstreamAborted, UpstreamFailed)
"""After these Coze has no file, and may take it the next time."""


@dataclass(frozen=True)
class Grant:
    """What this upload may do, whichever credential says so."""

    key_id: str
    max_bytes: int
    subject: str | None = None
    token: UploadToken | None = None
    forms_only: bool = False


@dataclass(frozen=True)
class Upload:
    """A file that Coze confirmed, and which request brought it, when (Unix seconds)."""

    stored: StoredFile
    file_name: str
    sha256: str
    request_id: str
    stored_at: int


@dataclass(frozen=True)
class _Journey:
    """What every step needs."""

    broker: Services
    grant: Grant
    pace: Pace
    file: IncomingFile
    sha256: str | None
    """The digest that was announced."""
    is_sensitive: bool


async def relay_file(request: Request, grant: Grant) -> Upload:
    """Take the request's file to Coze; with an ``Idempotency-Key``, once however often it is sent.

    Raises a refusal at whatever step fails; Coze then has no file, or it is not known whether it has.
    """
    broker = services(request)
    key = idempotency.key_of(request.headers)
    of_token = grant.token.sha256 if grant.token else None
    sha256 = announced_sha256(request.headers.get("repr-digest"), of_token)
    pace = Pace(_patience(broker), _seconds_to_finish(grant))
    request.state.client_left = pace.client_left
    with broker.admission.admitted(grant.key_id):
        async with pace.kept():
            body = stream(request, pace.received)
            file = await open_file(
                request.headers, body, max_bytes=grant.max_bytes, forms_only=grant.forms_only
            )
            _check_type(file, grant)
            _check_content(file, grant, broker.policy.file_types)
            await file.keep(KEPT_BYTES)
            _check_kept(file, grant, sha256)
            sensitive = is_sensitive(request, file, grant.token)
            journey = _Journey(broker, grant, pace, file, sha256, sensitive)
            return await (_store(journey) if key is None else _store_once(journey, key))


async def _store_once(journey: _Journey, key: str) -> Upload:
    """The file's journey, unless it was made before under the same key: then its outcome."""
    records, grant = journey.broker.idempotency, journey.grant
    journey.pace.wait_for("store")
    name = idempotency.name_of(key, key_id=grant.key_id, subject=grant.subject)
    begun = await records.begin(name, idempotency.fingerprint_of(journey.file.file_name))
    if not isinstance(begun, Begun):
        journey.pace.wait_for("client")
        if await _read(journey) != begun.sha256:
            raise IdempotencyKeyReused
        return _upload(idempotency.answer_of(begun))

    async def work() -> dict[str, Any]:
        return asdict(await _store(journey, lambda sha256: records.commit(begun, sha256)))

    return _upload(await idempotency.once(records, begun, work))


async def _store(journey: _Journey, before_end: BeforeEnd | None = None) -> Upload:
    """Get all that is needed to send the file, then send it.

    The token is spent last of all before Coze hears of the file, so that nothing else can waste it.
    """
    broker, pace = journey.broker, journey.pace
    pace.wait_for("slot")
    async with broker.admission.slot(journey.grant.key_id), _scan(journey) as scan:
        pace.wait_for("credential")
        authorization = await broker.files.authorization()
        pace.wait_for("store")
        await _spend(broker, journey.grant)
        upload: Upload = await _persistently(journey)(_send, journey, authorization, scan, before_end)
    pace.over()
    return upload


@asynccontextmanager
async def _scan(journey: _Journey) -> AsyncIterator[Scan | None]:
    """The scan that the file must still pass on its way; one that is all here passes it before it leaves."""
    journey.pace.wait_for("scanner")
    async with scan_of(journey.broker, journey.file, sensitive=journey.is_sensitive) as scan:
        if scan is None or not journey.file.kept:
            yield scan
            return
        for piece in journey.file.kept:
            await scan.feed(piece)
        await scan.verdict()
        events.current().scanned = True
    yield None


def _persistently(journey: _Journey) -> AsyncRetrying:
    """Again after a passing fault, as long as every byte of the file is still here."""

    def may_go_again(error: BaseException) -> bool:
        return isinstance(error, PASSING) and journey.file.start_over()

    return AsyncRetrying(
        retry=retry_if_exception(may_go_again),
        stop=stop_after_attempt(MAX_ATTEMPTS)
        | stop_after_delay(journey.broker.settings.broker_connect_timeout_seconds),
        wait=wait_random_exponential(multiplier=0.2, max=2),
        reraise=True,
    )


async def _send(
    journey: _Journey, authorization: str, scan: Scan | None, before_end: BeforeEnd | None
) -> Upload:
    """One attempt."""
    broker, file, pace, event = journey.broker, journey.file, journey.pace, events.current()
    event.attempts = (event.attempts or 0) + 1
    envelope = Envelope.around(file.file_name, filenames.content_type_of(file.file_name))
    body = OutgoingBody(
        file,
        envelope,
        pace,
        max_bytes=journey.grant.max_bytes,
        sha256=journey.sha256,
        before_end=before_end,
        scan=scan,
    )
    pace.wait_for("connection")
    stored = await broker.files.upload(body, envelope, authorization)
    event.route, event.file_id, event.logid = "proxy", stored.file_id, stored.logid
    return Upload(stored, file.file_name, body.sha256, event.request_id, int(time.time()))


async def _read(journey: _Journey) -> str:
    """The digest of a file that goes nowhere: Coze has it already, or may have."""
    digest, size = hashlib.sha256(), 0
    async for piece in journey.file:
        size += len(piece)
        if size > journey.grant.max_bytes:
            raise too_large(journey.grant.max_bytes)
        digest.update(piece)
    events.current().bytes_received = size
    if journey.sha256 not in (None, digest.hexdigest()):
        raise DigestMismatch
    return digest.hexdigest()


def _upload(answer: dict[str, Any]) -> Upload:
    return Upload(**{**answer, "stored": StoredFile(**answer["stored"])})


def _check_type(file: IncomingFile, grant: Grant) -> None:
    """A token that was issued for a type is good for that type alone."""
    granted = grant.token.content_types if grant.token else None
    if granted is not None and file.content_type not in granted:
        raise TypeNotGranted(
            f"The token was issued for {', '.join(granted)}. Send that, or get another token."
        )


def _check_content(file: IncomingFile, grant: Grant, file_types: FileTypes) -> None:
    """Name, type and content must agree. A name that the content tells must be granted like the sender's."""
    name, content_type = file_types.settle(file.file_name, file.content_type, file.head)
    if (name, content_type) == (file.file_name, file.content_type):
        return
    file.file_name, file.content_type = name, content_type
    _check_type(file, grant)


def _check_kept(file: IncomingFile, grant: Grant, sha256: str | None) -> None:
    """Of a file that is all here, what is else found out on the way is found out before anything is spent."""
    if not file.kept:
        return
    if sum(map(len, file.kept)) > grant.max_bytes:
        raise too_large(grant.max_bytes)
    if sha256 is not None and hashlib.sha256(b"".join(file.kept)).hexdigest() != sha256:
        raise DigestMismatch


async def _spend(broker: Services, grant: Grant) -> None:
    """Use the token up: of two who come with it, one gets in."""
    if grant.token is None:
        return
    seconds_left = max(0, grant.token.expires_at - int(time.time()))
    ttl_seconds = seconds_left + LEEWAY_SECONDS + CLAIM_MARGIN_SECONDS
    if not await broker.claims.claim(f"upload:{grant.token.jti}", ttl_seconds=ttl_seconds):
        raise TokenUsed


def _seconds_to_finish(grant: Grant) -> float | None:
    return None if grant.token is None else grant.token.finish_by - time.time()


def _patience(broker: Services) -> Patience:
    settings = broker.settings
    connect, read = settings.broker_connect_timeout_seconds, settings.broker_read_timeout_seconds
    return Patience(
        client=settings.broker_client_idle_seconds,
        slot=settings.broker_pool_wait_seconds,
        store=STORE_SECONDS,
        credential=connect + read + 1,
        connection=connect + 1,
        upstream=read,
        answer=read,
        scanner=settings.broker_scanner_timeout_seconds,
        client_bytes_per_second=settings.broker_min_bytes_per_second,
    )
