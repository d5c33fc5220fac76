"""The command line: what it prints is whole, what it says is plain, what it could not do is its exit code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker import __version__
from broker.uploader import BrokerClient, UploadFailedError
from tests.support.broker_process import COMMAND, Broker, clean_environment, run_command
from tests.support.sandbox_control import SandboxControl
from tests.support.signed_app import running_signed_app

CONTENT = b"a,b\n" * 500_000


@pytest.fixture
def path(folder: Path) -> Path:
    path = folder / "[标题] data.csv"
    path.write_bytes(CONTENT)
    return path


def environment_for(broker: Broker, key: str | None = None) -> dict[str, str]:
    """Of a machine that only uploads: it knows the broker's address and a key, nothing else."""
    return clean_environment() | {"BROKER_URL": broker.url + "/", "BROKER_API_KEY": key or broker.secret_key}


def upload(broker: Broker, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_command("upload", *map(str, arguments), environment=environment_for(broker), **options)


# --- broker upload ----------------------------------------------------------------------------------


def test_upload_prints_the_file_id_of_each_file(broker: Broker, sandbox: SandboxControl, path: Path) -> None:
    done = upload(broker, path, path)
    assert (done.returncode, done.stderr) == (0, "")
    for line in done.stdout.splitlines():
        file_id, _, shown = line.partition("  ")
        assert shown == str(path)
        stored = sandbox.file(file_id)
        assert stored["sha256"] == hashlib.sha256(CONTENT).hexdigest()
        assert stored["file_name"] == path.name


def test_upload_prints_json_one_line_for_each_file(
    broker: Broker, sandbox: SandboxControl, path: Path
) -> None:
    done = upload(broker, path, "--json")
    answer = json.loads(done.stdout)
    assert answer["path"] == str(path)
    assert answer["bytes"] == sandbox.file(answer["file_id"])["bytes"] == len(CONTENT)


def test_upload_goes_on_after_a_file_that_fails(
    broker: Broker, sandbox: SandboxControl, folder: Path
) -> None:
    """What can be uploaded is; what can't is named with its reason; the exit code says that not all went."""
    for name, content in {"one.csv": b"1", "no.txt": b"1", "empty.csv": b"", "two.csv": b"2"}.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.csv")
    (folder / "folder.csv").mkdir()
    names = ["one.csv", "missing.csv", "no.txt", "empty.csv", "pipe.csv", "folder.csv", "two.csv"]
    done = upload(broker, *names, cwd=folder)
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["one.csv", "two.csv"]
    said = done.stderr.splitlines()
    assert said[0] == "error missing.csv: The file can't be read (No such file or directory)."
    assert re.fullmatch(
        r"error no.txt: Files of the type \.txt are not taken\. Send one of these: .* "
        r"\(file_type_refused, status 415, request [0-9a-f]{32}\)",
        said[1],
    )
    assert said[2].startswith("error empty.csv: The file has no bytes")
    assert said[3:] == [
        "error pipe.csv: This is not a file with a size of its own.",
        "error folder.csv: This is not a file with a size of its own.",
    ]
    assert len(sandbox.events(kind="upload", outcome="stored")) == 2


WRONG: dict[str, tuple[dict[str, str], str]] = {
    "nobody there": (
        {"BROKER_URL": "http://127.0.0.1:1"},
        "http://127.0.0.1:1/proxy/upload can't be reached: ",
    ),
    "no address": ({"BROKER_URL": "127.0.0.1"}, "can't be reached: "),
    "bad address": ({"BROKER_URL": "http://[::"}, "can't be reached: "),
    "a password in it": (
        {"BROKER_URL": "http://user:CANARY@127.0.0.1:1"},
        "The broker's address has a password",
    ),
    "a key id that is none": (
        {"BROKER_API_KEY": "", "BROKER_KEY_ID": "CANARÝ", "BROKER_SIGNING_SECRET": "cub_ss_CANARY"},
        "The key's id or its signing secret has characters that none has.",
    ),
    "a signing secret that is none": (
        {"BROKER_API_KEY": "", "BROKER_KEY_ID": "key_1", "BROKER_SIGNING_SECRET": "CANARÝ"},
        "The key's id or its signing secret has characters that none has.",
    ),
    "wrong key": ({"BROKER_API_KEY": "cub_sk_CANARY"}, "The credential is not valid here"),
    "no header": ({"BROKER_API_KEY": "CANARY\nx"}, "The API key has characters that no key has."),
    "no ASCII": ({"BROKER_API_KEY": "CANARÝ"}, "The API key has characters that no key has."),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_broker_or_key_is_said_without_the_key(
    broker: Broker, path: Path, case: str
) -> None:
    changed, sentence = WRONG[case]
    environment = environment_for(broker) | changed
    done = run_command("upload", str(path), environment=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1, "one line, no trace"
    assert "CANAR" not in done.stderr


def test_token_says_it_too(broker: Broker) -> None:
    environment = environment_for(broker) | {"BROKER_URL": "http://127.0.0.1:1"}
    done = run_command("token", "--size", "1", environment=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error http://127.0.0.1:1/token can't be reached: ")


def test_an_address_of_something_else_is_noticed(broker: Broker, sandbox: SandboxControl, path: Path) -> None:
    for url in (sandbox.url, broker.url + "/docs", broker.url + "/token?"):
        client = BrokerClient(url, broker.secret_key)
        with pytest.raises(UploadFailedError):
            client.upload(path)


def test_without_a_key_or_a_file_the_usage_is_shown(broker: Broker, path: Path) -> None:
    for arguments in (["upload", str(path)], ["upload", "--api-key", "x"], ["token"], ["nonsense"]):
        assert run_command(*arguments, environment=clean_environment()).returncode == 2


# --- the bar ------------------------------------------------------------------------------------------


def on_a_terminal(environment: dict[str, str], *arguments: str) -> tuple[int, str, list[tuple[float, str]]]:
    """Run ``broker …`` with standard error on a terminal and standard output in a pipe.

    Gives the exit code, what was piped, and what the terminal showed, each piece with its time.
    """
    ours, theirs = pty.openpty()
    shown: list[tuple[float, str]] = []

    def watch() -> None:
        with contextlib.suppress(OSError):  # that is how a terminal ends
            while piece := os.read(ours, 65_536):
                shown.append((time.monotonic(), piece.decode(errors="replace")))

    watcher = threading.Thread(target=watch)
    watcher.start()
    environment = environment | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, stderr=theirs, stdin=theirs
    )
    os.close(theirs)
    piped, _ = process.communicate(timeout=30)
    watcher.join()
    os.close(ours)
    return process.returncode, piped.decode(), shown


def test_the_bar_is_full_only_with_the_file_id(broker: Broker, sandbox: SandboxControl, path: Path) -> None:
    """While Coze still thinks, every byte is sent and the bar stands at 99 %."""
    sandbox.fail(path="/v1/files/upload", delay_seconds=1.5)
    code, piped, shown = on_a_terminal(environment_for(broker), "upload", "--json", str(path))
    assert code == 0
    assert json.loads(piped)["file_id"]
    full = [at for at, text in shown if "100%" in text]
    nearly = [at for at, text in shown if " 99%" in text]
    assert nearly, shown
    assert full, shown
    assert full[0] - nearly[0] > 1.0
    assert any(path.name in text for _, text in shown)


def test_the_bar_of_a_refused_file_is_never_full(broker: Broker, sandbox: SandboxControl, path: Path) -> None:
    sandbox.fail(path="/v1/files/upload", code=4302, status=200)
    code, piped, shown = on_a_terminal(environment_for(broker), "upload", str(path))
    screen = "".join(text for _, text in shown)
    assert (code, piped) == (1, "")
    assert "100%" not in screen
    assert "too_large" in screen


# --- a file that is still being written -----------------------------------------------------------------


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, len(CONTENT) // 2)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(len(CONTENT) - 4)
        file.write(b"A,B\n")


@pytest.mark.parametrize("change", [grow, shrink, rewrite])
def test_a_file_that_changes_while_it_is_read_is_not_stored(
    broker: Broker, sandbox: SandboxControl, path: Path, change: Callable[[Path], None]
) -> None:
    """Neither short nor mixed: its last bytes are not sent, so Coze has nothing."""
    changed: list[tuple[int, int]] = []

    def on_progress(sent: int, total: int) -> None:
        if not changed:
            change(path)
            changed.append((sent, total))

    with pytest.raises(UploadFailedError, match="changed while it was read"):
        BrokerClient(broker.url, broker.secret_key).upload(path, on_progress)
    assert changed[0][0] < changed[0][1] == len(CONTENT)
    record = broker.last_record("/proxy/upload", code="client_left")
    assert record["status"] in (None, 499)
    sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="aborted"))
    assert sandbox.events(kind="upload", outcome="stored") == []


# --- the rest --------------------------------------------------------------------------------------------


def test_token_prints_a_token_that_works(broker: Broker, sandbox: SandboxControl, path: Path) -> None:
    arguments = ["--size", "5", "--route", "proxy", "--subject", "user-42", "--ttl-seconds", "60"]
    done = run_command("token", *arguments, environment=environment_for(broker))
    token = json.loads(done.stdout)
    assert (done.returncode, token["route"], token["expires_in"]) == (0, "proxy", 60)
    done = run_command("token", "--size", "5", "--sensitive", environment=environment_for(broker))
    assert json.loads(done.stdout)["reason"] == "sensitive"
    done = run_command("token", "--size", "0", environment=environment_for(broker))
    assert done.returncode == 1
    assert "empty_file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "granted"),
    [
        (["--uses", "3", "--route", "proxy"], {"uses": 3}),
        (["--file-name", "标题 (1).csv"], {"route": "direct"}),
    ],
)
def test_token_asks_for_what_its_options_say(
    broker: Broker, arguments: list[str], granted: dict[str, Any]
) -> None:
    done = run_command("token", "--size", "5", *arguments, environment=environment_for(broker))
    assert done.returncode == 0, done.stderr
    assert granted.items() <= json.loads(done.stdout).items()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--uses", "1001"], "invalid_request"), (["--file-name", "a.exe"], "file_type_refused")],
)
def test_token_says_what_is_not_granted(broker: Broker, arguments: list[str], code: str) -> None:
    done = run_command("token", "--size", "5", *arguments, environment=environment_for(broker))
    assert done.returncode == 1
    assert code in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        *(
            "--version",
            "--help",
            "doctor",
            "doctor --json",
            "config",
            "config --json",
            "migrate",
            "keys list",
        ),
        *("audit list", "audit list --json", "audit verify"),
    ],
)
@pytest.mark.parametrize("is_buffered", [True, False])
def test_output_that_takes_nothing_is_said_in_one_line(folder: Path, command: str, is_buffered: bool) -> None:
    """As when the disk is full. No trace, and never success, whatever the command had to tell."""
    environment = clean_environment() | {
        "COZE_API_BASE": "https://127.0.0.1:1",
        "COZE_API_TOKEN": "sat_1",
        "BROKER_DATA_DIR": str(folder / "data"),
        "PYTHONUNBUFFERED": "" if is_buffered else "1",
    }
    assert run_command("migrate", environment=environment, cwd=folder).returncode == 0
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *command.split()],
            env=environment,
            cwd=folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error standard output can't be written to (No space left on device).\n"


@pytest.mark.parametrize("arguments", ["doctor --timeout 1", "doctor --json --timeout 1", "config"])
def test_without_an_output_nothing_is_said_of_it(folder: Path, arguments: str) -> None:
    """As under a supervisor that closes it. The exit code is what tells, then."""
    environment = clean_environment() | {"COZE_API_BASE": "https://127.0.0.1:1", "COZE_API_TOKEN": "sat_1"}
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *arguments.split()]
    done = subprocess.run(
        command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (12 if "doctor" in arguments else 0, "")


def test_the_version_and_the_commands_are_told() -> None:
    assert run_command("--version", environment=clean_environment()).stdout.strip() == __version__
    shown = run_command("--help", environment=clean_environment()).stdout
    for command in ("serve", "demo", "sandbox", "upload", "token", "config", "keys"):
        assert f" {command} " in shown


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--config", "/"], ["--port", "99999"]])
def test_a_sandbox_that_cannot_start_says_why(arguments: list[str]) -> None:
    done = run_command("sandbox", *arguments, environment=clean_environment())
    assert done.returncode == 2
    assert "the sandbox can't start" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_lifetime_beyond_all_reason_is_refused(broker: Broker) -> None:
    done = broker.command(
        "keys", "create", "--name", "x", "--scope", "files:upload", "--expires-in-days", "9" * 20
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


SIGNING = {
    "an id without a secret": (["--key-id", "key_1"], "--key-id and --signing-secret go together"),
    "a secret without an id": (["--signing-secret", "cub_ss_1"], "--key-id and --signing-secret go together"),
    "nothing at all": ([], "--api-key, or --key-id with --signing-secret"),
}


@pytest.mark.parametrize("case", SIGNING)
@pytest.mark.parametrize("command", [["upload", "a.pdf"], ["token", "--size", "1"]])
def test_a_caller_sends_its_key_or_signs(case: str, command: list[str]) -> None:
    options, sentence = SIGNING[case]
    done = run_command(*command, *options, environment=clean_environment())
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "cub_ss_1" not in done.stderr


def test_a_signed_upload_does_not_send_the_secret(folder: Path) -> None:
    """Though the server, which knows no such key, refuses it."""
    secret = "cub_ss_" + "s" * 46
    path = folder / "a.pdf"
    path.write_bytes(b"%PDF-1.7")
    url = f"sqlite+aiosqlite:///{folder / 'broker.db'}"
    with running_signed_app(url, {}) as server:
        environment = clean_environment() | {
            "BROKER_URL": server,
            "BROKER_KEY_ID": "key_0123456789abcdef",
            "BROKER_SIGNING_SECRET": secret,
        }
        done = run_command("upload", str(path), environment=environment)
    assert done.returncode == 1
    assert "invalid_signature" in done.stderr
    assert secret not in done.stderr + done.stdout
