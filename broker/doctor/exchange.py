"""Getting an access token for an OAuth app as the broker does, and what Coze says when it gives none."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Literal

from broker.doctor.calling import Reply, ask
from broker.doctor.way import Way
from broker.errors import Refusal, UpstreamBadAnswer, UpstreamBusy, UpstreamFailed
from broker.settings import OAuthApp
from broker.upstream.oauth import (
    GRANT_TYPE,
    SERVER_TOKEN_SECONDS,
    TOKEN_PATH,
    AccessToken,
    access_token_of,
    make_assertion,
)

Whose = Literal["server", "browser"]
_UNKNOWN_KID = re.compile(r"\bkid\b.*\bnot\b.*\bregist", re.IGNORECASE)
_TIMES = re.compile(r"\b(expired|iat|exp|nbf|future|not yet)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Exchanged:
    """The answer, and the token in it or the refusal that the broker would make of it."""

    reply: Reply
    token: AccessToken | None = None
    refusal: Refusal | None = None

    @classmethod
    def by(cls, reply: Reply) -> Exchanged:
        """As the broker judges the answer."""
        try:
            return cls(reply, access_token_of(reply.answered, time.time()))
        except Refusal as refusal:
            return cls(reply, refusal=refusal)

    @property
    def is_unknown_kid(self) -> bool:
        """Coze's words are ``invalid jwt: kid not been registred``."""
        return self.token is None and _UNKNOWN_KID.search(self.reply.message) is not None

    @property
    def is_about_time(self) -> bool:
        """Whether the assertion's times are what Coze does not like."""
        return self.is_endpoints and _TIMES.search(self.reply.message) is not None

    @property
    def is_trouble(self) -> bool:
        """Whether the answer says nothing of the app: Coze has trouble, or too much to do."""
        return isinstance(self.refusal, UpstreamBusy | UpstreamFailed)

    @property
    def is_unusable(self) -> bool:
        """Whether there is a token, and not one that the broker would take."""
        return isinstance(self.refusal, UpstreamBadAnswer) and "access_token" in (self.reply.body or {})

    @property
    def is_endpoints(self) -> bool:
        """Whether it is a refusal in the token endpoint's own words; all other paths write ``code``."""
        return self.refusal is not None and "error_code" in (self.reply.body or {})


def app_of(way: Way, whose: Whose) -> OAuthApp | None:
    """The OAuth app that the settings name for this."""
    return way.settings.server_app if whose == "server" else way.settings.browser_app


async def exchanged(way: Way, whose: Whose, app: OAuthApp) -> Exchanged:
    """One exchange for an app, however often it is asked for; its token is then among the way's.

    Raises ``CallFailedError`` where no answer comes.
    """
    if whose not in way.exchanges:
        way.exchanges[whose] = await _exchange(way, whose, app)
    done = way.exchanges[whose]
    if done.token is not None:
        way.tokens[whose] = done.token.value
    return done


async def _exchange(way: Way, whose: Whose, app: OAuthApp) -> Exchanged:
    """With a fresh assertion, for a token as long-lived as the broker's."""
    assertion = make_assertion(app, way.settings.coze_host, time.time())
    seconds = SERVER_TOKEN_SECONDS if whose == "server" else way.settings.broker_token_ttl_seconds
    asked = {"grant_type": GRANT_TYPE, "duration_seconds": seconds}
    return Exchanged.by(await ask(way, "POST", TOKEN_PATH, token=assertion, json=asked))
