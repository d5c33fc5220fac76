"""The journey of a file through the broker, whichever path it came by: read its head, get all that is
needed to send it, spend its token, pull it through to Coze.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from starlette.requests import Request

from broker.api.bodies import stream
from broker.api.services import Services, services
from broker.auth.upload_tokens import LEEWAY_SECONDS, UploadToken
from broker.errors import TokenUsed, TypeNotGranted
from broker.observe import events
from broker.transfer import filenames
from broker.transfer.incoming import IncomingFile, open_file
from broker.transfer.multipart import Envelope
from broker.transfer.outgoing import OutgoingBody
from broker.transfer.pace import Pace, Patience
from broker.transfer.sniffing import FileTypes
from broker.upstream.coze import StoredFile

CLAIM_MARGIN_SECONDS = 60


@dataclass(frozen=True)
class Grant:
    """What this upload may do, whichever credential says so."""

    max_bytes: int
    subject: str | None = None
    token: UploadToken | None = None
    forms_only: bool = False


@dataclass(frozen=True)
class Upload:
    """A file that Coze confirmed."""

    stored: StoredFile
    file_name: str
    sha256: str


async def relay_file(request: Request, grant: Grant) -> Upload:
    """Take the request's file to Coze.

    Raises a refusal at whatever step fails; Coze then has no file, or it is not known whether it has.
    The token is spent last of all before Coze hears of the file, so that nothing else can waste it.
    """
    broker = services(request)
    pace = Pace(_patience(broker), _seconds_to_finish(grant))
    async with pace.kept():
        file = await open_file(
            request.headers, stream(request), max_bytes=grant.max_bytes, forms_only=grant.forms_only
        )
        _check_type(file, grant)
        _check_content(file, grant, broker.policy.file_types)
        pace.wait_for("slot")
        async with broker.files.slots:
            pace.wait_for("credential")
            authorization = await broker.files.authorization()
            await _spend(broker, grant)
            return await _send(broker, file, grant, pace, authorization)


async def _send(broker: Services, file: IncomingFile, grant: Grant, pace: Pace, authorization: str) -> Upload:
    envelope = Envelope.around(file.file_name, filenames.content_type_of(file.file_name))
    sha256 = grant.token.sha256 if grant.token else None
    body = OutgoingBody(file, envelope, pace, max_bytes=grant.max_bytes, sha256=sha256)
    pace.wait_for("connection")
    stored = await broker.files.upload(body, envelope, authorization)
    event = events.current()
    event.route, event.file_id, event.logid = "proxy", stored.file_id, stored.logid
    return Upload(stored, file.file_name, body.sha256)


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
        credential=connect + read + 1,
        connection=connect + 1,
        upstream=read,
        answer=read,
        client_bytes_per_second=settings.broker_min_bytes_per_second,
    )
