"""POST /uploads/{upload_id}/complete: a receipt for a file that went past the broker, if Coze confirms it."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.api import gate
from broker.api.bodies import read_json
from broker.api.file_owners import CLOCK_MARGIN_SECONDS, own, seconds_of_interest
from broker.api.rendering import NO_STORE
from broker.api.services import Services, services
from broker.auth.completion_tokens import CompletionToken
from broker.errors import (
    BadFileName,
    FileMismatch,
    InvalidCredential,
    InvalidRequest,
    NotFound,
)
from broker.observe import events
from broker.transfer import filenames
from broker.upstream.coze import StoredFile


class Completion(BaseModel):
    """What a page reports of an upload that it made."""

    model_config = ConfigDict(extra="forbid", strict=True)

    file_id: str = Field(pattern="^[A-Za-z0-9_-]{1,64}$")


async def complete(request: Request) -> JSONResponse:
    """Hold what the page says against what its token announced and what Coze has; then sign it."""
    broker = services(request)
    events.current().action = "upload.complete"
    token = await _token(broker, request)
    reported = await read_json(request, Completion)
    stored = await _confirmed(broker, token, reported.file_id)
    return JSONResponse(_answer(broker, token, stored), headers=NO_STORE)


async def _token(broker: Services, request: Request) -> CompletionToken:
    caller = await broker.authenticator.completer(request)
    await gate.enter(broker, caller)
    token = caller.completion
    assert token is not None  # noqa: S101 - the one credential that gets here
    event = events.current()
    event.route, event.bytes_declared = "direct", token.size
    if request.path_params["upload_id"] != token.upload_id:
        raise InvalidCredential("The token is for another upload.", log="completion token for another upload")
    return token


async def _confirmed(broker: Services, token: CompletionToken, file_id: str) -> StoredFile:
    """The file as Coze has it, which is now this upload's and no other's.

    An upload can name one file only, so that nobody tries file after file; and that before Coze is asked.
    A file becomes an upload's only once it fits: naming it keeps nobody else from it.
    """
    events.current().file_id = file_id
    seconds = seconds_of_interest(broker)
    if not await broker.holds.hold(f"complete:{token.upload_id}", file_id, ttl_seconds=seconds):
        raise FileMismatch("Another file_id was reported for this upload before.")
    stored = await _looked_up(broker, file_id)
    difference = difference_between(token, stored)
    if difference is not None:
        raise FileMismatch(log=difference)
    if not await own(broker, file_id, token.upload_id):
        raise FileMismatch("This file is another upload's.")
    return stored


async def _looked_up(broker: Services, file_id: str) -> StoredFile:
    try:
        stored = await broker.files.retrieve(file_id)
    except (NotFound, InvalidRequest) as error:
        raise FileMismatch(log=f"Coze has no such file: {error.log}", logid=error.logid) from error
    events.current().logid = stored.logid
    if stored.file_id != file_id:
        raise FileMismatch(log=f"Coze answered with another file, {stored.file_id}", logid=stored.logid)
    return stored


def difference_between(token: CompletionToken, stored: StoredFile) -> str | None:
    """What tells the file at Coze from the one that the token was minted for; None when nothing does."""
    if stored.size != token.size:
        return f"Coze has {stored.size} bytes, {token.size} were announced"
    if stored.created_at < token.issued_at - CLOCK_MARGIN_SECONDS:
        return f"Coze has the file since {token.issued_at - stored.created_at} s before its token was minted"
    if token.file_name is not None and _cleaned(stored.file_name) != token.file_name:
        return "Coze has the file under another name than was announced"
    return None


def _cleaned(name: str) -> str | None:
    try:
        return filenames.clean(name)
    except BadFileName:
        return None


def _answer(broker: Services, token: CompletionToken, stored: StoredFile) -> dict[str, Any]:
    # Dated by the file, so that who asks again gets the same receipt.
    issued_at = min(stored.created_at, int(time.time()))
    receipt = broker.receipts.sign(
        file_id=stored.file_id,
        file_name=stored.file_name,
        size=stored.size,
        sha256=None,
        subject=token.subject,
        route="direct",
        issued_at=issued_at,
    )
    return {
        "file_id": stored.file_id,
        "file_name": stored.file_name,
        "bytes": stored.size,
        "created_at": stored.created_at,
        "route": "direct",
        "logid": stored.logid,
        "request_id": events.current().request_id,
        "receipt": receipt,
    }
