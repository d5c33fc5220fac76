"""The access tokens that open the files API: the static ones, and the short-lived ones issued here."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from broker.sandbox import refusals
from broker.sandbox.config import OAuthApp, SandboxConfig
from broker.sandbox.records import Records
from broker.sandbox.refusals import ApiError


@dataclass(frozen=True)
class Grant:
    """What a token allows; `kind` is its prefix: pat, sat or czs."""

    kind: str
    permissions: frozenset[str]
    client_id: str | None = None
    expires_at: int | None = None

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class AccessTokens:
    def __init__(self, config: SandboxConfig, now: Callable[[], float]) -> None:
        self._now = now
        self._static = {
            each.token: Grant(each.token.partition("_")[0], each.permissions) for each in config.tokens
        }
        self._issued: Records[Grant] = Records(config.max_records)

    def issue(self, app: OAuthApp, duration_seconds: int) -> tuple[str, int]:
        """Answer a new token and the Unix time at which it ends."""
        token = "czs_" + secrets.token_urlsafe(48)
        expires_at = int(self._now()) + duration_seconds
        self._issued.put(token, Grant("czs", app.permissions, app.client_id, expires_at))
        return token, expires_at

    def require(self, request: Request, permission: str) -> Grant:
        grant = self._find(bearer(request))
        if grant is None or grant.is_expired(self._now()):
            raise ApiError(refusals.INVALID_TOKEN)
        if permission not in grant.permissions:
            raise ApiError(refusals.NO_PERMISSION)
        return grant

    def _find(self, token: str | None) -> Grant | None:
        if token is None:
            return None
        return self._static.get(token) or self._issued.find(token)


def bearer(request: Request) -> str | None:
    """The token of the one Authorization header; two headers are as good as none."""
    values = request.headers.getlist("authorization")
    scheme, _, token = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return token.strip() if scheme.lower() == "bearer" else None
