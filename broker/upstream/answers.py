"""What Coze's answers mean: its body's code first, then the status."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.errors import (
    EmptyFile,
    FileContentMismatch,
    FileTypeRefused,
    NotFound,
    Refusal,
    SeveralFiles,
    TooLarge,
    UpstreamBadAnswer,
    UpstreamBusy,
    UpstreamCredentialRefused,
    UpstreamFailed,
    UpstreamRefused,
)

MAX_RETRY_AFTER_SECONDS = 60
DEFAULT_RETRY_AFTER_SECONDS = 2
MAX_LOGGED_MESSAGE = 300
LOGID = re.compile(r"[!-~]{1,128}")
SAYS_LITTLE = 5000
"""Coze's code for any fault of its own: the one code that a status can say more than."""

_OF_CODE: dict[int, type[Refusal]] = {
    4000: FileContentMismatch,
    4008: UpstreamBusy,
    4009: UpstreamBusy,
    4013: UpstreamBusy,
    4100: UpstreamCredentialRefused,
    4101: UpstreamCredentialRefused,
    700012006: UpstreamCredentialRefused,
    4200: NotFound,
    4300: EmptyFile,
    4301: SeveralFiles,
    4302: TooLarge,
    4303: FileTypeRefused,
    4304: FileContentMismatch,
    5000: UpstreamFailed,
}
_OF_STATUS: dict[int, type[Refusal]] = {
    401: UpstreamCredentialRefused,
    403: UpstreamCredentialRefused,
    413: TooLarge,
    429: UpstreamBusy,
    503: UpstreamBusy,
}
_OUT_OF_CREDIT = frozenset({4011, 4019, 4020, 4022, 4027, 4028})
_SENTENCES = {
    4000: "Coze refused the file: its content must fit its extension. Name it for what it is, "
    "and send it again.",
    4101: "The broker's own credential lacks a permission at Coze. Tell the operator the request id.",
    4200: "Coze knows no such file in this account.",
    4102: "Coze's risk control refused the file.",
}


@dataclass(frozen=True)
class Answer:
    """An answer of Coze's that says yes: its JSON, and the id that Coze's support asks for."""

    body: dict[str, Any]
    logid: str | None


def judge(status: int, headers: Mapping[str, str], content: bytes) -> Answer:
    """The answer, when it says yes. Raises the refusal that it stands for when it does not.

    ``headers`` must find names in lower case.
    """
    logid = logid_of(headers)
    body = _json_object(content)
    code = None if body is None else _code(body)
    if body is not None and code == 0 and status < 300:  # noqa: PLR2004 - HTTP's own border
        return Answer(body, logid)
    raise _refusal(status, code, headers, logid, _message(body, content))


def retry_after_seconds(value: str | None, now: float | None = None) -> int:
    """``Retry-After`` as seconds, whether a number or a date; odd and huge ones brought within bounds."""
    if value is None:
        return DEFAULT_RETRY_AFTER_SECONDS
    seconds = _number(value)
    if seconds is None:
        seconds = _seconds_until(value, time.time() if now is None else now)
    return int(min(max(seconds, 1), MAX_RETRY_AFTER_SECONDS))


def logid_of(headers: Mapping[str, str]) -> str | None:
    """Coze's id for its answer; it goes into a header of ours, so only what can stand there is taken."""
    logid = headers.get("x-tt-logid") or headers.get("x-log-id") or ""
    return logid if LOGID.fullmatch(logid) else None


def _refusal(
    status: int, code: int | None, headers: Mapping[str, str], logid: str | None, message: str
) -> Refusal:
    kind = _kind(status, code)
    detail = _SENTENCES.get(code or 0)
    if code in _OUT_OF_CREDIT:
        detail = "Coze refused the file: the account's credit or plan is used up. Tell the operator."
    wait = retry_after_seconds(headers.get("retry-after")) if kind is UpstreamBusy else None
    return kind(detail, log=f"status {status}, {message}", logid=logid, retry_after_seconds=wait)


def _kind(status: int, code: int | None) -> type[Refusal]:
    if code == SAYS_LITTLE and status in _OF_STATUS:
        return _OF_STATUS[status]
    if code:
        return _OF_CODE.get(code, _OF_STATUS.get(status, UpstreamRefused))
    if status in _OF_STATUS:
        return _OF_STATUS[status]
    return UpstreamFailed if status >= 500 else UpstreamBadAnswer  # noqa: PLR2004 - HTTP's own border


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _code(body: dict[str, Any]) -> int | None:
    code = body.get("code")
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) < 12:  # noqa: PLR2004 - Coze's have nine
        return int(code)
    return code if type(code) is int else None


def _message(body: dict[str, Any] | None, content: bytes) -> str:
    """For the log alone, and short: an answer may hold anything."""
    if body is None:
        return f"no JSON but {content[:60]!r}"
    return f"code {body.get('code')!r}: {str(body.get('msg'))[:MAX_LOGGED_MESSAGE]}"


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _seconds_until(http_date: str, now: float) -> float:
    try:
        return email.utils.parsedate_to_datetime(http_date).timestamp() - now
    except ValueError:
        return DEFAULT_RETRY_AFTER_SECONDS
