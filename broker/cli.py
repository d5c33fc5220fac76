"""The command ``broker``. Thin: each command reads its arguments, calls one thing, prints what it gave."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)

from broker import __version__, settings

app = typer.Typer(name="broker", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
app.add_typer(keys, name="keys")

out = Console()
err = Console(stderr=True)

Result = TypeVar("Result")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BrokerUrl = Annotated[str, typer.Option("--broker", envvar="BROKER_URL", help="Where the broker is.")]
ApiKeyOption = Annotated[
    str, typer.Option("--api-key", envvar="BROKER_API_KEY", help="An API key of the broker's.")
]
DAY_SECONDS = 86_400
USAGE_ERROR = 2
TOO_MANY_WORKERS = (
    "--workers: more than one worker needs shared state in Redis, which this version does not have."
)


def main() -> None:
    """Where the installed command begins. What a terminal can't show is replaced, not a reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """The hybrid upload broker for Coze."""
    if version:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on [HOST].")] = None,
    port: Annotated[
        int | None, typer.Option(help="The port to listen on [PORT]; 0 takes a free one.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many processes.")] = 1,
) -> None:
    """Run the broker."""
    if workers > 1:
        _stop([TOO_MANY_WORKERS, *_problems_of(lambda: settings.load(host=host, port=port))])
    checked = _or_stop(lambda: settings.load(host=host, port=port))
    gc.disable()  # nothing is garbage while modules load; looking for it takes a tenth of the start
    from broker.serve import serve as run  # noqa: PLC0415 - so that other commands start fast

    _or_stop(lambda: run(checked))


@app.command()
def demo(
    check: Annotated[bool, typer.Option("--check", help="Upload one file by each route, then exit.")] = False,
) -> None:
    """Broker, sandbox Coze and page on this machine; needs no credentials."""
    from broker.demo import run  # noqa: PLC0415

    raise typer.Exit(run(check=check))


@app.command()
def sandbox(
    host: Annotated[str, typer.Option(help="A loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.")] = 2027,
    config: Annotated[Path | None, typer.Option(help="A JSON file with apps and tokens.")] = None,
    credentials_dir: Annotated[Path | None, typer.Option(help="Where to put the generated keys.")] = None,
    as_json: AsJson = False,
) -> None:
    """A small Coze for trying things out; made-up credentials are printed."""
    from broker.sandbox.serve import run  # noqa: PLC0415

    try:
        run(host, port, config_file=config, credentials_dir=credentials_dir, as_json=as_json)
    except (OSError, OverflowError, ValueError) as error:
        _stop([f"the sandbox can't start: {error}"])


@app.command()
def upload(
    files: Annotated[list[Path], typer.Argument(help="The files to upload.")],
    api_key: ApiKeyOption,
    broker: BrokerUrl = "http://127.0.0.1:2026",
    as_json: AsJson = False,
) -> None:
    """Upload files through the broker and print their file_ids."""
    from broker.uploader import BrokerClient, UploadFailedError  # noqa: PLC0415

    client, failed = BrokerClient(broker, api_key), False
    for path in files:
        try:
            answer = _with_progress(path, client.upload)
        except UploadFailedError as error:
            failed = True
            _say("red", "error", f"{path}: {error}")
        else:
            _print_line({"path": str(path), **answer} if as_json else f"{answer['file_id']}  {path}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def token(
    *,
    size: Annotated[int, typer.Option(help="The file's size in bytes.")],
    api_key: ApiKeyOption,
    broker: BrokerUrl = "http://127.0.0.1:2026",
    route: Annotated[str, typer.Option(help="auto, direct or proxy.")] = "auto",
    subject: Annotated[str | None, typer.Option(help="Whom the token is for.")] = None,
    ttl_seconds: Annotated[int | None, typer.Option(help="How long the token lives.")] = None,
    sensitive: Annotated[bool, typer.Option(help="Never straight from the browser.")] = False,
) -> None:
    """Mint a token and print it as JSON."""
    from broker.uploader import BrokerClient, UploadFailedError  # noqa: PLC0415

    asked = {
        "size": size,
        "route": route,
        "subject": subject,
        "ttl_seconds": ttl_seconds,
        "sensitive": sensitive,
    }
    try:
        answer = BrokerClient(broker, api_key).mint(**{k: v for k, v in asked.items() if v is not None})
    except UploadFailedError as error:
        _say("red", "error", str(error))
        raise typer.Exit(1) from None
    _print_line(answer)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Every setting, its value with secrets masked, and where the value comes from."""
    given = _or_stop(settings.read)
    rows = [
        (name.upper(), _shown(getattr(given, name)), settings.source_of(name))
        for name in settings.Settings.model_fields
    ]
    if as_json:
        _print_line({name: {"value": value, "source": source} for name, value, source in rows})
    else:
        _print_table(("setting", "value", "source"), rows)
    problems = settings.problems(given)
    for sentence in settings.warnings(given) if not problems else []:
        _say("yellow", "warning", sentence)
    if problems:
        _stop(problems)


@keys.command("create")
def keys_create(
    *,
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="What the key may do; give it once for each scope.")
    ] = None,
    publishable: Annotated[
        bool, typer.Option(help="A key for a page: it may mint tokens and nothing else.")
    ] = False,
    origin: Annotated[list[str] | None, typer.Option(help="An origin that the key may be used from.")] = None,
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="After how many days it expires; else never.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown this once."""
    from broker.auth.api_keys import KeyRulesError  # noqa: PLC0415

    wrong = [value for value in origin or [] if not settings.is_origin(value)]
    if wrong:
        _stop([f"--origin: {settings.not_an_origin(value)}" for value in wrong])
    expires_at = int(time.time()) + expires_in_days * DAY_SECONDS if expires_in_days else 0
    kind = "publishable" if publishable else "secret"
    try:
        key, secret = _with_keys(
            lambda store: store.create(
                name=name, kind=kind, scopes=scope or (), origins=origin or (), expires_at=expires_at
            )
        )
    except KeyRulesError as error:
        _stop([str(error)])
    for value in sorted(set(key.origins) - set(_or_stop(settings.load_for_store).allowed_origins)):
        _say("yellow", "warning", f"browsers keep {value} out until it is one of BROKER_ALLOWED_ORIGINS.")
    if as_json:
        _print_line({"id": key.id, "key": secret, **_described(key)})
    else:
        out.print(f"{key.id}  {', '.join(key.scopes)}\n\n    {secret}\n", highlight=False, soft_wrap=True)
        err.print("Keep it now: it can't be shown again.", highlight=False)


@keys.command("list")
def keys_list(as_json: AsJson = False) -> None:
    """List the keys, masked."""
    found = _with_keys(lambda store: store.list())
    if as_json:
        _print_line([{"id": key.id, **_described(key)} for key in found])
        return
    rows = [
        (key.id, key.name, key.hint, " ".join(key.scopes), " ".join(key.origins), _state(key))
        for key in found
    ]
    _print_table(("id", "name", "key", "scopes", "origins", "state"), rows)


@keys.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
) -> None:
    """Make a key useless from now on."""
    if not _with_keys(lambda store: store.revoke(key_id)):
        _stop([f"There is no key {key_id} that could be revoked."])
    out.print(f"{key_id} is revoked.", highlight=False)


def _with_keys(work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Open the store of keys, do one thing with it, close it."""
    given = _or_stop(settings.load_for_store)
    from broker import opening  # noqa: PLC0415
    from broker.observe import logs  # noqa: PLC0415
    from broker.state.database import Database  # noqa: PLC0415

    logs.configure(given.broker_log_format, "warning")

    async def run() -> Result:
        database = Database(given.resolved_database_url)
        try:
            await database.migrate()
            return await work(opening.api_keys(given, database))
        finally:
            await database.close()

    def run_and_tell() -> Result:
        with opening.troubles_told():
            return asyncio.run(run())

    return _or_stop(run_and_tell)


def _described(key: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(key).items() if name != "id"}


def _state(key: Any) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if 0 < key.expires_at <= time.time() else "active"


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, SecretStr):
        return "(set, not shown)"
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return re.sub("//[^/@]*@", "//(not shown)@", text)


def _with_progress(path: Path, send: Callable[..., Result]) -> Result:
    """The last byte sent is not yet a file stored: the bar is full only once there is a file_id."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), DownloadColumn())
    # Standard output is left alone: it may be a pipe, and what goes into it must stay whole.
    with Progress(
        *columns, TransferSpeedColumn(), console=err, disable=not err.is_terminal, redirect_stdout=False
    ) as progress:
        task = progress.add_task(escape(path.name), total=None)

        def show(sent: int, total: int) -> None:
            progress.update(task, completed=min(sent, int(total * 0.99)), total=total)

        answer = send(path, show)
        progress.update(task, completed=progress.tasks[task].total)
    return answer


def _print_line(value: Any) -> None:
    """For pipes: one line, no colours, no wrapping."""
    typer.echo(value if isinstance(value, str) else json.dumps(value))


def _print_table(headings: tuple[str, ...], rows: list[Any]) -> None:
    """Nothing is cut, however narrow the terminal: an id that is cut can't be used."""
    lines = [headings, *(tuple("" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _problems_of(read: Callable[[], Any]) -> list[str]:
    try:
        read()
    except settings.SettingsError as error:
        return error.problems
    return []


def _or_stop(read: Callable[[], Result]) -> Result:
    try:
        return read()
    except settings.SettingsError as error:
        _stop(error.problems)


def _stop(problems: list[str]) -> NoReturn:
    for sentence in problems:
        _say("red", "error", sentence)
    raise typer.Exit(USAGE_ERROR)


def _say(style: str, word: str, sentence: str) -> None:
    err.print(f"[{style}]{word}[/{style}] {escape(sentence)}", highlight=False, soft_wrap=True)
