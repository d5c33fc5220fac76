"""The commands ``broker signing-keys …``: the ring that tokens and receipts are signed with, in its file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli_store import store_settings, with_ready_database
from broker.settings import Settings
from broker.terminal import AsJson, or_stop, print_line, print_table, stop

if TYPE_CHECKING:
    from broker.state.database import Database

signing_keys = typer.Typer(no_args_is_help=True, help="The keys that the broker signs its tokens with.")

KeyId = Annotated[str, typer.Argument(help="The key's kid, as `signing-keys list` shows it.")]


@signing_keys.command("list")
def signing_keys_list(as_json: AsJson = False) -> None:
    """List the keys: which one signs, and which only verify."""
    from broker import opening

    _show_ring(or_stop(lambda: opening.read_ring(store_settings())), as_json=as_json)


@signing_keys.command("add")
def signing_keys_add(as_json: AsJson = False) -> None:
    """Make a key that verifies, and does not sign yet. `rotate KID` lets it sign."""
    from broker.auth import rotation

    _change_ring(lambda _, ring: rotation.added(ring), as_json=as_json)


@signing_keys.command("rotate")
def signing_keys_rotate(
    kid: Annotated[str | None, typer.Argument(help="The key that is to sign; by default a new one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let another key sign. What the old one signed stays good."""
    from broker.auth import rotation

    _change_ring(lambda _, ring: rotation.rotated(ring, kid, int(time.time())), as_json=as_json)


@signing_keys.command("retire")
def signing_keys_retire(kid: KeyId, as_json: AsJson = False) -> None:
    """Keep only the public half of a key, so that its receipts still verify."""
    from broker.auth import rotation

    _change_ring(lambda _, ring: rotation.retired(ring, kid), as_json=as_json)


@signing_keys.command("remove")
def signing_keys_remove(
    kid: KeyId,
    now: Annotated[bool, typer.Option("--now", help="Even if tokens live that it signed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take a key out of the ring. What it signed is good no more, receipts too."""
    from broker.auth import rotation

    def without(given: Settings, ring: Any) -> Any:
        # A token for the receipt of a direct upload outlives the upload's own.
        longest = given.broker_token_max_ttl_seconds + given.broker_upload_max_seconds
        life_seconds = 0 if now else longest + rotation.SLACK_SECONDS
        return rotation.removed(ring, kid, int(time.time()), life_seconds=life_seconds)

    _change_ring(without, as_json=as_json)


def _change_ring(change: Callable[[Settings, Any], Any], *, as_json: bool) -> None:
    from broker import opening
    from broker.auth.rotation import RotationError

    async def run(given: Settings, database: Database) -> Any:
        return await opening.audited_ring(given, database, lambda keys: change(given, keys))

    try:
        ring = with_ready_database(run)
    except RotationError as error:
        stop([str(error)])
    _show_ring(ring, as_json=as_json)


def _show_ring(ring: Any, *, as_json: bool) -> None:
    from broker.auth import rotation

    rows = rotation.described(ring)
    if as_json:
        print_line(rows)
    else:
        cells = [(row["kid"], row["use"], _moment(row["signs_since"])) for row in rows]
        print_table(("kid", "use", "began to sign"), cells)


def _moment(unix_seconds: Any) -> str:
    return "" if unix_seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_seconds))
