"""What Coze's answers mean: its body's code first, then the status."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from broker.errors import (
    EmptyFile,
    FileContentMismatch,
    FileTypeRefused,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    Refusal,
    Reply,
    SeveralFiles,
    TooLarge,
    UpstreamAborted,
    UpstreamBadAnswer,
    UpstreamBusy,
    UpstreamCredentialRefused,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from broker.upstream.breaker import Outcome
from broker.upstream.http_date import unix_seconds

MAX_RETRY_AFTER_SECONDS = 60
DEFAULT_RETRY_AFTER_SECONDS = 2
MAX_LOGGED_MESSAGE = 300
LOGID = re.compile(r"[!-~]{1,128}")
SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
SAYS_LITTLE = 5000
"""Coze's code for any fault of its own: a status can say more."""
SAID_YES = Reply(200, 0)
"""Of a :class:`UpstreamBadAnswer`: Coze says yes, but what it gives is not what was asked for: a file of
another size than was sent, or a token that is over by the broker's clock."""
UNKNOWN_PATH = (404, 4000)
"""How Coze answers a path that it does not have."""

Call = Literal["upload", "lookup"]
"""What was asked of Coze: some of its codes mean something else for each."""

_OF_CODE: dict[int, type[Refusal]] = {
    4008: UpstreamBusy,
    4009: UpstreamBusy,
    4013: UpstreamBusy,
    4100: UpstreamCredentialRefused,
    4101: UpstreamCredentialRefused,
    700012006: UpstreamCredentialRefused,
    5000: UpstreamFailed,
}
_OF_CALL: dict[Call, dict[int, type[Refusal]]] = {
    "upload": {
        4000: FileContentMismatch,
        4300: EmptyFile,
        4301: SeveralFiles,
        4302: TooLarge,
        4303: FileTypeRefused,
        4304: FileContentMismatch,
    },
    "lookup": {4000: InvalidRequest, 4200: NotFound},
}
_OF_STATUS: dict[int, type[Refusal]] = {
    401: UpstreamCredentialRefused,
    403: UpstreamCredentialRefused,
    404: UpstreamRefused,  # of the path, not of the file: is COZE_API_BASE right?
    413: TooLarge,
    429: UpstreamBusy,
    503: UpstreamBusy,
}
_TOO_MUCH = (429, 4013)
"""Status and code that say: the account sends too much."""
STALE = frozenset({4100, 700012006})
"""Codes of a credential that Coze does not know, or no longer."""
LACKS_PERMISSION = 4101
"""Coze knows the credential, and finds a permission missing in it."""
_WITHOUT_QUOTA = frozenset({4008, 4009})
NOT_BY_COZE: dict[int, type[Refusal]] = {403: UpstreamRefused, 404: UpstreamRefused}
"""What a status means without Coze's JSON: a firewall or a proxy may have given it, which knows nothing of
the credential. A 401 is not among them: RFC 9110 §15.5.2 leaves it to the server, and has 407 for proxies."""
NOT_IN_ITS_WORDS = "not in Coze's words: a firewall or a proxy on the way?"
_FAULTS = (
    UpstreamUnreachable,
    UpstreamTimeout,
    UpstreamAborted,
    UpstreamBadAnswer,
    UpstreamFailed,
    UpstreamBusy,
    OutcomeUnknown,
)
OUT_OF_CREDIT = frozenset({4011, 4019, 4020, 4022, 4027, 4028})
"""The account's credit or plan is used up."""
IN_TROUBLE = frozenset(code for code, kind in _OF_CODE.items() if kind in (UpstreamBusy, UpstreamFailed))
"""Coze has trouble, or too much to do."""
_SENTENCES = {
    4101: "The broker's own credential lacks a permission at Coze. Tell the operator the request id.",
    4102: "Coze's risk control refused the file.",
}


@dataclass(frozen=True)
class Answer:
    """An answer of Coze's that says yes: its JSON, and the id that Coze's support asks for."""

    body: dict[str, Any]
    logid: str | None


def judge(call: Call, status: int, headers: Mapping[str, str], content: bytes) -> Answer:
    """The answer, when it says yes. Raises the refusal that it stands for when it does not.

    ``headers`` must find names in lower case.
    """
    logid = logid_of(headers)
    body = _json_object(content)
    code = None if body is None else code_of(body)
    if body is not None and code == 0 and status < 300:  # noqa: PLR2004 - HTTP's own border
        return Answer(body, logid)
    kind = _kind(call, status, code)
    wait = retry_after_seconds(headers.get("retry-after")) if kind is UpstreamBusy else None
    log = f"status {status}, {_message(body, content)}"
    if code is None and kind is UpstreamRefused:
        log += f" ({NOT_IN_ITS_WORDS})"
    reply = Reply(status, code)
    raise kind(_detail(kind, code), log=log, logid=logid, retry_after_seconds=wait, reply=reply)


def asks_for_less(refusal: Refusal) -> bool:
    """Whether it stands for Coze's word that the account sends too much."""
    reply = refusal.reply
    return isinstance(refusal, UpstreamBusy) and reply is not None and _is_too_much(reply)


def is_of_credential(refusal: Refusal) -> bool:
    """Whether another access token may help: not where Coze knows it, and says what else is wrong."""
    reply = refusal.reply
    if not isinstance(refusal, UpstreamCredentialRefused) or reply is None:
        return False
    says_no_more = not reply.code or reply.code == SAYS_LITTLE
    return reply.code in STALE or (reply.status == 401 and says_no_more)  # noqa: PLR2004 - HTTP's own


def outcome_of(refusal: Refusal) -> Outcome:
    """What a call that ended so says of Coze's health. That Coze says no is no fault of Coze's."""
    reply = refusal.reply
    if reply is None:
        return "failure" if isinstance(refusal, _FAULTS) else "neither"
    if isinstance(refusal, UpstreamBadAnswer) and reply == SAID_YES:
        return "neither"  # Coze answers, so it is not down; but what it said is not right, either
    if reply.code in _WITHOUT_QUOTA:
        return "success"  # whatever the status: an account without quota does not call Coze down
    if 400 <= reply.status < 500 or _is_too_much(reply):  # noqa: PLR2004 - HTTP's own borders
        return "neither" if reply.code is None else "success"
    return "failure" if isinstance(refusal, _FAULTS) else "success"


def _is_too_much(reply: Reply) -> bool:
    status, code = _TOO_MUCH
    return reply.status == status or reply.code == code


def retry_after_seconds(value: str | None, now: float | None = None) -> int:
    """``Retry-After`` as seconds, whether a number or a date (RFC 9110 §10.2.3), brought within bounds. What
    is neither counts as not said.

    A fraction, which some gateways send against the RFC, is rounded up: nobody comes too early for it.
    """
    if value is None:
        return DEFAULT_RETRY_AFTER_SECONDS
    seconds = _number(value.strip(" \t"))
    if seconds is None:
        at = unix_seconds(value)
        since = time.time() if now is None else now
        seconds = DEFAULT_RETRY_AFTER_SECONDS if at is None else at - since
    return math.ceil(min(max(seconds, 1), MAX_RETRY_AFTER_SECONDS))


def logid_of(headers: Mapping[str, str]) -> str | None:
    """Coze's id for its answer; it goes into a header of ours, so only what can stand there is taken."""
    logid = headers.get("x-tt-logid") or headers.get("x-log-id") or ""
    return logid if LOGID.fullmatch(logid) else None


def _detail(kind: type[Refusal], code: int | None) -> str | None:
    """What is to be said instead of the refusal's own sentence."""
    if kind is NotFound:
        return "Coze knows no such file in this account."
    if code in OUT_OF_CREDIT:
        return "Coze refused the file: the account's credit or plan is used up. Tell the operator."
    return _SENTENCES.get(code or 0)


def _kind(call: Call, status: int, code: int | None) -> type[Refusal]:
    """The code comes first, unless it says less than the status does."""
    if code is None and status in NOT_BY_COZE:
        return NOT_BY_COZE[status]
    of_status = _OF_STATUS.get(status)
    if of_status and (not code or code == SAYS_LITTLE or (status, code) == UNKNOWN_PATH):
        return of_status
    if code:
        return _OF_CALL[call].get(code) or _OF_CODE.get(code) or of_status or UpstreamRefused
    if status < 500:  # noqa: PLR2004 - HTTP's own border
        return UpstreamBadAnswer
    # Not Coze's words but a gateway's: nobody knows what became of an upload behind it.
    return OutcomeUnknown if call == "upload" else UpstreamFailed


def _json_object(content: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def code_of(body: Mapping[str, Any]) -> int | None:
    """Coze's code in the JSON of an answer of its files API; None where there is none."""
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
    return float(value) if SECONDS.fullmatch(value) else None
