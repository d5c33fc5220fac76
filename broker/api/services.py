"""What the endpoints work with: made once in ``app``, passed along with each request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from starlette.requests import Request

from broker.auth.authenticate import Authenticator
from broker.auth.receipts import Receipts
from broker.auth.signing_keys import KeyRing
from broker.auth.upload_tokens import UploadTokens
from broker.scanning.scanner import Scanner
from broker.settings import OAuthApp, Settings
from broker.state.counters import Claims
from broker.state.database import Database
from broker.state.idempotency import IdempotencyRecords
from broker.transfer.admission import Admission
from broker.transfer.policy import Policy
from broker.upstream.coze import CozeFiles
from broker.upstream.oauth import TokenExchange


@dataclass(frozen=True)
class Services:
    """Every collaborator of the endpoints."""

    settings: Settings
    policy: Policy
    database: Database
    claims: Claims
    idempotency: IdempotencyRecords
    admission: Admission
    ring: KeyRing
    authenticator: Authenticator
    tokens: UploadTokens
    receipts: Receipts
    exchange: TokenExchange
    browser_app: OAuthApp | None
    files: CozeFiles
    scanner: Scanner | None


def services(request: Request) -> Services:
    """The services of the app that this request came to."""
    return cast(Services, request.state.services)
