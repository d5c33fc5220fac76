"""The journey of a file through the broker, whichever path it came by: let it in, read its head, hold it
against the policy, then deliver it, or say what became of it when it came before.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from typing import Any

from starlette.requests import Request

from broker.api import idempotency
from broker.api.bodies import stream
from broker.api.delivery import Delivery, Grant, Upload, deliver
from broker.api.sensitive import is_sensitive
from broker.api.services import Services, services
from broker.errors import DigestMismatch, IdempotencyKeyReused, TypeNotGranted
from broker.observe import events
from broker.state.idempotency import Begun
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
            called_sensitive = is_sensitive(request, file, grant.token)
            _check_content(file, grant, broker.policy.file_types)
            await file.keep(KEPT_BYTES)
            _check_kept(file, grant, sha256)
            # By its new name, too, where it got one; it stays what it was.
            sensitive = is_sensitive(request, file, grant.token) or called_sensitive
            delivery = Delivery(broker, grant, pace, file, sha256, sensitive)
            return await (deliver(delivery) if key is None else _deliver_once(delivery, key))


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


def _seconds_to_finish(grant: Grant) -> float | None:
    return None if grant.token is None else grant.token.finish_by - time.time()


def _patience(broker: Services) -> Patience:
    settings = broker.settings
    connect, read = settings.broker_connect_timeout_seconds, settings.broker_read_timeout_seconds
    return Patience(
        client=settings.broker_client_idle_seconds,
        slot=settings.broker_pool_wait_seconds,
        store=STORE_WAIT_SECONDS,
        credential=connect + read + 1,
        connection=connect + 1,
        upstream=read,
        answer=read,
        scanner=settings.broker_scanner_timeout_seconds,
        client_bytes_per_second=settings.broker_min_bytes_per_second,
    )
