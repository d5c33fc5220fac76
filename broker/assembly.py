"""Everything that the endpoints work with, put together and taken apart again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncConnection

from broker import opening
from broker.api import file_owners
from broker.api.services import Services
from broker.api.watch import Watch
from broker.auth.api_keys import ApiKey, ApiKeys, Witness
from broker.auth.authenticate import Authenticator
from broker.auth.completion_tokens import CompletionTokens
from broker.auth.failures import Failures
from broker.auth.oidc import IdTokens, make_id_tokens
from broker.auth.quotas import Quotas
from broker.auth.receipts import Receipts
from broker.auth.sealing import Sealer
from broker.auth.secrets_on_disk import derived
from broker.auth.signatures import SignedRequests
from broker.auth.standing import Standing
from broker.auth.upload_tokens import UploadTokens
from broker.doctor.reachability import Reachability
from broker.observe import events, snapshot
from broker.observe.events import Action
from broker.scanning.clamd import Clamd
from broker.settings import Settings
from broker.state import leases, limits
from broker.state.audit.log import AuditLog
from broker.state.audit.row import of_event
from broker.state.audit.writer import Audit
from broker.state.claims import Claims, DatabaseClaims, RedisClaims
from broker.state.database import Database
from broker.state.idempotency import IdempotencyRecords
from broker.state.leases import Leases
from broker.state.limits import Limit, Limits
from broker.state.redis import Redis
from broker.state.revocations import Revocations
from broker.transfer.admission import Admission
from broker.transfer.policy import Policy
from broker.transfer.sensitivity import Sensitivity
from broker.transfer.sniffing import FileTypes
from broker.upstream.breaker import Breaker
from broker.upstream.coze import CozeFiles
from broker.upstream.guard import Guard, log_change
from broker.upstream.oauth import AppCredential, Credential, FixedCredential, TokenExchange
from broker.upstream.pause import Pause
from broker.upstream.way import Way


@asynccontextmanager
async def assembled(settings: Settings) -> AsyncIterator[Services]:
    """The services for these settings, opened; closed in the opposite order, so that what others still need
    goes last.
    """
    async with AsyncExitStack() as stack:
        database = Database(settings.resolved_database_url)
        stack.push_async_callback(database.close)
        await database.make_ready()
        stack.push_async_callback(file_owners.all_noted)
        redis = opening.redis(settings)
        if redis is not None:
            stack.push_async_callback(redis.close)
            await redis.open()
        client = _client(settings)
        stack.push_async_callback(client.aclose)
        services = _services(settings, database, redis, client)
        if services.authenticator.id_tokens is not None:
            stack.push_async_callback(services.authenticator.id_tokens.aclose)
        stack.push_async_callback(services.reachability.aclose)
        stack.push_async_callback(services.audit.close)
        await services.audit.open()
        await stack.enter_async_context(services.keys.last_use.written_behind())
        await stack.enter_async_context(_running(services.watch))
        yield services


@asynccontextmanager
async def _running(watch: Watch) -> AsyncIterator[None]:
    task = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _services(
    settings: Settings, database: Database, redis: Redis | None, client: httpx.AsyncClient
) -> Services:
    generation = opening.generation(database, redis)
    log = opening.audit_log(settings, database)
    keys = opening.api_keys(settings, database, generation, _witness(log))
    revocations = Revocations(database, ttl_seconds=_longest_life_seconds(settings))
    standing = Standing(keys, revocations)
    ring = opening.ring(settings)
    completions = CompletionTokens(ring, settings.public_url)
    tokens = UploadTokens(ring, settings.public_url)
    claims, holds = _claims(database, redis), DatabaseClaims(database)
    guard = _guard(settings, redis)
    exchange = TokenExchange(client, settings.coze_host, guard)
    return Services(
        settings=settings,
        policy=_policy(settings),
        keys=keys,
        authenticator=_authenticator(settings, keys, tokens, completions, holds),
        standing=standing,
        revocations=revocations,
        generation=generation,
        ring=ring,
        tokens=tokens,
        completions=completions,
        receipts=Receipts(ring, settings.public_url),
        audit=Audit(log, settings.broker_data_dir, spool_bytes=settings.broker_audit_spool_bytes),
        quotas=Quotas.of_settings(settings),
        limits=_limits(redis),
        leases=_leases(redis),
        upstream_limit=_upstream_limit(settings),
        admission=_admission(settings),
        watch=Watch(standing, generation),
        database=database,
        redis=redis,
        claims=claims,
        holds=holds,
        idempotency=IdempotencyRecords(database, ttl_seconds=settings.broker_idempotency_ttl_seconds),
        sealer=Sealer(derived(opening.pepper_of(settings), "idempotent answers")),
        guard=guard,
        exchange=exchange,
        browser_app=settings.browser_app,
        files=CozeFiles(client, _credential(settings, exchange), guard),
        reachability=Reachability(settings, client),
        scanner=_scanner(settings),
    )


# --- who may do what ------------------------------------------------------------------------------------


def _authenticator(
    settings: Settings,
    keys: ApiKeys,
    tokens: UploadTokens,
    completions: CompletionTokens,
    holds: DatabaseClaims,
) -> Authenticator:
    """Nonces are in the database: no epoch guards them when Redis is flushed."""
    return Authenticator(
        keys=keys,
        tokens=tokens,
        completions=completions,
        signatures=SignedRequests(keys, holds, settings.public_url),
        id_tokens=_id_tokens(settings),
        failures=Failures(max_failures=settings.broker_max_failed_credentials),
        allowed_origins=frozenset(settings.allowed_origins),
    )


def _id_tokens(settings: Settings) -> IdTokens | None:
    if not settings.broker_oidc_issuer:
        return None
    return make_id_tokens(settings.broker_oidc_issuer, settings.broker_oidc_audience)


def _witness(log: AuditLog) -> Witness:
    """Puts the row of a change into the change's own transaction: one is not there without the other."""

    async def tell(connection: AsyncConnection, action: Action, key: ApiKey) -> None:
        event = events.current()
        row = of_event(event, action)
        if row is not None:
            await log.append_within(connection, opening.naming(key, row))
            event.audited = True

    return tell


def _longest_life_seconds(settings: Settings) -> int:
    """Of a token with its upload; revocations are kept for as long."""
    longest = max(settings.broker_token_max_ttl_seconds, settings.broker_token_ttl_seconds)
    return longest + settings.broker_upload_max_seconds + 60


# --- how much of it -------------------------------------------------------------------------------------


def _claims(database: Database, redis: Redis | None) -> Claims:
    return DatabaseClaims(database) if redis is None else RedisClaims(redis)


def _limits(redis: Redis | None) -> Limits:
    local = limits.MemoryLimits()
    return local if redis is None else limits.LocalWhenDown(limits.RedisLimits(redis), local)


def _leases(redis: Redis | None) -> Leases:
    local = leases.MemoryLeases()
    return local if redis is None else leases.LocalWhenDown(leases.RedisLeases(redis), local)


def _upstream_limit(settings: Settings) -> Limit | None:
    """In windows long enough for a whole number of uploads."""
    per_second = settings.broker_upstream_uploads_per_second
    if not per_second:
        return None
    window_seconds = 1.0 if per_second >= 1 else 1.0 / per_second
    return Limit("upstream", "uploads", max(1, int(per_second * window_seconds)), window_seconds)


def _admission(settings: Settings) -> Admission:
    admission = Admission(
        max_running=settings.broker_max_upstream_connections,
        max_inflight=settings.broker_max_inflight_uploads,
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


# --- Coze, and the scanner ------------------------------------------------------------------------------


def _client(settings: Settings) -> httpx.AsyncClient:
    return Way.of_settings(settings).client(
        settings.coze_api_base,
        connect_timeout_seconds=settings.broker_connect_timeout_seconds,
        read_timeout_seconds=settings.broker_read_timeout_seconds,
    )


def _guard(settings: Settings, redis: Redis | None) -> Guard:
    """Uploads and the token exchange go to one host, and so have one breaker."""
    breaker = Breaker(
        settings.coze_host,
        failures=settings.broker_breaker_failures,
        open_seconds=settings.broker_breaker_open_seconds,
        on_change=log_change,
    )
    pause = Pause(redis, max_seconds=settings.broker_upstream_pause_seconds)
    return Guard(breaker, pause, retry_seconds=settings.broker_upstream_retry_seconds)


def _credential(settings: Settings, exchange: TokenExchange) -> Credential:
    if settings.server_app is not None:
        return AppCredential(exchange, settings.server_app)
    return FixedCredential(_secret(settings.coze_api_token) or "")


def _scanner(settings: Settings) -> Clamd | None:
    if not settings.broker_scanner:
        return None
    return Clamd(settings.scanner_address, max_bytes=settings.broker_scanner_max_bytes)


def _secret(value: Any) -> str | None:
    return None if value is None else value.get_secret_value()
