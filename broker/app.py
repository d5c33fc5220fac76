"""The application: its routes, and what stands around every request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from broker.api import completion, issued_tokens, keys, pat, relay, status, tokens, uploads
from broker.api.middleware import LastResort, OneSlash, RequestRecord
from broker.api.rendering import refusal_response
from broker.assembly import assembled
from broker.errors import Refusal
from broker.observe import logs
from broker.settings import Settings, warnings

PAT = "/api/permission_api/pat"
"""Where Coze Studio's console manages tokens."""
ROUTES = (
    Route("/token", tokens.mint, methods=["POST"]),
    Route("/token/introspect", issued_tokens.introspect, methods=["POST"]),
    Route("/token/revoke", issued_tokens.revoke, methods=["POST"]),
    Route("/proxy/upload", uploads.proxy_upload, methods=["POST"]),
    Route("/uploads/{upload_id}/complete", completion.complete, methods=["POST"]),
    Route("/v1/files/upload", relay.upload, methods=["POST"]),
    Route("/v1/files/retrieve", relay.retrieve, methods=["GET"]),
    Route("/keys", keys.Keys),
    Route("/keys/{key_id}", keys.Key),
    Route("/keys/{key_id}/rotate", keys.rotate, methods=["POST"]),
    Route(f"{PAT}/create_personal_access_token_and_permission", pat.create, methods=["POST"]),
    Route(f"{PAT}/list_personal_access_tokens", pat.list_, methods=["GET"]),
    Route(f"{PAT}/get_personal_access_token_and_permission", pat.get, methods=["GET"]),
    Route(f"{PAT}/update_personal_access_token_and_permission", pat.update, methods=["POST"]),
    Route(f"{PAT}/delete_personal_access_token_and_permission", pat.delete, methods=["POST"]),
    Route("/api/v1/test/connection", status.test_connection, methods=["GET"]),
    Route("/.well-known/jwks.json", status.jwks),
    Route("/health", status.health),
    Route("/ready", status.ready),
    Route("/docs", status.docs),
    Route("/openapi.json", status.openapi),
    Route("/", status.index),
)
CORS_METHODS = ("GET", "POST")
CORS_REQUEST_HEADERS = (
    "Authorization",
    "Content-Disposition",
    "Content-Type",
    "Idempotency-Key",
    "Repr-Digest",
    "X-Coze-Client-User-Agent",
    "X-Upload-Sensitive",
)
CORS_ANSWER_HEADERS = (
    "Idempotency-Replayed",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
    "X-Tt-Logid",
)


def create_app(settings: Settings) -> Starlette:
    """The broker for these settings, which must be checked ones (see ``settings.load``)."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        for sentence in warnings(settings):
            logs.warning("unwise setting", detail=sentence)
        async with assembled(settings) as services:
            yield {"services": services}

    app = Starlette(
        routes=[*ROUTES, Mount("/static", StaticFiles(directory=status.static_dir()))],
        middleware=_middleware(settings),
        exception_handlers={Refusal: refusal_response, HTTPException: refusal_response},
        lifespan=lifespan,
    )
    # The redirect would be built from the Host header, and a client that follows it repeats its credential.
    app.router.redirect_slashes = False
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    """From the outside in."""
    return [
        Middleware(OneSlash),
        Middleware(RequestRecord, trusted_proxies=settings.broker_trusted_proxies),
        Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_ANSWER_HEADERS,
            # Whose pages may call is said by name, so it need not matter where they came from.
            allow_private_network=True,
        ),
        Middleware(LastResort),
    ]
