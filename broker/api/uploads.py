"""POST /proxy/upload: a file comes in, goes to Coze as it comes, and its ``file_id`` comes out."""

from __future__ import annotations

import time
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.api.bodies import stream
from broker.api.services import Services, services
from broker.api.tokens import NO_STORE
from broker.auth.api_keys import ApiKey
from broker.auth.upload_tokens import LEEWAY_SECONDS, UploadToken
from broker.errors import TokenUsed, TypeNotGranted
from broker.observe import events
from broker.transfer import filenames
from broker.transfer.incoming import IncomingFile, open_file
from broker.transfer.multipart import Envelope
from broker.transfer.outgoing import OutgoingBody
from broker.transfer.pace import Pace, Patience
from broker.upstream.coze import StoredFile

CLAIM_MARGIN_SECONDS = 60


@dataclass(frozen=True)
class Grant:
    """What this upload may do, whichever credential says so."""

    max_bytes: int
    subject: str | None = None
    token: UploadToken | None = None


@dataclass(frozen=True)
class Upload:
    """A file that Coze confirmed."""

    stored: StoredFile
    file_name: str
    sha256: str


async def proxy_upload(request: Request) -> JSONResponse:
    """The proxy route, for a browser with a token or a server with a key."""
    broker = services(request)
    caller = await broker.authenticator.uploader(request.headers)
    grant = _grant(caller, broker.policy.max_upload_bytes)
    upload = await relay_file(request, grant)
    event = events.current()
    receipt = broker.receipts.sign(
        file_id=upload.stored.file_id,
        file_name=upload.file_name,
        size=upload.stored.size,
        sha256=upload.sha256,
        subject=grant.subject,
        route="proxy",
    )
    answer = {
        "file_id": upload.stored.file_id,
        "file_name": upload.file_name,
        "bytes": upload.stored.size,
        "created_at": upload.stored.created_at or int(time.time()),
        "sha256": upload.sha256,
        "route": "proxy",
        "logid": upload.stored.logid,
        "request_id": event.request_id,
        "receipt": receipt,
    }
    return JSONResponse(answer, headers=NO_STORE)


async def relay_file(request: Request, grant: Grant) -> Upload:
    """The journey of a file: read its head, spend the token, pull it through to Coze.

    Raises a refusal at whatever step fails; Coze then has no file, or it is not known whether it has.
    """
    broker = services(request)
    pace = Pace(_patience(broker), _seconds_to_finish(grant))
    async with pace.kept():
        file = await open_file(request.headers, stream(request), max_bytes=grant.max_bytes)
        _check_type(file, grant)
        await _spend(broker, grant)
        pace.wait_for("slot")
        async with broker.files.slots:
            return await _send(broker, file, grant, pace)


async def _send(broker: Services, file: IncomingFile, grant: Grant, pace: Pace) -> Upload:
    pace.wait_for("answer")
    authorization = await broker.files.authorization()
    envelope = Envelope.around(file.file_name, filenames.content_type_of(file.file_name))
    sha256 = grant.token.sha256 if grant.token else None
    body = OutgoingBody(file, envelope, pace, max_bytes=grant.max_bytes, sha256=sha256)
    pace.wait_for("connection")
    stored = await broker.files.upload(body, envelope, authorization)
    event = events.current()
    event.route, event.file_id, event.logid = "proxy", stored.file_id, stored.logid
    return Upload(stored, file.file_name, body.sha256)


def _grant(caller: ApiKey | UploadToken, max_upload_bytes: int) -> Grant:
    if isinstance(caller, ApiKey):
        return Grant(max_bytes=max_upload_bytes)
    return Grant(min(caller.max_bytes, max_upload_bytes), caller.subject, caller)


def _check_type(file: IncomingFile, grant: Grant) -> None:
    """A token that was issued for a type is good for that type alone."""
    granted = grant.token.content_types if grant.token else None
    if granted is not None and file.content_type not in granted:
        raise TypeNotGranted(
            f"The token was issued for {', '.join(granted)}. Send that, or get another token."
        )


async def _spend(broker: Services, grant: Grant) -> None:
    """Use the token up, before Coze hears of the file: of two who come with it, one gets in."""
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
    return Patience(
        client=settings.broker_client_idle_seconds,
        slot=settings.broker_pool_wait_seconds,
        connection=settings.broker_connect_timeout_seconds + 1,
        upstream=settings.broker_read_timeout_seconds,
        answer=settings.broker_read_timeout_seconds,
    )
