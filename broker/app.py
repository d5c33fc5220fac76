"""The application: the only module that knows all others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from broker import opening
from broker.api import relay, status, tokens, uploads
from broker.api.middleware import LastResort, OneSlash, RequestRecord
from broker.api.rendering import refusal_response
from broker.api.services import Services
from broker.auth import receipts, signing_keys, upload_tokens
from broker.auth.authenticate import Authenticator
from broker.errors import Refusal
from broker.observe import logs, snapshot
from broker.scanning.clamd import Clamd
from broker.settings import Settings, warnings
from broker.state.counters import DatabaseClaims
from broker.state.database import Database
from broker.state.idempotency import IdempotencyRecords
from broker.transfer.admission import Admission
from broker.transfer.policy import Policy
from broker.transfer.sensitivity import Sensitivity
from broker.transfer.sniffing import FileTypes
from broker.upstream.client import make_client
from broker.upstream.coze import CozeFiles
from broker.upstream.oauth import AppCredential, Credential, FixedCredential, TokenExchange

ROUTES = (
    Route("/token", tokens.mint, methods=["POST"]),
    Route("/proxy/upload", uploads.proxy_upload, methods=["POST"]),
    Route("/v1/files/upload", relay.upload, methods=["POST"]),
    Route("/v1/files/retrieve", relay.retrieve, methods=["GET"]),
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
        database = Database(settings.resolved_database_url)
        client = _client(settings)
        try:
            await database.migrate()
            yield {"services": make_services(settings, database, client)}
        finally:
            await client.aclose()
            await database.close()

    app = Starlette(
        routes=[*ROUTES, Mount("/static", StaticFiles(directory=status.static_dir()))],
        middleware=_middleware(settings),
        exception_handlers={Refusal: refusal_response, HTTPException: refusal_response},
        lifespan=lifespan,
    )
    # The redirect would be built from the Host header, and a client that follows it repeats its credential.
    app.router.redirect_slashes = False
    return app


def make_services(settings: Settings, database: Database, client: httpx.AsyncClient) -> Services:
    """Everything that the endpoints work with, put together."""
    ring = signing_keys.load(_secret(settings.broker_signing_keys), settings.broker_data_dir)
    exchange = TokenExchange(client, settings.coze_host)
    proxy_tokens = upload_tokens.UploadTokens(ring, settings.public_url)
    return Services(
        settings=settings,
        policy=_policy(settings),
        database=database,
        claims=DatabaseClaims(database),
        idempotency=IdempotencyRecords(database, ttl_seconds=settings.broker_idempotency_ttl_seconds),
        admission=_admission(settings),
        ring=ring,
        authenticator=Authenticator(opening.api_keys(settings, database), proxy_tokens),
        tokens=proxy_tokens,
        receipts=receipts.Receipts(ring, settings.public_url),
        exchange=exchange,
        browser_app=settings.browser_app,
        files=CozeFiles(client, _credential(settings, exchange)),
        scanner=_scanner(settings),
    )


def _middleware(settings: Settings) -> list[Middleware]:
    """From the outside in."""
    return [
        Middleware(OneSlash),
        Middleware(RequestRecord),
        Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_ANSWER_HEADERS,
        ),
        Middleware(LastResort),
    ]


def _admission(settings: Settings) -> Admission:
    admission = Admission(
        max_running=settings.broker_max_upstream_connections,
        max_inflight=settings.broker_max_inflight_uploads,
        max_inflight_per_key=settings.broker_max_inflight_uploads_per_key,
    )
    snapshot.count("uploads_in_flight", lambda: admission.inflight)
    snapshot.count("uploads_running", lambda: admission.running)
    snapshot.count("uploads_waiting", lambda: admission.waiting)
    return admission


def _policy(settings: Settings) -> Policy:
    return Policy(
        direct_max_bytes=settings.broker_direct_max_bytes,
        max_upload_bytes=settings.broker_max_upload_bytes,
        default_ttl_seconds=settings.broker_token_ttl_seconds,
        max_ttl_seconds=settings.broker_token_max_ttl_seconds,
        has_browser_app=settings.browser_app is not None,
        sensitivity=Sensitivity(
            types=settings.broker_sensitive_types,
            names=settings.broker_sensitive_names,
            everything=settings.broker_scan == "all",
        ),
        scan_max_bytes=settings.broker_scanner_max_bytes if settings.broker_scanner else None,
        file_types=FileTypes(settings.file_types, settings.broker_content_mismatch),
    )


def _scanner(settings: Settings) -> Clamd | None:
    if not settings.broker_scanner:
        return None
    return Clamd(settings.scanner_address, max_bytes=settings.broker_scanner_max_bytes)


def _credential(settings: Settings, exchange: TokenExchange) -> Credential:
    if settings.server_app is not None:
        return AppCredential(exchange, settings.server_app)
    return FixedCredential(_secret(settings.coze_api_token) or "")


def _client(settings: Settings) -> httpx.AsyncClient:
    return make_client(
        settings.coze_api_base,
        connect_timeout_seconds=settings.broker_connect_timeout_seconds,
        read_timeout_seconds=settings.broker_read_timeout_seconds,
    )


def _secret(value: Any) -> str | None:
    return None if value is None else value.get_secret_value()
