"""The commands ``broker keys …``: the life of an API key, on the machine that has its database."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker import settings
from broker.auth.key_format import KeyKind
from broker.auth.key_rules import KeyRulesError
from broker.auth.rights import Rights
from broker.cli_rights import OPTIONS, bound, takes_rights
from broker.cli_store import with_ready_database
from broker.errors import KeyRevoked, NotFound
from broker.settings.fields import MAX_GRACE_SECONDS
from broker.terminal import AsJson, Result, err, or_stop, out, print_line, print_table, say, stop

if TYPE_CHECKING:
    from broker.auth.api_keys import ApiKey, ApiKeys
    from broker.state.database import Database

keys = typer.Typer(no_args_is_help=True, help="Make, list, show, change, rotate and revoke API keys.")

DAY_SECONDS = 86_400
MAX_DAYS = 36_500
PAGE = 500

KeyId = Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]
Owner = Annotated[str | None, typer.Option(help="Whose key it is; any name of yours.")]
Scopes = Annotated[list[str] | None, typer.Option("--scope", help="What it may do; give one for each.")]
Origins = Annotated[list[str] | None, typer.Option("--origin", help="An origin that it may be used from.")]
Signing = Annotated[bool, typer.Option("--signing", help="Show the secret for signed requests, too.")]


@keys.command("create")
@takes_rights
def create(
    *,
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Scopes = None,
    publishable: Annotated[
        bool, typer.Option(help="A key for a page: it may mint tokens and nothing else.")
    ] = False,
    owner: Owner = None,
    origin: Origins = None,
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, max=MAX_DAYS, help="After how many days it expires; else never.")
    ] = None,
    signing: Signing = False,
    as_json: AsJson = False,
    bounds: dict[str, Any],
) -> None:
    """Make a key. It is shown this once."""
    _check_origins(origin)
    key, secret, signing_secret = _with_keys(
        lambda store: _issued(
            store,
            store.create(
                name=name,
                kind="publishable" if publishable else "secret",
                owner=owner or "",
                scopes=scope or (),
                origins=origin or (),
                rights=bound(Rights(), bounds),
                expires_at=_expiry(expires_in_days),
            ),
        )
    )
    _warn_of_origins(key)
    _show_secret(key, secret, signing_secret, signing=signing, as_json=as_json)


@keys.command("list")
def list_(
    *,
    owner: Annotated[str | None, typer.Option(help="Only keys of this owner.")] = None,
    kind: Annotated[KeyKind | None, typer.Option(help="Only keys of this kind.")] = None,
    active: Annotated[bool, typer.Option("--active", help="Only keys that can be used now.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the keys, masked."""

    async def all_of_them(store: ApiKeys) -> list[ApiKey]:
        found: list[ApiKey] = []
        cursor = None
        while True:
            page = await store.list(limit=PAGE, cursor=cursor, owner=owner, kind=kind, active_only=active)
            found += page.keys
            if (cursor := page.next_cursor) is None:
                return found

    found, now = _with_keys(all_of_them), time.time()
    if as_json:
        print_line([key.described(now) for key in found])
        return
    rows = [
        (key.id, key.name, key.owner, key.hint, *map(" ".join, (key.scopes, key.origins)), key.status(now))
        for key in found
    ]
    print_table(("id", "name", "owner", "key", "scopes", "origins", "state"), rows)


@keys.command("show")
def show(key_id: KeyId, as_json: AsJson = False) -> None:
    """Show all that is known of a key, masked."""
    key = _with_keys(lambda store: store.find(key_id))
    if key is None:
        stop([f"There is no key {key_id}."])
    _show(key, as_json=as_json)


@keys.command("update")
@takes_rights
def update(
    key_id: KeyId,
    *,
    name: Annotated[str | None, typer.Option(help="What the key is for.")] = None,
    scope: Scopes = None,
    owner: Owner = None,
    origin: Origins = None,
    expires_in_days: Annotated[
        int | None, typer.Option(min=0, max=MAX_DAYS, help="Days from now until it expires; 0 for never.")
    ] = None,
    clear: Annotated[
        list[str] | None, typer.Option(help=f"Take a bound away: origin, {', '.join(OPTIONS)}.")
    ] = None,
    as_json: AsJson = False,
    bounds: dict[str, Any],
) -> None:
    """Change a key. What is given replaces what was; a list is replaced as a whole."""
    _check_origins(origin)
    cleared = [each.replace("-", "_") for each in clear or []]
    if unknown := set(cleared) - {"origin", *OPTIONS}:
        stop([f"--clear: there is no {', '.join(sorted(unknown))} to take away."])
    plain = {
        "name": name,
        "owner": owner,
        "scopes": tuple(scope) if scope else None,
        "origins": tuple(origin) if origin else () if "origin" in cleared else None,
        "expires_at": None if expires_in_days is None else _expiry(expires_in_days),
    }
    given: dict[str, Any] = {field: value for field, value in plain.items() if value is not None}
    if not (given or bounds or cleared):
        stop([f"Say what to change: {', '.join(plain)}, or a bound."])
    key = _with_keys(
        lambda store: store.update(
            key_id, lambda old: replace(old, **given, rights=bound(old.rights, bounds, cleared))
        )
    )
    _warn_of_origins(key)
    _show(key, as_json=as_json)


@keys.command("rotate")
def rotate(
    key_id: KeyId,
    *,
    grace_seconds: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MAX_GRACE_SECONDS,
            help="How long the old secret works on [BROKER_ROTATION_GRACE_SECONDS].",
        ),
    ] = None,
    signing: Signing = False,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret, which is shown this once; the old one works on for a while."""
    grace = or_stop(settings.load_for_store).broker_rotation_grace_seconds
    if grace_seconds is not None:
        grace = grace_seconds
    key, secret, signing_secret = _with_keys(
        lambda store: _issued(store, store.rotate(key_id, grace_seconds=grace))
    )
    _show_secret(key, secret, signing_secret, signing=signing, as_json=as_json)
    if not as_json:
        for old in key.secrets[1:]:
            err.print(f"{old.hint} works until {_date(old.expires_at)}.", highlight=False)


@keys.command("revoke")
def revoke(key_id: KeyId, as_json: AsJson = False) -> None:
    """Make a key useless from now on, for good."""

    async def revoked(store: ApiKeys) -> ApiKey | None:
        return await store.find(key_id) if await store.revoke(key_id) else None

    key = _with_keys(revoked)
    if key is None:
        stop([f"There is no key {key_id} that could be revoked."])
    if as_json:
        print_line(key.described(time.time()))
    else:
        out.print(f"{key_id} is revoked.", highlight=False)


def _with_keys(work: Callable[[ApiKeys], Awaitable[Result]]) -> Result:
    """Open the store of keys, do one thing with it, close it."""
    from broker import opening

    async def run(given: settings.Settings, database: Database) -> Result:
        async with opening.changing_keys(given, database) as store:
            try:
                return await work(store)
            except (KeyRulesError, KeyRevoked, NotFound) as error:
                stop([str(error)])

    return with_ready_database(run)


async def _issued(store: ApiKeys, made: Awaitable[tuple[ApiKey, str]]) -> tuple[ApiKey, str, str | None]:
    """A key, its new secret, and what requests are signed with instead of sending it."""
    key, secret = await made
    return key, secret, store.hashing.shown_signing_secret(secret)


def _expiry(days: int | None) -> int:
    return int(time.time()) + days * DAY_SECONDS if days else 0


def _check_origins(origins: list[str] | None) -> None:
    wrong = [value for value in origins or [] if not settings.is_origin(value)]
    if wrong:
        stop([f"--origin: {settings.not_an_origin(value)}" for value in wrong])


def _warn_of_origins(key: ApiKey) -> None:
    for value in sorted(set(key.origins) - set(or_stop(settings.load_for_store).allowed_origins)):
        say("yellow", "warning", f"browsers keep {value} out until it is one of BROKER_ALLOWED_ORIGINS.")


def _show_secret(
    key: ApiKey, secret: str, signing_secret: str | None, *, signing: bool, as_json: bool
) -> None:
    shown = {} if signing_secret is None else {"signing_secret": signing_secret}
    if as_json:
        print_line({"id": key.id, "key": secret, **shown, **key.described(time.time())})
        return
    out.print(f"{key.id}  {', '.join(key.scopes)}\n\n    {secret}\n", highlight=False, soft_wrap=True)
    if signing and signing_secret:
        out.print(f"    {signing_secret}\n", highlight=False, soft_wrap=True)
    err.print("Keep it now: it can't be shown again.", highlight=False)


def _show(key: ApiKey, *, as_json: bool) -> None:
    described = key.described(time.time())
    if as_json:
        print_line(described)
        return
    print_table(("field", "value"), ((name, _shown(name, value)) for name, value in described.items()))


def _shown(name: str, value: Any) -> str:
    """A value as people read it."""
    if name.endswith("_at"):
        return _date(value) if value else "never"
    if name == "secrets":
        return ", ".join(f"{each['hint']} ({_shown('expires_at', each['expires_at'])})" for each in value)
    if isinstance(value, dict):
        return (
            "; ".join(f"{part}: {_shown(part, bound)}" for part, bound in value.items() if bound)
            or "no bounds"
        )
    return " ".join(value) if isinstance(value, (list, tuple)) else str(value)


def _date(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
