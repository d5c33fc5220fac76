"""The clients that people have, unmodified: each gets a ``file_id`` for exactly its bytes, or a plain no."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cozepy import AsyncCoze, AsyncTokenAuth, Coze, CozeAPIError, TokenAuth

from tests.support import needs
from tests.support.broker_process import Broker
from tests.support.sandbox_control import SandboxControl

CLIENTS = Path(__file__).parent / "clients"
NAME = "Résumé 标题 (1).csv"
CONTENT = b"".join(b"%d,\r\n--x--\r\n\xe6\xa0\x87" % number for number in range(40_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()

REFUSED = [
    pytest.param("a.csv", b"1", "cub_sk_wrong", 4100, "credential", id="wrong key"),
    pytest.param("a.txt", b"1", None, 4303, "type", id="type"),
    pytest.param("a.csv", b"", None, 4300, "no bytes", id="empty"),
    pytest.param("a.png", b"no picture", None, 4304, "its content is text", id="mismatch"),
]

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """cozepy leaves its files and connections open: they are collected here, where the warning is ignored."""
    yield
    gc.collect()


@pytest.fixture
def path(folder: Path) -> Path:
    path = folder / NAME
    path.write_bytes(CONTENT)
    return path


def assert_stored(sandbox: SandboxControl, file_id: str, name: str = NAME) -> None:
    """Coze has the file under its name, byte for byte, and it came with the broker's credential."""
    stored = sandbox.file(file_id)
    assert (stored["sha256"], stored["bytes"], stored["file_name"]) == (SHA256, len(CONTENT), name)
    assert stored["token_kind"] == "czs"
    assert stored["client_id"] == sandbox.environment["COZE_JWT_OAUTH_CLIENT_ID"]


# --- curl -----------------------------------------------------------------------------------------


def curl(broker: Broker, *arguments: str, path: str = "/proxy/upload") -> dict[str, Any]:
    authorization = f"Authorization: Bearer {broker.secret_key}"
    command = [needs.executable("curl"), "-sS", "-m", "30", "-H", authorization, *arguments]
    done = subprocess.run([*command, broker.url + path], capture_output=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("url_path", ["/proxy/upload", "//proxy//upload"])
def test_curl_with_a_form(broker: Broker, sandbox: SandboxControl, path: Path, url_path: str) -> None:
    answer = curl(broker, "-F", "note=1", "-F", f"file=@{path}", path=url_path)
    assert_stored(sandbox, answer["file_id"])
    assert (answer["sha256"], answer["file_name"]) == (SHA256, NAME)


def test_curl_with_a_chunked_form(broker: Broker, sandbox: SandboxControl, path: Path) -> None:
    answer = curl(broker, "-H", "Transfer-Encoding: chunked", "-F", f"file=@{path}")
    assert_stored(sandbox, answer["file_id"])


@pytest.mark.parametrize(
    "disposition",
    [f"attachment; filename*=UTF-8''{quote(NAME)}", f'attachment; filename="{NAME}"'],
    ids=["filename*", "filename"],
)
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("-H", "Content-Type: text/csv", "--data-binary", "@{path}"), id="data-binary"),
        pytest.param(("-X", "POST", "-T", "{path}"), id="upload-file"),
        pytest.param(("-X", "POST", "-H", "Transfer-Encoding: chunked", "-T", "{path}"), id="chunked"),
    ],
)
def test_curl_with_the_bare_file(
    broker: Broker, sandbox: SandboxControl, path: Path, arguments: tuple[str, ...], disposition: str
) -> None:
    filled = [argument.replace("{path}", str(path)) for argument in arguments]
    answer = curl(broker, "-H", f"Content-Disposition: {disposition}", *filled)
    assert_stored(sandbox, answer["file_id"])


def test_curl_with_the_forms_own_content_type_is_told_what_is_wrong(broker: Broker, path: Path) -> None:
    """``--data-binary`` alone calls a file a web form; stored so, it would be of no use."""
    answer = curl(broker, "--data-binary", f"@{path}")
    assert answer["code"] == "unsupported_media_type"
    assert "multipart/form-data" in answer["detail"]


# --- cozepy ---------------------------------------------------------------------------------------

SOURCES: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "path as text": str,
    "open file": lambda path: path.open("rb"),
    "name and bytes": lambda path: (path.name, path.read_bytes()),
    "name and open file": lambda path: (path.name, path.open("rb")),
}
ADDRESSES = ["{url}", "{url}/"]


@pytest.mark.parametrize(
    ("source", "address"), [*((source, "{url}") for source in SOURCES), ("path", "{url}/")]
)
def test_cozepy_uploads_and_retrieves(
    broker: Broker, sandbox: SandboxControl, path: Path, source: str, address: str
) -> None:
    coze = Coze(auth=TokenAuth(broker.secret_key), base_url=address.format(url=broker.url))
    uploaded = coze.files.upload(file=SOURCES[source](path))
    assert_stored(sandbox, uploaded.id)
    assert (uploaded.bytes, uploaded.file_name) == (len(CONTENT), NAME)
    retrieved = coze.files.retrieve(file_id=uploaded.id)
    assert (retrieved.id, retrieved.bytes, retrieved.file_name) == (uploaded.id, len(CONTENT), NAME)


@pytest.mark.parametrize("source", ["path", "name and bytes"])
async def test_async_cozepy_uploads_and_retrieves(
    broker: Broker, sandbox: SandboxControl, path: Path, source: str
) -> None:
    coze = AsyncCoze(auth=AsyncTokenAuth(broker.secret_key), base_url=broker.url)
    uploaded = await coze.files.upload(file=SOURCES[source](path))
    assert_stored(sandbox, uploaded.id)
    assert (await coze.files.retrieve(file_id=uploaded.id)).id == uploaded.id


@pytest.mark.usefixtures("sandbox")
def test_cozepy_with_nameless_bytes_is_told_that_the_type_is_missing(broker: Broker) -> None:
    """It names bare bytes ``upload``, without an extension; so does Coze refuse them."""
    with pytest.raises(CozeAPIError) as raised:
        Coze(auth=TokenAuth(broker.secret_key), base_url=broker.url).files.upload(file=CONTENT)
    assert raised.value.code == 4303


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(("name", "content", "key", "code", "word"), REFUSED)
def test_cozepy_raises_its_own_error(
    broker: Broker, *, name: str, content: bytes, key: str | None, code: int, word: str
) -> None:
    coze = Coze(auth=TokenAuth(key or broker.secret_key), base_url=broker.url)
    with pytest.raises(CozeAPIError) as raised:
        coze.files.upload(file=(name, content))
    assert raised.value.code == code
    assert word in raised.value.msg
    assert re.fullmatch("[0-9A-Za-z]{20,40}", raised.value.logid or "")


@pytest.mark.usefixtures("sandbox")
def test_cozepy_is_told_that_a_file_or_path_is_unknown(broker: Broker) -> None:
    coze = Coze(auth=TokenAuth(broker.secret_key), base_url=broker.url)
    for call in (lambda: coze.files.retrieve(file_id="7000000000000000000"), coze.users.me):
        with pytest.raises(CozeAPIError) as raised:
            call()
        assert raised.value.code == 4200
        assert raised.value.logid


# --- JavaScript -----------------------------------------------------------------------------------


def node(script: str, *arguments: str, key: str) -> Any:
    """What a script in ``clients/`` printed."""
    done = subprocess.run(
        [needs.executable("node"), script, *arguments],
        cwd=CLIENTS,
        env=os.environ | {"API_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def official(*arguments: str, key: str) -> Any:
    if not (CLIENTS / "node_modules" / "@coze" / "api").is_dir():
        needs.missing("@coze/api is not installed: run `npm ci` in tests/clients")
    return node("official.mjs", *arguments, key=key)


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_javascript_client_uploads_and_retrieves(
    broker: Broker, sandbox: SandboxControl, path: Path, address: str
) -> None:
    """It does not trim its base URL: with a slash at its end the path becomes ``//v1/…``."""
    told = official(address.format(url=broker.url), str(path), key=broker.secret_key)
    assert_stored(sandbox, told["uploaded"]["id"])
    assert told["retrieved"] == told["uploaded"]
    assert told["uploaded"]["file_name"] == NAME


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(("name", "content", "key", "code", "word"), REFUSED)
def test_the_javascript_client_raises_its_own_error(
    broker: Broker, folder: Path, *, name: str, content: bytes, key: str | None, code: int, word: str
) -> None:
    (folder / name).write_bytes(content)
    told = official(broker.url, str(folder / name), key=key or broker.secret_key)
    assert told["code"] == code
    assert word in told["msg"]
    assert told["logid"]
    assert told["error"] == {4100: "AuthenticationError"}.get(code, told["error"])


def test_fetch_with_form_data(broker: Broker, sandbox: SandboxControl, path: Path) -> None:
    told = node("form.mjs", f"{broker.url}/proxy/upload", str(path), key=broker.secret_key)
    assert told["status"] == 200
    assert_stored(sandbox, told["body"]["file_id"])
    assert told["body"]["sha256"] == SHA256


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\nan epilogue\r\n"], ids=["nothing", "CR LF", "epilogue"])
def test_whatever_follows_the_last_boundary_is_not_the_files(
    broker: Broker, sandbox: SandboxControl, folder: Path, end: bytes
) -> None:
    """Clients differ in how a form ends; none of it may end up in the file, and none be missing from it."""
    head = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{NAME}"\r\n\r\n'.encode()
    (folder / "body").write_bytes(head + CONTENT + b"\r\n--b--" + end)
    form = "Content-Type: multipart/form-data; boundary=b"
    answer = curl(broker, "-H", form, "--data-binary", f"@{folder / 'body'}")
    assert_stored(sandbox, answer["file_id"])


# --- what Coze never sees ---------------------------------------------------------------------------


def test_nothing_of_the_callers_own_reaches_coze(broker: Broker, sandbox: SandboxControl, path: Path) -> None:
    """Not its key (nor does the log have it), not its headers, cookies or user agent."""
    headers = ("Cookie: session=1", "X-Forwarded-For: 10.0.0.1", "X-Coze-Client-User-Agent: {}", "X-Own: 1")
    curl(broker, *(word for line in headers for word in ("-H", line)), "-F", f"file=@{path}")
    Coze(auth=TokenAuth(broker.secret_key), base_url=broker.url).files.upload(file=path)
    uploads = sandbox.events(kind="upload")
    assert len(uploads) == 2
    for event in uploads:
        assert event["token_kind"] == "czs"
        own = {"cookie", "x-forwarded-for", "x-coze-client-user-agent", "x-own", "origin", "referer"}
        assert own.isdisjoint(event["header_names"])
        assert event["headers"]["user-agent"].startswith("coze-upload-broker/")
    assert broker.secret_key not in json.dumps(uploads) + broker.log.read_text()
