"""POST /proxy/upload: a file comes in, goes to Coze as it comes, and its ``file_id`` comes out."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.api.delivery import Upload
from broker.api.idempotency import replayed_header
from broker.api.journey import relay_file
from broker.api.rendering import NO_STORE
from broker.api.services import services
from broker.auth.receipts import Receipts
from broker.observe import events


async def proxy_upload(request: Request) -> JSONResponse:
    """The proxy route, for a browser with a token or a server with a key."""
    broker = services(request)
    events.current().action = "upload"
    caller = await broker.authenticator.uploader(request)
    upload = await relay_file(request, caller)
    answer = _answer(upload, _receipt(broker.receipts, upload, caller.subject))
    return JSONResponse(answer, headers=NO_STORE | replayed_header())


def _receipt(receipts: Receipts, upload: Upload, subject: str | None) -> str:
    return receipts.sign(
        file_id=upload.stored.file_id,
        file_name=upload.file_name,
        size=upload.stored.size,
        sha256=upload.sha256,
        subject=subject,
        route="proxy",
        issued_at=upload.stored_at,
    )


def _answer(upload: Upload, receipt: str) -> dict[str, Any]:
    return {
        "file_id": upload.stored.file_id,
        "file_name": upload.file_name,
        "bytes": upload.stored.size,
        "created_at": upload.stored.created_at,
        "sha256": upload.sha256,
        "route": "proxy",
        "logid": upload.stored.logid,
        "request_id": upload.request_id,
        "receipt": receipt,
    }
