"""What an answer of the files API says of the credential that it was asked with."""

from __future__ import annotations

from typing import Literal

from broker.doctor.calling import Reply
from broker.upstream.answers import LACKS_PERMISSION, OUT_OF_CREDIT, STALE

Verdict = Literal[
    "taken", "lacks permission", "refused", "no credit", "trouble", "no path", "not Coze's", "untold"
]

_OF_CODE: dict[int | None, Verdict] = {
    0: "taken",
    4200: "taken",  # no such file
    4000: "taken",  # no number of a file
    LACKS_PERMISSION: "lacks permission",
    **dict.fromkeys(STALE, "refused"),
    **dict.fromkeys(OUT_OF_CREDIT, "no credit"),
}
_OF_CREDENTIAL = (401, 403)


def verdict_of(reply: Reply, *, has_other_region: bool, anonymous: Reply | None = None) -> Verdict:
    """By Coze's code, and by the status where that says more.

    ``has_other_region`` says that it is one of Coze's own two, which send an id with each answer. What was
    told ``anonymous`` callers, too, says nothing of a credential.
    """
    if reply.is_trouble:
        return "trouble"
    if reply.is_unknown_path:
        return "no path"
    if not _is_cozes(reply, has_other_region=has_other_region):
        return "not Coze's"
    if anonymous is not None and _is_the_same(reply, anonymous) and not _is_clear(reply):
        return "untold"
    return _OF_CODE.get(reply.number) or ("refused" if reply.status in _OF_CREDENTIAL else "untold")


def _is_cozes(reply: Reply, *, has_other_region: bool) -> bool:
    if has_other_region and reply.logid is None:
        return False
    return bool(reply.code) or (reply.is_cozes and reply.status in _OF_CREDENTIAL)


def _is_the_same(reply: Reply, anonymous: Reply) -> bool:
    return (reply.status, reply.code) == (anonymous.status, anonymous.code)


def _is_clear(reply: Reply) -> bool:
    """Whether Coze says in so many words that it does not know the credential."""
    return reply.number in STALE and not reply.asks_for_cookie
