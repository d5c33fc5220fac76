"""Access tokens by Coze's OAuth JWT flow, and the credential of the proxy route.

The app signs an assertion (RS256), Coze gives an access token for it. An assertion is good for one call,
so each call makes a fresh one. Coze's ``expires_in`` is a point in time; it is renamed here, at the border.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import httpx
import jwt

from broker.errors import (
    Refusal,
    Reply,
    UpstreamBadAnswer,
    UpstreamBusy,
    UpstreamCredentialRefused,
    UpstreamFailed,
)
from broker.settings import OAuthApp
from broker.upstream.answers import (
    MAX_LOGGED_MESSAGE,
    NOT_BY_COZE,
    NOT_IN_ITS_WORDS,
    SAID_YES,
    logid_of,
    retry_after_seconds,
)
from broker.upstream.client import CLIENT_ERRORS, Answered, refusal_for, timed_call
from broker.upstream.guard import Budget, Guard

TOKEN_PATH = "/api/permission/oauth2/token"  # noqa: S105 - a path
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_SECONDS = 300
CLOCK_SKEW_SECONDS = 10
JTI_BYTES = 32
SERVER_TOKEN_SECONDS = 3600
MAX_TOKEN_SECONDS = 86_400
REFRESH_MARGIN_SECONDS = 60
REMEMBER_FAILURE_SECONDS = 1.0
"""How long a failed exchange is told to those who come after it, instead of being made again."""
REPLACE_EVERY_SECONDS = 1.0
"""A token that replaced a refused one, and is refused as well, is replaced after that at the earliest."""
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
        self, client: httpx.AsyncClient, coze_host: str, guard: Guard, now: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._coze_host = coze_host
        self._guard = guard
        self._now = now

    async def exchange(
        self,
        app: OAuthApp,
        *,
        duration_seconds: int,
        budget: Budget | None = None,
        max_seconds: float | None = None,
    ) -> AccessToken:
        """A fresh access token of ``app``. Repeated where that may help, each time with a new assertion,
        within ``budget``, or one of its own. Coze is given ``max_seconds`` for all of it; what takes longer
        is Coze's time-out. Raises a refusal of the 502, 503 or 504 kind.
        """
        give_up_at = None if max_seconds is None else asyncio.get_running_loop().time() + max_seconds

        async def once() -> AccessToken:
            return await self._exchange(app, duration_seconds, give_up_at)

        return await self._guard.repeated_call(once, budget or self._guard.budget(), patient=False)

    async def _exchange(self, app: OAuthApp, duration_seconds: int, give_up_at: float | None) -> AccessToken:
        try:
            async with asyncio.timeout_at(give_up_at):
                answered = await timed_call(
                    self._client,
                    "POST",
                    TOKEN_PATH,
                    json={"grant_type": GRANT_TYPE, "duration_seconds": duration_seconds},
                    headers={"Authorization": f"Bearer {make_assertion(app, self._coze_host, self._now())}"},
                )
        except CLIENT_ERRORS as error:
            raise refusal_for(error) from error
        return access_token_of(answered, self._now())


def make_assertion(app: OAuthApp, coze_host: str, now: float) -> str:
    """A JWT that proves once to be ``app``; dated back a little for clocks that disagree."""
    claims = {
        "iss": app.client_id,
        "aud": coze_host,
        "iat": int(now) - CLOCK_SKEW_SECONDS,
        "exp": int(now) + ASSERTION_SECONDS,
        "jti": secrets.token_urlsafe(JTI_BYTES),
    }
    return jwt.encode(claims, app.private_key, algorithm="RS256", headers={"kid": app.public_key_id})


class Credential(Protocol):
    """What the broker shows Coze when it uploads for others."""

    async def get(self, budget: Budget) -> str:
        """The value for ``Authorization: Bearer``. Raises a refusal when none can be had."""

    @property
    def is_here(self) -> bool:
        """Whether ``get`` gives one without asking Coze."""

    def taken(self, value: str) -> None:
        """Coze took ``value``."""

    def forget(self, value: str) -> bool:
        """Coze did not take ``value``. Whether ``get`` gives another one, now or soon, that Coze may take."""


@dataclass(frozen=True)
class FixedCredential:
    """A personal or service access token."""

    value: str

    async def get(self, budget: Budget) -> str:  # noqa: ARG002 - the protocol's
        return self.value

    @property
    def is_here(self) -> bool:
        """Always."""
        return True

    def taken(self, value: str) -> None:
        """That changes nothing."""

    def forget(self, value: str) -> bool:  # noqa: ARG002 - the protocol's
        """There is no other."""
        return False

    def __repr__(self) -> str:
        return "FixedCredential()"


class AppCredential:
    """The server app's access token, kept until shortly before it expires; one exchange at a time.

    Whoever waits for an exchange is told what came of it, and so is who comes shortly after it failed. It is
    made within the budget of the one who came first.
    """

    def __init__(
        self,
        exchange: TokenExchange,
        app: OAuthApp,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._app = app
        self._now = now
        self._monotonic = monotonic
        self._token: AccessToken | None = None
        self._pending: asyncio.Task[AccessToken] | None = None
        self._failure: Refusal | None = None
        self._failed_at = self._replaced_at = -math.inf
        self._is_replacing = False
        self._untaken: str | None = None
        """A token that replaced a refused one, and that Coze has not taken so far."""
        self._is_fresh_refused = False

    @property
    def is_here(self) -> bool:
        return self._usable is not None

    @property
    def _usable(self) -> AccessToken | None:
        token = self._token
        is_good = token is not None and self._now() < token.expires_at - REFRESH_MARGIN_SECONDS
        return token if is_good else None

    async def get(self, budget: Budget) -> str:
        token = self._usable
        if token is not None:
            return token.value
        if self._failure is not None and self._monotonic() < self._failed_at + REMEMBER_FAILURE_SECONDS:
            raise _again(self._failure)
        if self._pending is None:
            self._pending = asyncio.create_task(self._fetch(budget))
            self._pending.add_done_callback(self._fetched)
        try:
            # One who is cancelled leaves; the others still wait.
            token = await asyncio.shield(self._pending)
        except Refusal as refusal:
            raise _again(refusal) from refusal
        return token.value

    def taken(self, value: str) -> None:
        self._is_fresh_refused = False
        if value == self._untaken:
            self._untaken = None

    def forget(self, value: str) -> bool:
        if value == self._untaken:
            self._is_fresh_refused = True
        is_of_use = not self._is_fresh_refused  # else the next one is not taken, either
        if self._token is None or self._token.value != value:
            return is_of_use  # another caller was here before
        if self._monotonic() < self._replaced_at + REPLACE_EVERY_SECONDS:
            return False
        self._token, self._replaced_at, self._is_replacing = None, self._monotonic(), True
        return is_of_use

    async def _fetch(self, budget: Budget) -> AccessToken:
        return await self._exchange.exchange(self._app, duration_seconds=SERVER_TOKEN_SECONDS, budget=budget)

    def _fetched(self, task: asyncio.Task[AccessToken]) -> None:
        self._pending = None
        error = None if task.cancelled() else task.exception()
        is_of_a_pause = isinstance(error, UpstreamBusy) and error.reply is None  # Coze was not asked
        self._failure = error if isinstance(error, Refusal) and not is_of_a_pause else None
        self._failed_at = self._monotonic()
        if not task.cancelled() and error is None:
            self._token = task.result()
            self._untaken = self._token.value if self._is_replacing else None
            self._is_replacing = False


def _again(refusal: Refusal) -> Refusal:
    """The same for another caller: an exception that is raised twice would keep both of their traces."""
    return type(refusal)(
        refusal.detail,
        log=refusal.log,
        retry_after_seconds=refusal.retry_after_seconds,
        logid=refusal.logid,
    )


def access_token_of(answered: Answered, now: float) -> AccessToken:
    """The token that the endpoint's answer gives, for no longer than Coze lets any live.

    Raises the refusal that the answer stands for where it gives none that is still good ``now``, in Unix
    seconds. One that is over tells of this machine's clock, or of Coze's ``expires_in``, and nothing of
    whether Coze is well.
    """
    token = _access_token(answered)
    if token.expires_at <= now:
        log = (
            f"a token that expired at {token.expires_at}, and it is {int(now)} by this machine's clock: "
            "is that right, or is the former a lifetime?"
        )
        raise UpstreamBadAnswer(log=log, reply=SAID_YES)
    return replace(token, expires_at=min(token.expires_at, int(now) + MAX_TOKEN_SECONDS))


def _access_token(answered: Answered) -> AccessToken:
    body = _object(answered.content)
    if answered.status == 200 and "error_code" not in body:  # noqa: PLR2004 - HTTP's own
        try:
            return AccessToken(_token_value(body["access_token"]), int(body["expires_in"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UpstreamBadAnswer(
                "Coze's answer to the token request can't be used.",
                log=repr(error),
                reply=Reply(answered.status),
            ) from error
    raise _refusal(answered, body)


def _token_value(value: Any) -> str:
    """A token as it may stand in a header (RFC 6750 §2.1)."""
    if not isinstance(value, str) or not TOKEN.fullmatch(value):
        raise ValueError("access_token")
    return value


def _refusal(answered: Answered, body: dict[str, Any]) -> Refusal:
    logid = logid_of(answered.headers)
    code, words = body.get("error_code", body.get("code")), body.get("error_message", body.get("msg"))
    said = f"{code}: {words}"[:MAX_LOGGED_MESSAGE]
    message = f"token exchange: status {answered.status}, {said}"
    reply = Reply(answered.status, 0)  # of codes it has others
    asked = answered.headers.get("retry-after")
    if answered.status == 429:  # noqa: PLR2004 - HTTP's own
        wait = retry_after_seconds(asked)
        return UpstreamBusy(log=message, logid=logid, retry_after_seconds=wait, reply=reply)
    if answered.status >= 500 or body.get("error_code") == "internal_error":  # noqa: PLR2004 - HTTP's own
        pause = None if asked is None else retry_after_seconds(asked)
        return UpstreamFailed(log=message, logid=logid, retry_after_seconds=pause, reply=reply)
    if "error_code" not in body and answered.status != 401:  # noqa: PLR2004 - HTTP's own
        kind = NOT_BY_COZE.get(answered.status, UpstreamBadAnswer)
        message += f" ({NOT_IN_ITS_WORDS})" if code is None else ""
        return kind(log=message, logid=logid, reply=Reply(answered.status))
    if "kid" in str(body.get("error_message")):
        message += (
            " (is COZE_API_BASE the region of this app's account, and the public key id the app's own?)"
        )
    return UpstreamCredentialRefused(log=message, logid=logid, reply=reply)


def _object(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {"error_message": "no JSON"}
    return body if isinstance(body, dict) else {"error_message": "no JSON object"}
