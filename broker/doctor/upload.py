"""Step ``upload``: one byte to Coze with each credential, for whoever asks for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from broker.doctor.calling import CallFailedError, Reply, ask
from broker.doctor.credential import (
    BETWEEN,
    BROWSER_APP,
    NO_CREDIT,
    NOT_COZE,
    SEE_ACCOUNT,
    TROUBLE,
    WAIT,
)
from broker.doctor.finding import Finding, failed, joined, ok
from broker.doctor.http import facts_of
from broker.doctor.verdict import Verdict, verdict_of
from broker.doctor.way import Way
from broker.upstream.coze import UPLOAD_PATH

FILE = ("doctor.csv", b"1", "text/csv")


async def examine(way: Way) -> Finding:
    """With the credentials of the step before. Is not repeated: it may have gone through."""
    finding = await _sent(way, way.tokens.get("server", ""))
    browser_token = way.tokens.get("browser")
    if browser_token is None:
        return finding
    browser = await _sent(way, browser_token)
    return joined(finding, replace(browser, found=f"{BROWSER_APP}: {browser.found}"), "browser_")


async def _sent(way: Way, token: str) -> Finding:
    try:
        reply = await ask(way, "POST", UPLOAD_PATH, token=token, files={"file": FILE})
    except CallFailedError as error:
        means = "The file may be there or not."
        return failed(f"no answer: {error.sentence}", means, "Try again.", code=error.code, cause=error.cause)
    return judged(reply, has_other_region=way.other_url is not None)


def judged(reply: Reply, *, has_other_region: bool = False) -> Finding:
    """What Coze made of it."""
    facts = facts_of(reply)
    data = (reply.body or {}).get("data")
    file_id = data.get("id") if isinstance(data, dict) else None
    if reply.code == "0" and reply.status < 300 and isinstance(file_id, str):  # noqa: PLR2004 - HTTP's own
        file_id = reply.shown(file_id)
        return ok(f"file_id {file_id}, {reply.seconds * 1000:.0f} ms", **facts, file_id=file_id)
    verdict = verdict_of(reply, has_other_region=has_other_region)
    if verdict == "not Coze's" or not reply.is_cozes:
        return _not_cozes(reply, facts)
    means, do = _why(verdict, reply, has_other_region=has_other_region)
    return failed(f"Coze refuses the file ({reply})", means, do, **facts)


def _not_cozes(reply: Reply, facts: dict[str, Any]) -> Finding:
    do = f"{WAIT} {BETWEEN}" if reply.is_trouble else BETWEEN
    return failed(f"the answer is {reply} ({reply.sender})", NOT_COZE, do, **facts)


def _why(verdict: Verdict, reply: Reply, *, has_other_region: bool) -> tuple[str, str]:
    """What it means that Coze refuses a file, and what to do."""
    if verdict == "no path" or reply.asks_for_cookie:
        return "Coze has no such path.", BETWEEN
    if verdict == "lacks permission":
        or_else = ", or is of the other region" if has_other_region else ""
        do = "Give the app or token the permission uploadFile, in Coze's console."
        return f"The credential may not upload{or_else}.", do
    of_verdict: dict[Verdict, tuple[str, str]] = {
        "refused": ("The credential is refused.", "See the step credential."),
        "no credit": (NO_CREDIT, SEE_ACCOUNT),
        "trouble": (TROUBLE, WAIT),
    }
    return of_verdict.get(verdict, ("Coze did not take it.", "Ask Coze's support, with the logid."))
