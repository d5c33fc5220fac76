"""Step ``credential``: what does the broker show Coze, does Coze take it, and what may it do? What it is
is never printed.
"""

from __future__ import annotations

from typing import Any

from broker.doctor.calling import CallFailedError, Reply, ask
from broker.doctor.exchange import Exchanged, exchanged
from broker.doctor.finding import Finding, failed, ok, warning
from broker.doctor.http import NO_FILE, facts_of
from broker.doctor.tls import CLOCK
from broker.doctor.way import Way
from broker.settings import OAuthApp
from broker.upstream.coze import RETRIEVE_PATH

KINDS = {"pat_": "a personal access token", "sat_": "a service access token", "czs_": "an access token"}
REFUSED_CODES = {"4100", "700012006", "401"}
NOT_PERMITTED = "4101"
NO_SUCH_PATH = 404
"""Studio has no look-up of files: whoever is told so was let in."""
NOT_COZE = "That is no answer of Coze's: something on the way answers in its place."
BETWEEN = "Look at what stands in between; check COZE_API_BASE, its path too."
UNTOLD = "whether it may upload is told by --upload alone"


async def examine(way: Way) -> Finding:
    """The server's credential first, then the browser's app, if there is one."""
    if way.has_broken_app:
        means = "The broker does not start with half an app, or with a private key that it can't read."
        return failed("an OAuth app is not whole", means, "See the step settings.")
    try:
        finding = await _of_server(way)
        if finding.status != "ok" or way.settings.browser_app is None:
            return finding
        return _with_browser(finding, await _of_browser(way, way.settings.browser_app))
    except CallFailedError as error:
        return failed(f"no answer: {error.sentence}", "It can't be told.", "Try again.", code=error.code)


def kind_of(token: str) -> str:
    """Of a fixed token, by what it begins with."""
    return next(
        (name for prefix, name in KINDS.items() if token.startswith(prefix)), "a token of unknown kind"
    )


async def _of_server(way: Way) -> Finding:
    app, fixed = way.settings.server_app, way.settings.coze_api_token
    if app is not None:
        name = "COZE_JWT_OAUTH_…: an OAuth app (JWT)"
        token = way.tokens.get("server")
        if token is None:
            done = await exchanged(way.coze, app, way.settings.coze_api_base)
            if not done.token:
                return refused_app(name, done)
            token = way.tokens["server"] = done.token
    elif fixed is not None:
        token = way.tokens["server"] = fixed.get_secret_value().strip()
        name = f"COZE_API_TOKEN: {kind_of(token)}"
    else:
        return failed(
            "there is none", "Nothing can go through the broker.", "Set COZE_API_TOKEN or an OAuth app."
        )
    reply = await ask(way.coze, "GET", RETRIEVE_PATH, token=token, params=NO_FILE)
    return judged(name, reply, is_app=app is not None, has_other_region=way.target.host in way.other_region)


def judged(name: str, reply: Reply, *, is_app: bool, has_other_region: bool) -> Finding:
    """By what Coze says of a file that does not exist: not found, not permitted, or not known at all."""
    facts = {**facts_of(reply), "kind": name}
    if reply.code == NOT_PERMITTED:
        return ok(f"{name}; Coze takes it; it may not look files up (retrieveFile); {UNTOLD}", **facts)
    if reply.code in REFUSED_CODES or (reply.status in (401, 403) and reply.is_cozes):
        means = "It is mistyped, expired, revoked" if not is_app else "Its access token is refused"
        means += ", or of the other region." if has_other_region else ", or of another server."
        do = "Make a new one at Coze, in the region of COZE_API_BASE. A personal one lives 30 days at most."
        return failed(f"{name}; Coze refuses it ({reply})", means, do, **facts)
    if reply.is_trouble or reply.status in (401, 403):
        return _untold(name, reply, facts)
    if not reply.code and reply.status != NO_SUCH_PATH:
        return warning(f"{name}; the answer is {reply} ({reply.sender})", NOT_COZE, BETWEEN, **facts)
    return ok(f"{name}; Coze takes it; {UNTOLD}", **facts)


def refused_app(name: str, done: Exchanged) -> Finding:
    """No access token for an app: what Coze said, and what helps."""
    facts = {**facts_of(done.reply), "kind": name}
    if done.is_trouble:
        return _untold(name, done.reply, facts)
    found = f"{name}; Coze gives no access token ({done.reply})"
    if done.is_about_time:
        return failed(found, "The assertion's times are off: this machine's clock is wrong.", CLOCK, **facts)
    return failed(
        found,
        "Client id, public key id and private key don't belong together, or the app is disabled.",
        "Compare all three with the app's page at Coze; a change there takes some seconds to act.",
        **facts,
    )


def _untold(name: str, reply: Reply, facts: dict[str, Any]) -> Finding:
    """For an answer that says nothing of the credential."""
    found = f"{name}; the answer is {reply}"
    if not reply.is_cozes:
        found += f" ({reply.sender})"
    if reply.is_trouble:
        return failed(found, "Coze has trouble, or too much to do.", "Wait, and try again.", **facts)
    return failed(found, NOT_COZE, BETWEEN, **facts)


# --- the browser's app ----------------------------------------------------------------------------------


async def _of_browser(way: Way, app: OAuthApp) -> Finding:
    name = "COZE_BROWSER_OAUTH_…"
    done = await exchanged(way.coze, app, way.settings.coze_api_base)
    if not done.token:
        return refused_app(name, done)
    way.tokens["browser"] = done.token
    reply = await ask(way.coze, "GET", RETRIEVE_PATH, token=done.token, params=NO_FILE)
    return judged_browser(name, reply)


def judged_browser(name: str, reply: Reply) -> Finding:
    """What goes into browsers should be able to upload and nothing else."""
    facts: dict[str, Any] = {"browser_code": reply.code or None}
    if reply.code == NOT_PERMITTED:
        return ok(f"{name}: Coze takes it; it may not look files up, as it should be", **facts)
    if reply.code in REFUSED_CODES or (reply.status in (401, 403) and reply.is_cozes):
        means = "Tokens for the direct route are refused."
        return failed(f"{name}; Coze refuses its token ({reply})", means, "Check the app at Coze.", **facts)
    if reply.is_trouble or not reply.code:
        return _untold(name, reply, facts)
    means = "Its tokens are in browsers, and can look up files of the whole account."
    do = "Take all permissions but uploadFile from that app."
    return warning(f"{name}: Coze takes it; it may look files up", means, do, **facts)


def _with_browser(server: Finding, browser: Finding) -> Finding:
    facts = {**server.facts, **browser.facts}
    return Finding(browser.status, f"{server.found}. {browser.found}", browser.means, browser.do, facts)
