"""Getting an access token for an OAuth app, and what Coze says when it gives none."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from broker.doctor.calling import Reply, ask
from broker.settings import OAuthApp
from broker.upstream.oauth import GRANT_TYPE, TOKEN, TOKEN_PATH, make_assertion

DURATION_SECONDS = 60
_UNKNOWN_KID = re.compile(r"\bkid\b.*\bnot\b.*\bregist", re.IGNORECASE)
_TIMES = re.compile(r"\b(expired|iat|exp|nbf|future|not yet)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Exchanged:
    """A token, or the answer that had none."""

    token: str
    reply: Reply

    @property
    def is_unknown_kid(self) -> bool:
        """Coze's words are ``invalid jwt: kid not been registred``."""
        return not self.token and _UNKNOWN_KID.search(self.reply.message) is not None

    @property
    def is_about_time(self) -> bool:
        """Whether the assertion's times are what Coze does not like."""
        return not self.token and _TIMES.search(self.reply.message) is not None

    @property
    def is_trouble(self) -> bool:
        """Whether the answer says nothing of the app: Coze is busy or has trouble, or it is not Coze's."""
        return not self.token and (self.reply.is_trouble or not self.reply.code)


async def exchanged(client: httpx.AsyncClient, app: OAuthApp, base_url: str) -> Exchanged:
    """One exchange with a fresh assertion. Raises ``CallFailedError`` where no answer comes."""
    assertion = make_assertion(app, urlsplit(base_url).netloc, time.time())
    asked = {"grant_type": GRANT_TYPE, "duration_seconds": DURATION_SECONDS}
    reply = await ask(client, "POST", TOKEN_PATH, token=assertion, json=asked)
    value = (reply.body or {}).get("access_token")
    is_token = reply.status == httpx.codes.OK and isinstance(value, str) and TOKEN.fullmatch(value)
    return Exchanged(str(value) if is_token else "", reply)
