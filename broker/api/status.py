"""What is not an upload: the page, health, readiness, whether Coze can be reached, the documentation."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from broker import __version__
from broker.api import gate
from broker.api.rendering import NO_STORE
from broker.api.services import Services, services
from broker.errors import Refusal
from broker.settings import origin_of

PACKAGE = Path(__file__).parent.parent
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NO_CACHE = {"Cache-Control": "no-cache"}


def static_dir() -> Path:
    """The folder of the page and the helper: inside an installed package, or beside it in a checkout."""
    installed = PACKAGE / "web" / "static"
    return installed if installed.is_dir() else PACKAGE.parent / "web" / "static"


async def index(request: Request) -> Response:
    """The page; or, for a client that asks for JSON, what the page needs to know."""
    broker = services(request)
    if _wants_json(request):
        return JSONResponse(_status(broker), headers={**NO_CACHE, "Vary": "Accept"})
    headers = {**NO_CACHE, "Vary": "Accept", "Content-Security-Policy": _page_policy(broker)}
    return FileResponse(static_dir() / "index.html", headers=headers)


async def health(_: Request) -> JSONResponse:
    """Whether the process lives."""
    return JSONResponse({"status": "ok"}, headers=NO_CACHE)


async def ready(request: Request) -> JSONResponse:
    """Whether it can serve: 200 when it can, 503 with the failing check when it can't."""
    broker = services(request)
    checks = {"store": await _check(broker.database.ping), "audit": await _check(broker.audit.ping)}
    if broker.redis is not None:
        checks["redis"] = await _check(broker.redis.ping)
    if broker.scanner is not None:
        checks["scanner"] = await _check(broker.scanner.ping)
    is_ready = all(result == "ok" for result in checks.values())
    # Told, and no check: every broker sees the same Coze, so that a balancer that took one away for it would
    # take them all, with their answers that say why; and what needs no Coze would be gone, too.
    answer = {"ready": is_ready, "checks": checks, "coze": broker.reachability.glance()}
    return JSONResponse(answer, 200 if is_ready else 503, headers=NO_CACHE)


async def test_connection(request: Request) -> JSONResponse:
    """Whether Coze can be reached, and the step of the way that fails: for any key of a server's."""
    broker = services(request)
    await gate.enter(broker, await broker.authenticator.server(request, None))
    reach = await broker.reachability.look()
    answer = {"success": reach.reachable, "message": reach.sentence, "data": reach.as_json(broker.settings)}
    return JSONResponse(answer, headers=NO_STORE)


async def jwks(request: Request) -> JSONResponse:
    """The public keys that receipts verify with."""
    return JSONResponse(services(request).ring.jwks, headers={"Cache-Control": "public, max-age=300"})


async def docs(_: Request) -> FileResponse:
    """The API's documentation, from our own host."""
    headers = {**NO_CACHE, "Content-Security-Policy": DOCS_POLICY}
    return FileResponse(static_dir() / "docs" / "index.html", headers=headers)


async def openapi(_: Request) -> JSONResponse:
    """The contract, as JSON."""
    return JSONResponse(contract(), headers=NO_CACHE)


@functools.cache
def contract() -> dict[str, Any]:
    """``openapi.yaml`` with this version's number."""
    document: dict[str, Any] = yaml.safe_load((PACKAGE / "openapi.yaml").read_text(encoding="utf-8"))
    document["info"]["version"] = __version__
    return document


def _status(broker: Services) -> dict[str, Any]:
    return {
        "service": "coze-upload-broker",
        "version": __version__,
        "upstream": broker.settings.coze_api_base,
        "direct_available": broker.browser_app is not None,
        "direct_max_bytes": broker.policy.direct_max_bytes,
        "max_upload_bytes": broker.policy.max_upload_bytes,
        "publishable_key": broker.settings.broker_page_publishable_key,
    }


async def _check(ping: Callable[[], Awaitable[None]]) -> str:
    try:
        await ping()
    except Refusal as refusal:
        return refusal.code
    return "ok"


def _wants_json(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/html" not in accept


def _page_policy(broker: Services) -> str:
    """The page may talk to the broker and to Coze, and to nobody else."""
    coze = origin_of(broker.settings.coze_api_base)
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src 'self' {coze}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
