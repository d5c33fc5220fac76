"""Requests to Coze with the broker's own client, so that what the doctor sees is what the broker would."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx

from broker.doctor.scrubbing import clean_text, secrets_of
from broker.doctor.way import Way
from broker.errors import Refusal, UpstreamBadAnswer
from broker.upstream.answers import IN_TROUBLE, UNKNOWN_PATH, code_of, logid_of
from broker.upstream.client import CLIENT_ERRORS, Answered, refusal_for, timed_call
from broker.upstream.way import Way as UpstreamWay

MAX_SHOWN = 160


SENTENCES = {
    "upstream_unreachable": "the connection failed",
    "upstream_timeout": "none came in time",
    "upstream_aborted": "the connection ended too early",
}


class CallFailedError(Exception):
    """No answer came: the broker's word for it, and a sentence. A caller's own would speak of its file."""

    def __init__(self, refusal: Refusal, cause: str) -> None:
        self.code, self.cause = refusal.code, cause
        self.sentence = SENTENCES.get(refusal.code, "what came is no whole answer in HTTP")
        self.is_bad_answer = isinstance(refusal, UpstreamBadAnswer)
        super().__init__(self.sentence)


@dataclass(frozen=True)
class Reply:
    """An answer, whole. What it says is shown without what is ``hidden``."""

    answered: Answered = field(repr=False)
    seconds: float
    hidden: tuple[str, ...] = field(default=(), repr=False)

    @property
    def status(self) -> int:
        return self.answered.status

    @property
    def headers(self) -> httpx.Headers:
        return self.answered.headers

    @cached_property
    def body(self) -> Mapping[str, Any] | None:
        """Its JSON object, None where it is none."""
        try:
            body = json.loads(self.answered.content)
        except (ValueError, RecursionError):
            return None
        return body if isinstance(body, dict) else None

    @property
    def logid(self) -> str | None:
        """Coze's id for the answer, or Studio's."""
        return logid_of(self.headers)

    @property
    def is_html(self) -> bool:
        return "html" in self.headers.get("content-type", "").lower()

    @property
    def is_cozes(self) -> bool:
        """Whether it has what only Coze's answers have: a code, or an id in its log."""
        return bool(self.code or self.logid)

    @property
    def sender(self) -> str:
        """What an answer that is not Coze's says of itself."""
        kind = self.shown(self.headers.get("content-type", "").partition(";")[0], 60)
        server = self.shown(self.headers.get("server", ""), 60)
        return f"{kind or 'no content type'}, {f'server {server!r}' if server else 'no server named'}"

    @property
    def is_trouble(self) -> bool:
        """Whether who answers has trouble, or too much to do."""
        return self.status >= 500 or self.status == 429 or self.number in IN_TROUBLE  # noqa: PLR2004 - HTTP's own

    @property
    def is_unknown_path(self) -> bool:
        """Whether Coze has nothing at the path that was asked for."""
        return (self.status, self.number) == UNKNOWN_PATH

    @property
    def asks_for_cookie(self) -> bool:
        """As a Studio does at each path that is not of its open API, whatever the credential."""
        return "session_key" in self.message

    @property
    def code(self) -> str:
        """Coze's code, as the files API or the token endpoint writes it; empty where there is none."""
        body = self.body or {}
        code = body.get("error_code", body.get("code"))
        return "" if code is None else self.shown(str(code), 40)

    @property
    def number(self) -> int | None:
        """The files API's code as the broker reads it."""
        return code_of(self.body or {})

    @property
    def message(self) -> str:
        """Coze's sentence, fit to be shown."""
        body = self.body or {}
        return self.shown(str(body.get("error_message") or body.get("msg") or ""))

    def shown(self, text: str, most: int = MAX_SHOWN) -> str:
        """A piece of the answer, fit to be shown."""
        return shown(text, most, self.hidden)

    def __str__(self) -> str:
        said = " ".join(filter(None, (self.code, self.message)))
        return f"{self.status}{': ' if said else ''}{said}"


def shown(text: str, most: int = MAX_SHOWN, hidden: tuple[str, ...] = ()) -> str:
    """What others wrote, short, on one line, without what is hidden or looks like a credential. That goes
    first: of one that is cut the rest would not be known for what it is.
    """
    line = "".join(sign if sign.isprintable() else " " for sign in text)
    return clean_text(line, hidden)[:most]


def open_client(way: Way) -> httpx.AsyncClient:
    """The client that the broker would make for these settings, with the doctor's patience."""
    return UpstreamWay.of_settings(way.settings).client(
        way.settings.coze_api_base,
        connect_timeout_seconds=way.wait_seconds,
        read_timeout_seconds=way.wait_seconds,
        counted_as="doctor",
    )


async def ask(way: Way, method: str, path: str, *, token: str = "", **request: Any) -> Reply:
    """One request by the way's client. Raises :class:`CallFailedError` where no answer comes."""
    headers = dict(request.pop("headers", {}))
    if token:
        headers["Authorization"] = f"Bearer {token}"
    started = time.monotonic()
    try:
        answered = await timed_call(way.coze, method, path, headers=headers, **request)
    except Refusal as refusal:
        raise CallFailedError(refusal, type(refusal).__name__) from None
    except CLIENT_ERRORS as error:
        raise CallFailedError(refusal_for(error), type(error).__name__) from None
    return Reply(answered, time.monotonic() - started, secrets_of(way))
