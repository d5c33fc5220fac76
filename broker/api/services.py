"""What the endpoints work with: made once in ``app``, passed along with each request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from broker.api.watch import Watch
from broker.auth.api_keys import ApiKeys
from broker.auth.authenticate import Authenticator
from broker.auth.completion_tokens import CompletionTokens
from broker.auth.quotas import Quotas
from broker.auth.receipts import Receipts
from broker.auth.sealing import Sealer
from broker.auth.signing_keys import KeyRing
from broker.auth.standing import Standing
from broker.auth.upload_tokens import UploadTokens
from broker.doctor.reachability import Reachability
from broker.scanning.scanner import Scanner
from broker.settings import OAuthApp, Settings
from broker.state.audit.writer import Audit
from broker.state.claims import Claims, DatabaseClaims
from broker.state.database import Database
from broker.state.generation import Generation
from broker.state.idempotency import IdempotencyRecords
from broker.state.leases import Leases
from broker.state.limits import Limit, Limits
from broker.state.redis import Redis
from broker.state.revocations import Revocations
from broker.transfer.admission import Admission
from broker.transfer.policy import Policy
from broker.upstream.coze import CozeFiles
from broker.upstream.guard import Guard
from broker.upstream.oauth import TokenExchange


@dataclass(frozen=True)
class Services:
    """Every collaborator of the endpoints."""

    settings: Settings
    policy: Policy
    # who may do what
    keys: ApiKeys
    authenticator: Authenticator
    standing: Standing
    revocations: Revocations
    generation: Generation
    ring: KeyRing
    tokens: UploadTokens
    completions: CompletionTokens
    receipts: Receipts
    audit: Audit
    # how much of it
    quotas: Quotas
    limits: Limits
    leases: Leases
    upstream_limit: Limit | None
    """What all uploads of the account count against; None where there is no bound."""
    admission: Admission
    watch: Watch
    # what is remembered
    database: Database
    redis: Redis | None
    claims: Claims
    holds: DatabaseClaims
    """Names that belong to somebody for good, whatever becomes of Redis."""
    idempotency: IdempotencyRecords
    sealer: Sealer
    # Coze, and the scanner
    guard: Guard
    exchange: TokenExchange
    browser_app: OAuthApp | None
    files: CozeFiles
    reachability: Reachability
    """Whether Coze can be reached, as far as that was looked at."""
    scanner: Scanner | None


def services(request: Request) -> Services:
    """The services of the app that this request came to."""
    return cast(Services, request.state.services)
