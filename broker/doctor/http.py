"""Step ``http``: does something like Coze answer, and how soon?"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

from broker.doctor.calling import CallFailedError, Reply, ask, open_client, shown
from broker.doctor.finding import Finding, failed, ok, warning
from broker.doctor.tls import CLOCK, clock_ahead_seconds
from broker.doctor.way import Way
from broker.settings import Settings
from broker.upstream.coze import RETRIEVE_PATH

SLOW_SECONDS = 2.0
SKEW_SECONDS = 30.0
"""Assertions are dated back by ten seconds; how much more Coze allows is not known."""
NO_FILE = {"file_id": "0"}
CONSOLES = ("www.coze.cn", "www.coze.com", "coze.cn", "coze.com")
PORTAL = "Something on the way answers in Coze's place: a captive portal, a gateway's block page."
GET_THROUGH = "Log in to the network or have Coze's host allowed; check COZE_API_BASE, its path too."


async def examine(way: Way) -> Finding:
    """Asks for a file that does not exist, without a credential: Coze refuses that in its own way."""
    if way.client is None:
        way.client = open_client(way)
    try:
        reply = await ask(way, "GET", RETRIEVE_PATH, params=NO_FILE)
    except CallFailedError as error:
        return _unanswered(error)
    way.anonymous, now = reply, time.time()
    way.clock_ahead_seconds = clock_ahead_seconds(reply.headers.get("date", ""), now)
    return judged(way, reply, now)


def _unanswered(error: CallFailedError) -> Finding:
    facts = {"code": error.code, "cause": error.cause}
    if error.is_bad_answer:
        means = "Another service is at this address, or something on the way breaks answers off."
        return failed(f"no answer: {error.sentence}", means, "Check COZE_API_BASE, its port too.", **facts)
    return failed(
        f"no answer: {error.sentence}",
        "The connection stands, and HTTP over it does not get through.",
        "Look at what stands in between; try again with a longer --timeout.",
        **facts,
    )


def judged(way: Way, reply: Reply, now: float) -> Finding:
    """Whether that is Coze, and what its clock says."""
    skew = clock_ahead_seconds(reply.headers.get("date", ""), now)
    facts: dict[str, Any] = {
        "status": reply.status,
        "milliseconds": round(reply.seconds * 1000, 1),
        "logid": reply.logid,
        "clock_ahead_seconds": None if skew is None else round(skew),
    }
    strange = _strange(way, reply)
    if strange is not None:
        return failed(*strange, **facts)
    found = f"Coze answers, {reply.seconds * 1000:.0f} ms"
    if skew is not None and abs(skew) > SKEW_SECONDS:
        means = (
            f"This machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} Coze's: "
            "assertions and tokens are refused for their times."
        )
        return warning(found, means, CLOCK, **facts)
    if reply.seconds > SLOW_SECONDS:
        return warning(
            found, "That is slow.", "If it stays so, try another network or UPSTREAM_PROXY.", **facts
        )
    return ok(found, **facts)


def path_of(settings: Settings) -> str:
    """The path in COZE_API_BASE, before which Coze's own are put; empty where there is none."""
    return shown(urlsplit(settings.coze_api_base).path)


def _strange(way: Way, reply: Reply) -> tuple[str, str, str] | None:
    """What was found, what it means and what to do, where that is not how Coze answers."""
    host = way.target.host
    if host in CONSOLES:
        where_api = f"Set COZE_API_BASE to https://api.{host.removeprefix('www.')}."
        return f"{host} answers {reply.status}", "That is Coze's website, not its API.", where_api
    if 300 <= reply.status < 400:  # noqa: PLR2004 - HTTP's own
        to = _host_in(reply) or "another place"
        return f"redirected to {to}", PORTAL, GET_THROUGH
    if reply.body is None:
        what = "an HTML page" if reply.is_html else "something that is no JSON"
        return f"{what}, status {reply.status}", *_no_json(reply)
    return _strange_json(way, reply)


def _strange_json(way: Way, reply: Reply) -> tuple[str, str, str] | None:
    if reply.logid is None and way.other_url is not None:  # each answer of Coze's own has one
        return f"JSON without a log id of Coze's, status {reply.status}", PORTAL, GET_THROUGH
    if not reply.is_cozes:
        means = "Another service is at this address."
        return f"JSON that is not Coze's, status {reply.status}", means, "Check COZE_API_BASE."
    if reply.is_unknown_path:
        return f"Coze has no such path ({reply})", *no_path(way.settings)
    if reply.status >= 500:  # noqa: PLR2004 - HTTP's own
        return (
            f"Coze answers {reply}",
            "Coze itself has trouble.",
            "Wait; then ask its support, with the logid.",
        )
    return None


def no_path(settings: Settings) -> tuple[str, str]:
    """What it means, and what to do, where Coze has none of the paths of its own API."""
    path = path_of(settings)
    if not path:
        means = "Another service is at this address, or something in between writes paths anew."
        return means, "Check COZE_API_BASE, and what stands in between."
    means = f"COZE_API_BASE ends in {path}, and Coze's own paths are put behind it."
    return means, f"Take {path} away from COZE_API_BASE."


def _host_in(reply: Reply) -> str:
    try:
        return reply.shown(urlsplit(reply.headers.get("location", "")).hostname or "")
    except ValueError:
        return ""


def _no_json(reply: Reply) -> tuple[str, str]:
    if reply.status in (502, 503, 504):
        means = "A gateway answers, and gets no answer from Coze itself."
        return means, "Wait and try again; if it stays so, look at the gateway or proxy in between."
    return PORTAL, GET_THROUGH


def facts_of(reply: Reply) -> dict[str, Any]:
    """What a program wants of an answer of Coze's."""
    return {"status": reply.status, "code": reply.code or None, "logid": reply.logid}
