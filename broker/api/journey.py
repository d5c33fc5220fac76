"""The journey of a file through the broker, whichever path it came by: let it in, read its head, hold it
against the policy, then deliver it, or say what became of it when it came before.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from starlette.requests import Request

from broker.api import gate, idempotency
from broker.api.bodies import body_sha256_of, stream
from broker.api.delivery import Delivery, Grant, Upload, deliver
from broker.api.sensitive import is_sensitive
from broker.api.services import Services, services
from broker.auth.body_digests import BodyDigest
from broker.auth.caller import Caller
from broker.auth.rights import is_one_of
from broker.errors import DigestMismatch, IdempotencyKeyReused, TypeNotGranted
from broker.observe import events
from broker.state.idempotency import Begun
from broker.state.leases import held
from broker.transfer.digests import announced_sha256
from broker.transfer.incoming import IncomingFile, open_file
from broker.transfer.pace import Pace, Patience
from broker.transfer.policy import too_large
from broker.transfer.sniffing import FileTypes
from broker.upstream.coze import StoredFile

STORE_WAIT_SECONDS = 20.0
"""Longer than the store's own limits, and than the wait for the same request to be over."""
KEPT_BYTES = 65_536
"""A file this small is read whole before Coze hears of it, and can be sent again."""


async def relay_file(request: Request, caller: Caller, *, forms_only: bool = False) -> Upload:
    """Take the request's file to Coze; with an ``Idempotency-Key``, once however often it is sent.

    Raises a refusal at whatever step fails; Coze then has no file, or it is not known whether it has.
    """
    broker = services(request)
    reserved = _reserved_bytes(request, caller)
    caller, _ = await gate.enter(broker, caller, size=reserved if caller.token is None else 0)
    try:
        async with held(broker.leases, broker.quotas.of_uploads(caller)):
            return await _relay(request, _grant(broker, caller, forms_only=forms_only))
    finally:
        await _settle(broker, caller, reserved)


async def _relay(request: Request, grant: Grant) -> Upload:
    broker = services(request)
    key = idempotency.key_of(request.headers)
    of_token = grant.token.sha256 if grant.token else None
    sha256 = announced_sha256(request.headers.get("repr-digest"), of_token)
    pace = Pace(_patience(broker), _seconds_to_finish(grant))
    request.state.client_left = pace.client_left
    with broker.admission.admitted(), broker.watch.over(grant.caller, pace):
        async with pace.kept():
            delivery = await _opened(request, grant, pace, sha256)
            return await (deliver(delivery) if key is None else _deliver_once(delivery, key))


async def _opened(request: Request, grant: Grant, pace: Pace, sha256: str | None) -> Delivery:
    """The file's head, or all of a small file, held against whatever is known before Coze hears of it."""
    broker = services(request)
    body, signed = _body(request, pace)
    file = await open_file(request.headers, body, max_bytes=grant.max_bytes, forms_only=grant.forms_only)
    _check_type(file, grant)
    called_sensitive = is_sensitive(request, file, grant.token)
    _check_content(file, grant, broker.policy.file_types)
    await file.keep(KEPT_BYTES)
    _check_kept(file, grant, sha256)
    if file.kept and signed is not None:
        await signed.finish()
    # By its new name, too, where it got one; it stays what it was.
    sensitive = is_sensitive(request, file, grant.token) or called_sensitive
    return Delivery(broker, grant, pace, file, sha256, sensitive, signed)


def _body(request: Request, pace: Pace) -> tuple[AsyncIterator[bytes], BodyDigest | None]:
    """The body's pieces, and what holds them against the request's signature where it has one."""
    pieces, sha256 = stream(request, pace.received), body_sha256_of(request)
    if sha256 is None:
        return pieces, None
    signed = BodyDigest(pieces, sha256)
    return signed, signed


async def _deliver_once(delivery: Delivery, key: str) -> Upload:
    """The file's delivery, unless it was made before under the same key: then its outcome."""
    records, grant = delivery.broker.idempotency, delivery.grant
    delivery.pace.wait_for("store")
    name = idempotency.name_of(key, key_id=grant.key_id, subject=grant.subject)
    begun = await records.begin(name, idempotency.fingerprint_of(delivery.file.file_name))
    if not isinstance(begun, Begun):
        delivery.pace.wait_for("client")
        if await _read(delivery) != begun.sha256:
            raise IdempotencyKeyReused
        return _upload(idempotency.answer_of(begun))

    async def work() -> dict[str, Any]:
        return asdict(await deliver(delivery, lambda sha256: records.commit(begun, sha256)))

    return _upload(await idempotency.once(records, begun, work))


async def _read(delivery: Delivery) -> str:
    """The digest of a file that goes nowhere: Coze has it already, or may have."""
    digest, size = hashlib.sha256(), 0
    async for piece in delivery.file:
        size += len(piece)
        if size > delivery.grant.max_bytes:
            raise too_large(delivery.grant.max_bytes)
        digest.update(piece)
    events.current().bytes_received = size
    if delivery.sha256 not in (None, digest.hexdigest()):
        raise DigestMismatch
    return digest.hexdigest()


async def _settle(broker: Services, caller: Caller, reserved: int) -> None:
    """Bytes that were reserved and did not come may be sent another time. A token that is still good keeps
    what was reserved for it.
    """
    event, token = events.current(), caller.token
    if token is not None and not event.token_spent:
        return
    held_seconds = time.time() - token.issued_at if token else time.monotonic() - event.started
    used = event.bytes_received or 0
    await gate.settle(broker, caller, reserved=reserved, used=used, held_seconds=held_seconds)


def _grant(broker: Services, caller: Caller, *, forms_only: bool) -> Grant:
    return Grant(caller, _max_bytes(broker, caller), forms_only=forms_only)


def _max_bytes(broker: Services, caller: Caller) -> int:
    """By the policy, by the key or token, and by what the caller may have at all."""
    of_token = None if caller.token is None else caller.token.max_bytes
    of_limits = [] if caller.token else [limit.quota for limit in broker.quotas.of_bytes(caller, 0)]
    bounds = (broker.policy.max_upload_bytes, caller.rights.max_bytes, of_token, *of_limits)
    return min(bound for bound in bounds if bound is not None)


def _reserved_bytes(request: Request, caller: Caller) -> int:
    """What counts against limits of bytes until it is known better. For a token that was done at mint; a file
    of which nobody says how large it is counts for as much as could pass.
    """
    if caller.token is not None:
        return caller.token.max_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        return int(declared)
    return _max_bytes(services(request), caller)


def _upload(answer: dict[str, Any]) -> Upload:
    return Upload(**{**answer, "stored": StoredFile(**answer["stored"])})


def _check_type(file: IncomingFile, grant: Grant) -> None:
    """A token that was issued for a type is good for that type alone; a key for those of its rights."""
    granted = grant.token.content_types if grant.token else grant.caller.rights.content_types
    if granted and not is_one_of(file.content_type, granted):
        whose = "token was issued" if grant.token else "key is"
        raise TypeNotGranted(f"The {whose} for {', '.join(granted)}. Send that, or use another one.")


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


def _seconds_to_finish(grant: Grant) -> float | None:
    return None if grant.token is None else grant.token.finish_by - time.time()


def _patience(broker: Services) -> Patience:
    settings = broker.settings
    connect, read = settings.broker_connect_timeout_seconds, settings.broker_read_timeout_seconds
    return Patience(
        client=settings.broker_client_idle_seconds,
        slot=settings.broker_pool_wait_seconds,
        turn=settings.broker_upstream_wait_seconds + 1,
        store=STORE_WAIT_SECONDS,
        credential=settings.broker_upstream_retry_seconds + connect + read + 1,
        connection=connect + 1,
        upstream=read,
        answer=read,
        scanner=settings.broker_scanner_timeout_seconds,
        client_bytes_per_second=settings.broker_min_bytes_per_second,
    )
