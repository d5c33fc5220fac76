"""A row of the audit: what was done, by whom, to what, and what came of it.

No secret can enter one: texts are cut to their length, control characters are escaped, and what looks like a
credential is taken out. A token shows as a short hash of its ``jti``.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter, itemgetter
from typing import Any, get_args

import sqlalchemy as sa

from broker.observe.events import Action, Event
from broker.observe.redaction import CREDENTIAL, redacted
from broker.state.database import audit as table

Value = str | int | float | None
Values = tuple[Value, ...]
"""A cleaned row, in the order of ``COLUMNS``."""

ACTIONS: tuple[str, ...] = get_args(Action)
OK = "ok"
MAX_DETAIL_LENGTH = 2000
TOKEN_HASH_LENGTH = 16


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One row, before it is written. ``at`` is Unix seconds; ``result`` is ``ok`` or a refusal's code."""

    action: Action
    at: float = field(default_factory=time.time)
    result: str = OK
    caller: str | None = None
    """What kind of credential: ``secret_key``, ``upload_token``, …; ``command_line`` for the operator."""
    key_id: str | None = None
    key_hint: str | None = None
    """Which of the key's secrets, as ``keys list`` shows it."""
    subject: str | None = None
    token: str | None = None
    """``token_hash`` of the token's ``jti``; never the token."""
    client_ip: str | None = None
    origin: str | None = None
    route: str | None = None
    bytes: int | None = None
    file_id: str | None = None
    request_id: str | None = None
    logid: str | None = None
    status: int | None = None
    method: str | None = None
    path: str | None = None
    detail: Mapping[str, Any] | None = None
    """Little, as JSON: what does not fit in 2,000 characters is cut."""

    @property
    def is_refusal(self) -> bool:
        """Whether nothing was done: under a flood these rows are lost first."""
        return self.action == "refusal"

    def values(self) -> Values:
        """The row as it is kept. Raises ``ValueError`` for an action or a time that is none."""
        if self.action not in ACTIONS:
            raise ValueError(f"{self.action!r} is no action of the audit's")
        texts = _texts_of(self)
        if not _are_harmless(texts):
            texts = tuple(map(_text, texts, _LENGTHS))
        numbers = _time(self.at), _integer(self.bytes, 63), _integer(self.status, 31)
        detail = None if self.detail is None else _detail(self.detail)
        return _in_order((*texts, *numbers, detail))


COLUMNS = tuple(
    column.name for column in table.columns if column.name not in ("seq", "previous_hash", "hash")
)
_TEXTS = {
    column.name: column.type.length
    for column in table.columns
    if isinstance(column.type, sa.String) and column.type.length and column.name in COLUMNS
}
_LENGTHS = tuple(_TEXTS.values())
_UNORDERED = (*_TEXTS, "at", "bytes", "status", "detail")
_texts_of: Callable[[AuditRow], tuple[str | None, ...]] = attrgetter(*_TEXTS)
_in_order: Callable[[Values], Values] = itemgetter(*map(_UNORDERED.index, COLUMNS))
assert {each.name for each in fields(AuditRow)} == set(COLUMNS)  # noqa: S101 - two lists of one thing


def token_hash(jti: str) -> str:
    """What stands for a token in the audit."""
    return hashlib.sha256(jti.encode()).hexdigest()[:TOKEN_HASH_LENGTH]


def of_event(event: Event, action: Action | None = None) -> AuditRow | None:
    """The row that a request leaves behind when it is over, made from its record.

    ``action`` is what was asked for, where that is something the audit keeps. None when there is nothing to
    keep: a look at the page, at a list. What was refused before anything happened is a ``refusal``.
    """
    code = event.code or (f"status_{event.status}" if (event.status or 0) >= 400 else None)  # noqa: PLR2004 - HTTP's own
    if code is None and action is None:
        return None
    happened = action is not None and (code is None or event.sent in ("part", "all"))
    return AuditRow(
        action=action if happened and action is not None else "refusal",
        result=code or OK,
        caller=event.caller,
        key_id=event.key_id,
        key_hint=event.key_hint,
        subject=event.subject,
        token=None if event.token_id is None else token_hash(event.token_id),
        client_ip=event.client_ip,
        origin=event.origin,
        route=event.route,
        bytes=event.bytes_declared if event.bytes_received is None else event.bytes_received,
        file_id=event.file_id,
        request_id=event.request_id,
        logid=event.logid,
        status=event.status,
        method=None if happened else event.method,
        path=None if happened else event.path,
        detail=_detail_of(event, None if happened else action),
    )


def _detail_of(event: Event, asked: Action | None) -> dict[str, Any] | None:
    known = {
        "asked": asked,
        "reason": event.reason,
        "sensitive": event.sensitive or None,
        "scanned": event.scanned or None,
        "attempts": event.attempts,
        "replayed": event.replayed or None,
        "sent": event.sent,
    }
    return {name: value for name, value in known.items() if value is not None} or None


def _are_harmless(texts: tuple[str | None, ...]) -> bool:
    """Most rows' are, and this is quicker than to clean each text."""
    for text, length in zip(texts, _LENGTHS, strict=True):
        if text is not None and len(text) > length:
            return False
    given = [text for text in texts if text is not None]
    return "".join(given).isprintable() and CREDENTIAL.search("\t".join(given)) is None


def _text(text: Any, max_length: int) -> str | None:
    return None if text is None else _escaped(redacted(str(text)[: 4 * max_length]))[:max_length]


def _escaped(text: str) -> str:
    """Line ends, control characters and half surrogates as escapes, so that no row can feign another."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )


def _time(at: float) -> float:
    if not math.isfinite(at):
        raise ValueError(f"{at} is no time")
    return round(float(at), 6)


def _integer(value: int | None, bits: int) -> int | None:
    """As much as the column takes."""
    return None if value is None else max(-(2**bits) + 1, min(2**bits - 1, int(value)))


def _detail(detail: Mapping[str, Any]) -> str:
    text = _harmless(detail) or _JSON.encode(_cleaned(detail))
    return text if len(text) <= MAX_DETAIL_LENGTH else _JSON.encode({"cut": text[: MAX_DETAIL_LENGTH // 4]})


def _harmless(detail: Mapping[str, Any]) -> str | None:
    """Most details are, and this is quicker than to clean them: JSON without a backslash holds what it holds
    as it is.
    """
    try:
        text = _JSON.encode(detail)
    except (TypeError, ValueError):
        return None
    return None if "\\" in text or not text.isprintable() or CREDENTIAL.search(text) else text


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_escaped(redacted(str(name))): _cleaned(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cleaned(each) for each in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _escaped(redacted(str(value)))


_JSON = json.JSONEncoder(separators=(",", ":"), sort_keys=True)
