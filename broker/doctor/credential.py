"""Step ``credential``: what does the broker show Coze, does Coze take it, and what may it do? What it is
is never printed.
"""

from __future__ import annotations

from typing import Any

from broker.doctor.calling import CallFailedError, Reply, ask
from broker.doctor.exchange import Exchanged, exchanged
from broker.doctor.finding import Finding, failed, joined, ok, warning
from broker.doctor.http import NO_FILE, facts_of
from broker.doctor.tls import CLOCK
from broker.doctor.verdict import Verdict, verdict_of
from broker.doctor.way import Way
from broker.settings import OAuthApp
from broker.upstream.coze import RETRIEVE_PATH
from broker.upstream.oauth import CLOCK_SKEW_SECONDS

KINDS = {
    "pat_": "a personal access token",
    "sat_": "a service access token",
    "czs_": "an access token",
    "czu_": "a user's access token",
    "cztei_": "a workload's token",
}
SERVER_APP = "COZE_JWT_OAUTH_…: an OAuth app (JWT)"
BROWSER_APP = "COZE_BROWSER_OAUTH_…"
NOT_COZE = "That is no answer of Coze's: something on the way answers in its place."
BETWEEN = "Look at what stands in between; check COZE_API_BASE, its path too."
TROUBLE = "Coze has trouble, or too much to do."
WAIT = "Wait, and try again."
NO_CREDIT = "The account's credit or plan is used up."
SEE_ACCOUNT = "See the account at Coze."
NO_ENDPOINT = "There seems to be no token endpoint at this address: one refuses with an error_code."
UNTOLD = "whether it may upload is told by --upload alone"


async def examine(way: Way) -> Finding:
    """The server's credential, and the browser's app, if there is one."""
    if way.has_broken_app:
        means = "The broker does not start with half an app, or with a private key that it can't read."
        return failed("an OAuth app is not whole", means, "See the step settings.")
    try:
        finding = await _of_server(way)
        if way.settings.browser_app is None:
            return finding
        return joined(finding, await _of_browser(way, way.settings.browser_app), "browser_")
    except CallFailedError as error:
        return failed(f"no answer: {error.sentence}", "It can't be told.", "Try again.", code=error.code)


def kind_of(token: str) -> str:
    """Of a fixed token, by what it begins with."""
    return next(
        (name for prefix, name in KINDS.items() if token.startswith(prefix)), "a token of unknown kind"
    )


# --- the server's ---------------------------------------------------------------------------------------


async def _of_server(way: Way) -> Finding:
    app, fixed = way.settings.server_app, way.settings.coze_api_token
    if app is not None:
        name, done = SERVER_APP, await exchanged(way, "server", app)
        if done.token is None:
            return refused_app(name, done, way.clock_ahead_seconds)
    elif fixed is not None:
        token = way.tokens["server"] = fixed.get_secret_value().strip()
        name = f"COZE_API_TOKEN: {kind_of(token)}"
    else:
        return failed(
            "there is none", "Nothing can go through the broker.", "Set COZE_API_TOKEN or an OAuth app."
        )
    return judged(
        name,
        await ask(way, "GET", RETRIEVE_PATH, token=way.tokens["server"], params=NO_FILE),
        is_app=app is not None,
        has_other_region=way.other_url is not None,
        anonymous=way.anonymous,
    )


def judged(
    name: str, reply: Reply, *, is_app: bool, has_other_region: bool, anonymous: Reply | None = None
) -> Finding:
    """By what Coze says of a file that does not exist: not found, not permitted, or not known at all; and by
    what it says of that to ``anonymous`` callers.
    """
    facts = {**facts_of(reply), "kind": name}
    verdict = verdict_of(reply, has_other_region=has_other_region, anonymous=anonymous)
    if verdict == "taken":
        return ok(f"{name}; Coze takes it; {UNTOLD}", **facts)
    if verdict == "lacks permission":
        said = "Coze takes it; it may not look files up (retrieveFile)"
        if has_other_region and not is_app:  # some calls say so of a token of the other region, too
            said = "Coze says that it may not look files up (retrieveFile), or it is of the other region"
        return ok(f"{name}; {said}; {UNTOLD}", **facts)
    if verdict == "refused":
        means = "It is mistyped, expired, revoked" if not is_app else "Its access token is refused"
        means += ", or of the other region." if has_other_region else ", or of another server."
        do = "Make a new one at Coze, in the region of COZE_API_BASE. A personal one lives 30 days at most."
        return failed(f"{name}; Coze refuses it ({reply})", means, do, **facts)
    return _otherwise(verdict, name, reply, facts)


def _otherwise(verdict: Verdict, name: str, reply: Reply, facts: dict[str, Any]) -> Finding:
    """For an answer that says nothing of the credential itself."""
    found = f"{name}; the answer is {reply}"
    if not reply.is_cozes or verdict == "not Coze's":
        found += f" ({reply.sender})"
    if verdict == "no credit":
        return failed(found, NO_CREDIT, SEE_ACCOUNT, **facts)
    if verdict == "trouble":
        return failed(found, f"It can't be told: {TROUBLE}", WAIT, **facts)
    if verdict == "no path":
        return failed(found, "Coze has no such path.", BETWEEN, **facts)
    if verdict == "not Coze's":
        return (failed if reply.status in (401, 403) else warning)(found, NOT_COZE, BETWEEN, **facts)
    means = "This Coze doesn't tell by look-ups whether it takes the credential."
    return warning(found, means, "Run it with --upload, which does.", **facts)


def refused_app(name: str, done: Exchanged, clock_ahead_seconds: float | None = None) -> Finding:
    """No access token for an app: what Coze said, and what helps. The clock is not to blame where it was seen
    to agree with Coze's.
    """
    facts = {**facts_of(done.reply), "kind": name}
    may_be_clock = clock_ahead_seconds is None or abs(clock_ahead_seconds) > CLOCK_SKEW_SECONDS
    if done.is_trouble:
        return _otherwise("trouble", name, done.reply, facts)
    if not done.is_endpoints:
        return _no_endpoint(name, done, facts, may_be_clock=may_be_clock)
    found = f"{name}; Coze gives no access token ({done.reply})"
    if done.is_about_time and may_be_clock:
        return failed(found, "The assertion's times are off: this machine's clock is wrong.", CLOCK, **facts)
    return failed(
        found,
        "Client id, public key id and private key don't belong together, or the app is disabled.",
        "Compare all three with the app's page at Coze; a change there takes some seconds to act.",
        **facts,
    )


def _no_endpoint(name: str, done: Exchanged, facts: dict[str, Any], *, may_be_clock: bool) -> Finding:
    """For an answer that is not a token endpoint's refusal."""
    if done.is_unusable:
        means = "Coze's answer to the token request can't be used: no token, or none that is still good."
        do = f"{CLOCK} {BETWEEN}" if may_be_clock else BETWEEN
        return failed(f"{name}; there is no token to use in the answer", means, do, **facts)
    if not done.reply.code:
        found = f"{name}; the answer is {done.reply} ({done.reply.sender})"
        return failed(found, NOT_COZE, BETWEEN, **facts)
    found = f"{name}; the answer is {done.reply}"
    do = (
        "Check COZE_API_BASE, its path too. A Coze Studio has no OAuth: set COZE_API_TOKEN there, and no app."
    )
    return failed(found, NO_ENDPOINT, do, **facts)


# --- the browser's app ----------------------------------------------------------------------------------


async def _of_browser(way: Way, app: OAuthApp) -> Finding:
    done = await exchanged(way, "browser", app)
    if done.token is None:
        return refused_app(BROWSER_APP, done, way.clock_ahead_seconds)
    reply = await ask(way, "GET", RETRIEVE_PATH, token=done.token.value, params=NO_FILE)
    return judged_browser(
        BROWSER_APP, reply, has_other_region=way.other_url is not None, anonymous=way.anonymous
    )


def judged_browser(
    name: str, reply: Reply, *, has_other_region: bool = False, anonymous: Reply | None = None
) -> Finding:
    """What goes into browsers should be able to upload and nothing else."""
    facts = facts_of(reply)
    verdict = verdict_of(reply, has_other_region=has_other_region, anonymous=anonymous)
    if verdict == "lacks permission":
        return ok(f"{name}: Coze takes it; it may not look files up, as it should be", **facts)
    if verdict == "refused":
        means = "Tokens for the direct route are refused."
        return failed(f"{name}; Coze refuses its token ({reply})", means, "Check the app at Coze.", **facts)
    if verdict == "taken":
        means = "Its tokens are in browsers, and can look up files of the whole account."
        do = "Take all permissions but uploadFile from that app."
        return warning(f"{name}: Coze takes it; it may look files up", means, do, **facts)
    return _otherwise(verdict, name, reply, facts)
