"""The command ``broker``. Thin: each command reads its arguments, calls one thing, prints what it gave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

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


def main() -> None:
    """Where the installed command begins."""
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
    workers: Annotated[int, typer.Option(help="How many processes.")] = 1,
) -> None:
    """Run the broker."""
    if workers != 1:
        _stop(
            ["--workers: more than one worker needs shared state in Redis, which this version does not have."]
        )
    from broker.serve import serve as run  # noqa: PLC0415 - so that other commands start fast

    checked = _or_stop(lambda: settings.load(host=host, port=port))
    try:
        run(checked)
    except OSError as error:
        _stop([f"HOST, PORT: can't listen on {checked.host}:{checked.port} ({error.strerror})."])


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

    run(host, port, config_file=config, credentials_dir=credentials_dir, as_json=as_json)


@app.command()
def upload(
    files: Annotated[list[Path], typer.Argument(help="The files to upload.", exists=True, dir_okay=False)],
    api_key: ApiKeyOption,
    broker: BrokerUrl = "http://127.0.0.1:2026",
    as_json: AsJson = False,
) -> None:
    """Upload files through the broker and print their file_ids."""
    from broker.uploader import BrokerClient, UploadFailedError  # noqa: PLC0415

    client, failed = BrokerClient(broker.rstrip("/"), api_key), 0
    with _progress() as progress:
        for path in files:
            task = progress.add_task(path.name, total=path.stat().st_size or None)
            try:
                answer = client.upload(path, _below_100_percent(progress, task, path.stat().st_size))
            except (UploadFailedError, OSError) as error:
                failed += 1
                _say("red", str(path), str(error))
                continue
            progress.update(task, completed=path.stat().st_size)
            _print_line(answer if as_json else f"{answer['file_id']}  {path}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def token(
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
        _print_line(
            BrokerClient(broker.rstrip("/"), api_key).mint(
                **{k: v for k, v in asked.items() if v is not None}
            )
        )
    except UploadFailedError as error:
        _stop([str(error)])


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
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="What the key may do; give it once for each scope.")
    ] = None,
    publishable: Annotated[
        bool, typer.Option(help="A key for a page: it may mint tokens and nothing else.")
    ] = False,
    origin: Annotated[list[str] | None, typer.Option(help="An origin that the key may be used from.")] = None,
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, help="After how many days it expires; else never.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown this once."""
    from broker.auth.api_keys import KeyRulesError  # noqa: PLC0415

    wrong = [value for value in origin or [] if not settings.is_origin(value)]
    if wrong:
        _stop([f"--origin: {value!r} is not an origin like https://app.example.com." for value in wrong])
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
    from broker.app import make_keys  # noqa: PLC0415
    from broker.errors import StoreUnavailable  # noqa: PLC0415
    from broker.observe import logs  # noqa: PLC0415
    from broker.state.database import Database  # noqa: PLC0415

    given = _or_stop(settings.read)
    logs.configure(given.broker_log_format, "warning")

    async def run() -> Result:
        database = Database(given.resolved_database_url)
        try:
            await database.migrate()
            return await work(make_keys(given, database))
        finally:
            await database.close()

    try:
        return asyncio.run(run())
    except StoreUnavailable as error:
        _stop([f"DATABASE_URL, BROKER_DATA_DIR: the database can't be used ({error.log})."])


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
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _below_100_percent(progress: Progress, task: Any, size: int) -> Callable[[int], None]:
    """The last byte sent is not yet a file stored: the bar is full only once there is a file_id."""
    return lambda sent: progress.update(task, completed=min(sent, int(size * 0.99)))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=err)


def _print_line(value: Any) -> None:
    """For pipes: one line, no colours, no wrapping."""
    typer.echo(value if isinstance(value, str) else json.dumps(value))


def _print_table(headings: tuple[str, ...], rows: list[Any]) -> None:
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    out.print(table, highlight=False)


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
