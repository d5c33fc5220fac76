"""The command ``broker``. Thin: each command reads its arguments, calls one thing, prints what it gave."""

from __future__ import annotations

import gc
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr
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
from broker.cli_audit import audit
from broker.cli_doctor import doctor
from broker.cli_keys import keys
from broker.cli_signing_keys import signing_keys
from broker.cli_store import with_database
from broker.terminal import (
    AsJson,
    Output,
    OutputError,
    Result,
    end_output,
    err,
    or_stop,
    out,
    print_line,
    print_table,
    say,
    stop,
)

app = typer.Typer(name="broker", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(keys, name="keys")
app.add_typer(audit, name="audit")
app.add_typer(signing_keys, name="signing-keys")
app.command()(doctor)

BrokerUrl = Annotated[str, typer.Option("--broker", envvar="BROKER_URL", help="Where the broker is.")]
ApiKeyOption = Annotated[
    str, typer.Option("--api-key", envvar="BROKER_API_KEY", help="An API key of the broker's.")
]
KeyIdOption = Annotated[
    str,
    typer.Option(
        "--key-id", envvar="BROKER_KEY_ID", help="Sign for the key with this id instead of sending it."
    ),
]
ADDRESSES = {
    *("coze_api_base", "upstream_doh_url", "broker_public_url", "broker_oidc_issuer"),
    *("broker_scanner", "broker_allowed_origins"),
}
"""Settings that are shown without what may be a secret in an address that is refused."""
SigningSecretOption = Annotated[
    str,
    typer.Option("--signing-secret", envvar="BROKER_SIGNING_SECRET", help="The key's secret for signing."),
]


def main() -> None:
    """Where the installed command begins. What a terminal can't show is replaced, not a reason to fail."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = Output.instead_of(sys.stdout)
    try:
        _run()
    except OutputError as error:
        sys.exit(end_output(error))


def _run() -> None:
    try:
        app()
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


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
    workers: Annotated[
        int | None, typer.Option(help="How many processes [BROKER_WORKERS]; several need REDIS_URL.")
    ] = None,
) -> None:
    """Run the broker."""
    checked = or_stop(lambda: settings.load(host=host, port=port, broker_workers=workers))
    gc.disable()  # nothing is garbage while modules load; looking for it takes a tenth of the start
    from broker.serve import serve as run

    raise typer.Exit(or_stop(lambda: run(checked)))


@app.command()
def demo(
    check: Annotated[bool, typer.Option("--check", help="Upload one file by each route, then exit.")] = False,
) -> None:
    """Broker, sandbox Coze and page on this machine; needs no credentials."""
    from broker.demo import run

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
    from broker.sandbox.serve import run

    try:
        run(host, port, config_file=config, credentials_dir=credentials_dir, as_json=as_json)
    except (OSError, OverflowError, ValueError) as error:
        stop([f"the sandbox can't start: {error}"])


@app.command()
def upload(
    *,
    files: Annotated[list[Path], typer.Argument(help="The files to upload.")],
    api_key: ApiKeyOption = "",
    key_id: KeyIdOption = "",
    signing_secret: SigningSecretOption = "",
    broker: BrokerUrl = "http://127.0.0.1:2026",
    as_json: AsJson = False,
) -> None:
    """Upload files through the broker and print their file_ids."""
    from broker.uploader import UploadFailedError

    client, failed = _client(broker, api_key, key_id, signing_secret), False
    for path in files:
        try:
            answer = _with_progress(path, client.upload)
        except UploadFailedError as error:
            failed = True
            say("red", "error", f"{path}: {error}")
        else:
            print_line({"path": str(path), **answer} if as_json else f"{answer['file_id']}  {path}")
    raise typer.Exit(1 if failed else 0)


@app.command()
def token(
    *,
    size: Annotated[int, typer.Option(help="The file's size in bytes.")],
    file_name: Annotated[
        str | None, typer.Option(help="The file's name: its extension must be one that is taken.")
    ] = None,
    api_key: ApiKeyOption = "",
    key_id: KeyIdOption = "",
    signing_secret: SigningSecretOption = "",
    broker: BrokerUrl = "http://127.0.0.1:2026",
    route: Annotated[str, typer.Option(help="auto, direct or proxy.")] = "auto",
    subject: Annotated[str | None, typer.Option(help="Whom the token is for.")] = None,
    ttl_seconds: Annotated[int | None, typer.Option(help="How long the token lives.")] = None,
    uses: Annotated[int | None, typer.Option(help="How many uploads it is good for; 1 if not said.")] = None,
    sensitive: Annotated[bool, typer.Option(help="Never straight from the browser.")] = False,
) -> None:
    """Mint a token and print it as JSON."""
    from broker.uploader import UploadFailedError

    client = _client(broker, api_key, key_id, signing_secret)
    asked = {
        "size": size,
        "file_name": file_name,
        "route": route,
        "subject": subject,
        "ttl_seconds": ttl_seconds,
        "uses": uses,
        "sensitive": sensitive,
    }
    try:
        answer = client.mint(**{k: v for k, v in asked.items() if v is not None})
    except UploadFailedError as error:
        say("red", "error", str(error))
        raise typer.Exit(1) from None
    print_line(answer)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Every setting, its value with secrets masked, and where the value comes from."""
    given = or_stop(settings.read)
    rows = [
        (name.upper(), _shown(name, getattr(given, name)), settings.source_of(name))
        for name in settings.Settings.model_fields
    ]
    if as_json:
        print_line({name: {"value": value, "source": source} for name, value, source in rows})
    else:
        print_table(("setting", "value", "source"), rows)
    problems = settings.problems(given)
    for sentence in settings.env_file_troubles() if problems else settings.warnings(given):
        say("yellow", "warning", sentence)
    if problems:
        stop(problems)


@app.command()
def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 when it is not up to date.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the database up to date."""
    from broker.state.schema import HEAD_REVISION

    before = with_database(lambda _, database: database.revision() if check else database.migrate())
    is_current = before == HEAD_REVISION or not check
    if as_json:
        print_line({"from": before, "to": HEAD_REVISION, "current": is_current})
    elif before == HEAD_REVISION:
        print_line(f"The database is up to date: it is at revision {HEAD_REVISION}.")
    else:
        step = f"from {f'revision {before}' if before else 'nothing'} to revision {HEAD_REVISION}"
        print_line(f"The database has yet to go {step}." if check else f"The database went {step}.")
    raise typer.Exit(0 if is_current else 1)


def _shown(name: str, value: Any) -> Any:
    if name == "upstream_proxy":
        return settings.masked_proxy(value)
    if isinstance(value, dict):
        value = tuple(f"{key}={' '.join(each)}" for key, each in value.items())
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, SecretStr):
        return "(set, not shown)"
    if name in ADDRESSES:
        return ", ".join(map(settings.masked, value if isinstance(value, tuple) else (value,)))
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return re.sub("//[^/@]*@", "//(not shown)@", text)


def _client(broker: str, api_key: str, key_id: str, signing_secret: str) -> Any:
    """A client of the broker's that signs if it has what it takes, and sends its key if not."""
    from broker.signing import SignedAuth
    from broker.uploader import BrokerClient

    if bool(key_id) != bool(signing_secret):
        stop(["--key-id and --signing-secret go together: one was given without the other."])
    if not api_key and not key_id:
        stop(["--api-key, or --key-id with --signing-secret: one of them is needed."])
    signer = SignedAuth(key_id.strip(), signing_secret.strip()) if key_id else None
    return BrokerClient(broker, api_key, signer=signer)


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
