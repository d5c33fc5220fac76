"""Requests to Coze with the broker's own client, so that what the doctor sees is what the broker would."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from broker.doctor.way import Way
from broker.errors import Refusal
from broker.observe.redaction import redacted
from broker.upstream.answers import LOGID
from broker.upstream.client import CLIENT_ERRORS, refusal_for, small_call
from broker.upstream.way import Way as UpstreamWay

MAX_SHOWN = 160


class CallFailedError(Exception):
    """No answer came: the word for it, and the sentence that a caller of the broker would get."""

    def __init__(self, refusal: Refusal, cause: str) -> None:
        super().__init__(refusal.detail)
        self.code, self.sentence, self.cause = refusal.code, refusal.detail, cause


@dataclass(frozen=True)
class Reply:
    """An answer, whole. ``body`` is its JSON object, None where it is none."""

    status: int
    headers: httpx.Headers
    body: Mapping[str, Any] | None
    seconds: float

    @property
    def logid(self) -> str | None:
        """Coze's id for the answer, or Studio's."""
        logid = self.headers.get("x-tt-logid") or self.headers.get("x-log-id") or ""
        return logid if LOGID.fullmatch(logid) else None

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
        kind = shown(self.headers.get("content-type", "").partition(";")[0], 60)
        server = shown(self.headers.get("server", ""), 60)
        return f"{kind or 'no content type'}, {f'server {server!r}' if server else 'no server named'}"

    @property
    def is_trouble(self) -> bool:
        """Whether who answers has trouble, or too much to do."""
        return self.status >= 500 or self.status == 429  # noqa: PLR2004 - HTTP's own

    @property
    def code(self) -> str:
        """Coze's code, as the files API or the token endpoint writes it; empty where there is none."""
        body = self.body or {}
        code = body.get("error_code", body.get("code"))
        return "" if code is None else shown(str(code), 40)

    @property
    def message(self) -> str:
        """Coze's sentence, fit to be shown."""
        body = self.body or {}
        return shown(str(body.get("error_message") or body.get("msg") or ""))

    def __str__(self) -> str:
        said = " ".join(filter(None, (self.code, self.message)))
        return f"{self.status}{': ' if said else ''}{said}"


def shown(text: str, most: int = MAX_SHOWN) -> str:
    """What others wrote, short, on one line, without anything that looks like a credential."""
    line = "".join(sign if sign.isprintable() else " " for sign in text[: 4 * most])
    return redacted(line)[:most]


def open_client(way: Way) -> httpx.AsyncClient:
    """The client that the broker would make for these settings, with the doctor's patience."""
    return UpstreamWay.of_settings(way.settings).client(
        way.settings.coze_api_base,
        connect_timeout_seconds=way.wait_seconds,
        read_timeout_seconds=way.wait_seconds,
        counted_as="doctor",
    )


async def ask(client: httpx.AsyncClient, method: str, path: str, *, token: str = "", **request: Any) -> Reply:
    """One request. Raises :class:`CallFailedError` where no answer comes."""
    headers = dict(request.pop("headers", {}))
    if token:
        headers["Authorization"] = f"Bearer {token}"
    started = time.monotonic()
    try:
        answered = await small_call(client, method, path, headers=headers, **request)
    except Refusal as refusal:
        raise CallFailedError(refusal, type(refusal).__name__) from None
    except CLIENT_ERRORS as error:
        raise CallFailedError(refusal_for(error), type(error).__name__) from None
    return Reply(answered.status, answered.headers, _object(answered.content), time.monotonic() - started)


def _object(content: bytes) -> Mapping[str, Any] | None:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None
