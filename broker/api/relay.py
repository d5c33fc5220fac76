"""Coze's own paths, so that an official client works with the broker as its base URL.

Answers and errors come in Coze's envelope; the caller's API key stands where Coze's token would.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.api import gate
from broker.api.idempotency import replayed_header
from broker.api.journey import relay_file
from broker.api.services import services
from broker.auth.scopes import FILES_READ, FILES_UPLOAD
from broker.errors import InvalidRequest
from broker.observe import events
from broker.upstream.coze import StoredFile

FILE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


async def upload(request: Request) -> JSONResponse:
    """POST /v1/files/upload."""
    broker = services(request)
    events.current().action = "upload"
    caller = await broker.authenticator.server(request, FILES_UPLOAD)
    uploaded = await relay_file(request, caller, forms_only=True)
    return _envelope(uploaded.stored, uploaded.file_name, replayed_header())


async def retrieve(request: Request) -> JSONResponse:
    """GET /v1/files/retrieve?file_id=…"""
    broker = services(request)
    caller = await broker.authenticator.server(request, FILES_READ)
    await gate.enter(broker, caller)
    file_id = request.query_params.get("file_id", "")
    if not FILE_ID.fullmatch(file_id):
        raise InvalidRequest("Give the file's id as the query parameter file_id.")
    stored = await broker.files.retrieve(file_id)
    events.current().logid = stored.logid
    return _envelope(stored, stored.file_name)


def _envelope(
    stored: StoredFile, file_name: str, headers: Mapping[str, str] = MappingProxyType({})
) -> JSONResponse:
    logid = stored.logid or events.current().request_id
    data: dict[str, Any] = {
        "id": stored.file_id,
        "bytes": stored.size,
        "created_at": stored.created_at,
        "file_name": stored.file_name or file_name,
    }
    return JSONResponse(
        {"code": 0, "msg": "", "data": data, "detail": {"logid": logid}},
        headers={"X-Tt-Logid": logid, **headers},
    )
