"""Step ``region``: is the account of this cloud? ``api.coze.cn`` and ``api.coze.com`` share none."""

from __future__ import annotations

from dataclasses import replace

from broker.doctor.calling import CallFailedError, open_client
from broker.doctor.exchange import Exchanged, exchanged
from broker.doctor.finding import Finding, failed, ok, skipped, warning
from broker.doctor.http import facts_of
from broker.doctor.way import Way


async def examine(way: Way) -> Finding:
    """By an exchange of the server's app, or the browser's. A fixed token is sent to no other region to find
    out; an assertion is good for one call at the host it was made for, so it may be.
    """
    if way.has_broken_app:
        return skipped("an OAuth app is not whole, see the step settings")
    app = way.settings.server_app or way.settings.browser_app
    if app is None:
        return skipped("only an OAuth app tells; the step credential tries the token")
    try:
        here = await exchanged(way.coze, app, way.settings.coze_api_base)
    except CallFailedError as error:
        return failed(
            f"no answer from the token endpoint: {error.sentence}", "It can't be told.", "Try again."
        )
    if here.token and way.settings.server_app is not None:
        way.tokens["server"] = here.token
    elsewhere = await _is_known_elsewhere(way) if here.is_unknown_kid else None
    return judged(way, here, is_known_elsewhere=elsewhere)


def judged(way: Way, here: Exchanged, *, is_known_elsewhere: bool | None) -> Finding:
    """What the token endpoint's answer says of the region; all else it says is the next step's.

    ``is_known_elsewhere`` is None where the other region could not be asked, or there is none.
    """
    host, facts = way.target.host, facts_of(here.reply)
    other = way.other_region.get(way.target.origin.partition("://")[2])
    if here.is_trouble:
        return warning(f"the token endpoint answers {here.reply}", "It can't be told.", **facts)
    if not here.is_unknown_kid:
        return ok(f"{host} knows the OAuth app's key", **facts)
    found = f"{host} does not know the OAuth app's key ({here.reply.message})"
    if is_known_elsewhere:
        return failed(
            found,
            f"The app belongs to the other region: {other} knows it.",
            f"Set COZE_API_BASE={other}, or take an app of an account at {host}.",
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
    url = way.other_region.get(way.target.origin.partition("://")[2])
    app = way.settings.server_app or way.settings.browser_app
    if url is None or app is None:
        return None
    there = replace(way, settings=way.settings.model_copy(update={"coze_api_base": url}), client=None)
    try:
        async with open_client(there) as client:
            done = await exchanged(client, app, url)
    except CallFailedError:
        return None
    return False if done.is_unknown_kid else bool(done.token) or None
