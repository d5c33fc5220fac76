"""Access tokens by Coze's OAuth JWT flow, and the credential of the proxy route.

The app signs an assertion (RS256), Coze gives an access token for it. An assertion is good for one call,
so each call makes a fresh one. Coze's ``expires_in`` is a point in time; it is renamed here, at the border.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import jwt

from broker.errors import Refusal, UpstreamBadAnswer, UpstreamBusy, UpstreamCredentialRefused, UpstreamFailed
from broker.settings import OAuthApp
from broker.upstream.answers import MAX_LOGGED_MESSAGE, logid_of, retry_after_seconds
from broker.upstream.client import CLIENT_ERRORS, Answered, refusal_for, small_call

TOKEN_PATH = "/api/permission/oauth2/token"  # noqa: S105 - a path
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_SECONDS = 300
CLOCK_SKEW_SECONDS = 10
JTI_BYTES = 32
SERVER_TOKEN_SECONDS = 3600
REFRESH_MARGIN_SECONDS = 60
TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class AccessToken:
    """A token of Coze's; ``expires_at`` in Unix seconds."""

    value: str
    expires_at: int

    def __repr__(self) -> str:
        return f"AccessToken(expires_at={self.expires_at})"


class TokenExchange:
    """Trades an app's assertion for an access token."""

    def __init__(
        self, client: httpx.AsyncClient, coze_host: str, now: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._coze_host = coze_host
        self._now = now

    async def exchange(self, app: OAuthApp, *, duration_seconds: int) -> AccessToken:
        """A fresh access token of ``app``. Raises a refusal of the 502, 503 or 504 kind."""
        try:
            answered = await small_call(
                self._client,
                "POST",
                TOKEN_PATH,
                json={"grant_type": GRANT_TYPE, "duration_seconds": duration_seconds},
                headers={"Authorization": f"Bearer {self.assertion(app)}"},
            )
        except CLIENT_ERRORS as error:
            raise refusal_for(error) from error
        token = _access_token(answered)
        if token.expires_at <= self._now():
            raise UpstreamBadAnswer(log=f"a token that expired at {token.expires_at}: is it a lifetime?")
        return token

    def assertion(self, app: OAuthApp) -> str:
        """A JWT that proves once to be ``app``; dated back a little for clocks that disagree."""
        now = int(self._now())
        claims = {
            "iss": app.client_id,
            "aud": self._coze_host,
            "iat": now - CLOCK_SKEW_SECONDS,
            "exp": now + ASSERTION_SECONDS,
            "jti": secrets.token_urlsafe(JTI_BYTES),
        }
        return jwt.encode(claims, app.private_key, algorithm="RS256", headers={"kid": app.public_key_id})


class Credential(Protocol):
    """What the broker shows Coze when it uploads for others."""

    async def get(self) -> str:
        """The value for ``Authorization: Bearer``. Raises a refusal when none can be had."""

    def forget(self, value: str) -> None:
        """Coze did not take ``value``; don't offer it again if another can be had."""


@dataclass(frozen=True)
class FixedCredential:
    """A personal or service access token."""

    value: str

    async def get(self) -> str:
        return self.value

    def forget(self, value: str) -> None:
        """There is no other."""

    def __repr__(self) -> str:
        return "FixedCredential()"


class AppCredential:
    """The server app's access token, kept until shortly before it expires; one exchange at a time."""

    def __init__(self, exchange: TokenExchange, app: OAuthApp, now: Callable[[], float] = time.time) -> None:
        self._exchange = exchange
        self._app = app
        self._now = now
        self._token: AccessToken | None = None
        self._one_at_a_time = asyncio.Lock()

    async def get(self) -> str:
        if not self._is_fresh():
            async with self._one_at_a_time:
                if not self._is_fresh():  # another caller may have fetched it meanwhile
                    self._token = await self._exchange.exchange(
                        self._app, duration_seconds=SERVER_TOKEN_SECONDS
                    )
        assert self._token is not None  # noqa: S101 - fetched above, or the exchange has raised
        return self._token.value

    def forget(self, value: str) -> None:
        if self._token is not None and self._token.value == value:
            self._token = None

    def _is_fresh(self) -> bool:
        return self._token is not None and self._now() < self._token.expires_at - REFRESH_MARGIN_SECONDS


def _access_token(answered: Answered) -> AccessToken:
    body = _object(answered.content)
    if answered.status == 200 and "error_code" not in body:  # noqa: PLR2004 - HTTP's own
        try:
            return AccessToken(_token_value(body["access_token"]), int(body["expires_in"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UpstreamBadAnswer(
                "Coze's answer to the token request can't be used.", log=repr(error)
            ) from error
    raise _refusal(answered, body)


def _token_value(value: Any) -> str:
    """A token as it may stand in a header (RFC 6750 §2.1)."""
    if not isinstance(value, str) or not TOKEN.fullmatch(value):
        raise ValueError("access_token")
    return value


def _refusal(answered: Answered, body: dict[str, Any]) -> Refusal:
    logid = logid_of(answered.headers)
    said = f"{body.get('error_code')}: {body.get('error_message')}"[:MAX_LOGGED_MESSAGE]
    message = f"token exchange: status {answered.status}, {said}"
    if answered.status == 429:  # noqa: PLR2004 - HTTP's own
        wait = retry_after_seconds(answered.headers.get("retry-after"))
        return UpstreamBusy(log=message, logid=logid, retry_after_seconds=wait)
    if answered.status >= 500 or body.get("error_code") == "internal_error":  # noqa: PLR2004 - HTTP's own
        return UpstreamFailed(log=message, logid=logid)
    if "kid" in str(body.get("error_message")):
        message += (
            " (is COZE_API_BASE the region of this app's account, and the public key id the app's own?)"
        )
    return UpstreamCredentialRefused(log=message, logid=logid)


def _object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {"error_message": "no JSON"}
    return body if isinstance(body, dict) else {"error_message": "no JSON object"}
