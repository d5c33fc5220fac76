"""What one writes first: the form spooled to disk by Starlette, then sent on with httpx.

``python -m tests.bench.naive PORT SINK_URL``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def make_app(sink_url: str) -> Starlette:
    """An app whose ``/proxy/upload`` goes by way of ``UploadFile``; its ``/bare`` is JSON in, JSON out."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with httpx.AsyncClient(timeout=600) as client:
            yield {"client": client}

    async def upload(request: Request) -> JSONResponse:
        async with request.form() as form:
            file: Any = form["file"]
            sent = (file.filename, file.file, file.content_type)
            answer = await request.state.client.post(f"{sink_url}/v1/files/upload", files={"file": sent})
        return JSONResponse(answer.json())

    async def bare(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    return Starlette(
        routes=[Route("/proxy/upload", upload, methods=["POST"]), Route("/bare", bare, methods=["POST"])],
        lifespan=lifespan,
    )


if __name__ == "__main__":
    uvicorn.run(
        make_app(sys.argv[2]), port=int(sys.argv[1]), log_level="error", access_log=False, backlog=4096
    )
