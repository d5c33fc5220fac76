"""Step ``region``: is the account of this cloud? ``api.coze.cn`` and ``api.coze.com`` share none."""

from __future__ import annotations

from dataclasses import replace

from broker.doctor.calling import CallFailedError, open_client
from broker.doctor.exchange import Exchanged, Whose, app_of, exchanged
from broker.doctor.finding import Finding, failed, ok, skipped, warning
from broker.doctor.http import facts_of
from broker.doctor.way import Way


async def examine(way: Way) -> Finding:
    """By an exchange of the server's app, or the browser's. A fixed token is sent to no other region to find
    out; an assertion is good for one call at the host it was made for, so it may be.
    """
    if way.has_broken_app:
        return skipped("an OAuth app is not whole, see the step settings")
    whose = _whose(way)
    app = app_of(way, whose)
    if app is None:
        return skipped("only an OAuth app tells; the step credential tries the token")
    try:
        here = await exchanged(way, whose, app)
    except CallFailedError as error:
        return failed(
            f"no answer from the token endpoint: {error.sentence}", "It can't be told.", "Try again."
        )
    elsewhere = await _is_known_elsewhere(way) if here.is_unknown_kid else None
    return judged(way, here, is_known_elsewhere=elsewhere)


def judged(way: Way, here: Exchanged, *, is_known_elsewhere: bool | None) -> Finding:
    """What the token endpoint's answer says of the region; all else it says is the next step's.

    ``is_known_elsewhere`` is None where the other region could not be asked, or there is none.
    """
    host, facts = way.target.host, facts_of(here.reply)
    if here.token is not None:
        return ok(f"{host} knows the OAuth app's key", **facts)
    if not here.is_unknown_kid:
        return warning(
            f"the token endpoint gives no token ({here.reply})",
            "Whether the region is right can't be told by that.",
            "See the step credential.",
            **facts,
        )
    found = f"{host} does not know the OAuth app's key ({here.reply.message})"
    if is_known_elsewhere:
        return failed(
            found,
            f"The app belongs to the other region: {way.other_url} knows it.",
            f"Set COZE_API_BASE={way.other_url}, or take an app of an account at {host}.",
            **facts,
        )
    means = "The public key id is wrong or was removed"
    means += (
        "; the other region does not know it, too."
        if is_known_elsewhere is False
        else ", or the app belongs to the other region."
    )
    return failed(
        found,
        means,
        "Compare …_PUBLIC_KEY_ID with the fingerprint on the app's page at Coze; is COZE_API_BASE the region "
        "where you log in?",
        **facts,
    )


async def _is_known_elsewhere(way: Way) -> bool | None:
    """None where nobody there says so: it may be out of reach from here, or busy."""
    url, whose = way.other_url, _whose(way)
    app = app_of(way, whose)
    if url is None or app is None:
        return None
    settings = way.settings.model_copy(update={"coze_api_base": url})
    there = replace(way, settings=settings, client=None, tokens={}, exchanges={})
    try:
        async with open_client(there) as there.client:
            done = await exchanged(there, whose, app)
    except CallFailedError:
        return None
    return False if done.is_unknown_kid else done.token is not None or None


def _whose(way: Way) -> Whose:
    return "browser" if way.settings.server_app is None else "server"
