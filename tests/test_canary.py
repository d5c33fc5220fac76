"""A secret is planted wherever a caller, or Coze, can put one. Afterwards it is looked for wherever the
broker writes: in its log, its audit, its refusals, its database.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.refusals import CLIENT
from tests.support.sandbox_control import SandboxControl

CSV = b"a,b\n1,2\n"
CALLS: list[tuple[str, str]] = [
    ("POST", "/token"),
    ("POST", "/proxy/upload"),
    ("POST", "/v1/files/upload"),
    ("GET", "/v1/files/retrieve"),
    ("POST", "/token/introspect"),
    ("POST", "/token/revoke"),
    ("POST", "/uploads/none/complete"),
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("POST", "/nowhere"),
]
SHAPES: dict[str, Callable[[], str]] = {
    "an API key": lambda: "cub_sk_" + secrets.token_hex(23),
    "a publishable key": lambda: "cub_pk_" + secrets.token_hex(23),
    "a signing secret": lambda: "cub_ss_" + secrets.token_urlsafe(32),
    "a personal access token of Coze's": lambda: "pat_" + secrets.token_hex(32),
    "a service token of Coze's": lambda: "sat_" + secrets.token_hex(32),
    "an access token of Coze's": lambda: "czs_" + secrets.token_hex(32),
    "a JWT": lambda: f"eyJ{secrets.token_hex(20)}.eyJ{secrets.token_hex(20)}.{secrets.token_hex(20)}",
}


@pytest.fixture(scope="module")
def watched(session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("canary")
    with running_broker(folder, session_sandbox.environment, BROKER_LOG_LEVEL="debug") as broker:
        yield broker


def written(broker: Broker) -> dict[str, str]:
    """All that the broker wrote so far, by where."""
    data = Path(broker.environment["BROKER_DATA_DIR"])
    with closing(sqlite3.connect(data / "broker.db")) as database:
        rows = str(database.execute("SELECT * FROM audit").fetchall())
    files = [*data.glob("broker.db*"), *data.glob("audit-spool*")]
    kept = {path.name: path.read_bytes().decode("latin-1") for path in files}
    return {"log": broker.log.read_text(), "audit": rows, **kept}


def assert_nowhere(broker: Broker, canary: str, answers: list[httpx.Response]) -> None:
    """The secret, or a part of it that would do to guess the rest."""
    parts = [part for part in canary.replace(".", " ").split() if len(part) > 12]
    shown = {f"answer {answer.status_code}": answer.text + str(answer.headers) for answer in answers}
    for where, text in {**written(broker), **shown}.items():
        found = [part for part in parts if part in text or part[8:] in text]
        assert not found, f"{where}: …{text[max(0, text.find(found[0][8:]) - 120) :][:240]}…"


def call(broker: Broker, method: str, path: str, **given: Any) -> httpx.Response:
    headers = {"Origin": PAGE_ORIGIN, **given.pop("headers", {})}
    return CLIENT.request(method, broker.url + path, headers=headers, **given)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_the_authorization_of_every_call(watched: Broker, shape: str) -> None:
    canary = SHAPES[shape]()
    answers = [
        call(watched, method, path, headers={"Authorization": f"{scheme} {canary}"})
        for method, path in CALLS
        for scheme in ("Bearer", "Basic", "Token")
    ]
    assert {answer.status_code for answer in answers} <= {401, 404}
    assert_nowhere(watched, canary, answers)


@pytest.mark.parametrize(
    "header",
    [
        *("Cookie", "X-Api-Key", "X-Forwarded-For", "Forwarded", "User-Agent", "Referer", "X-Request-Id"),
        *("X-Coze-Client-User-Agent", "Idempotency-Key", "Repr-Digest", "Content-Digest", "Signature"),
        *("Signature-Input", "X-Upload-Sensitive", "Content-Disposition", "Traceparent", "X-Tt-Logid"),
    ],
)
def test_in_a_header(watched: Broker, header: str) -> None:
    canary = secrets.token_hex(24)
    answers = [
        call(watched, method, path, headers={**watched.auth(), header: canary}) for method, path in CALLS
    ]
    assert_nowhere(watched, canary, answers)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", ["Origin", "path", "query", "part of a path"])
def test_in_what_is_logged(watched: Broker, shape: str, place: str) -> None:
    """Path and origin are; so a credential that stands there is taken out."""
    canary = SHAPES[shape]()
    answers = []
    for method, path in CALLS:
        origin = {"Origin": f"https://{canary}.example"} if place == "Origin" else {}
        address = {
            "Origin": path,
            "query": f"{path}?access_token={canary}&file_id={canary}",
            "path": f"{path}/{canary}",
            "part of a path": f"/keys/key-{canary}",
        }[place]
        answers.append(CLIENT.request(method, watched.url + address, headers=watched.auth() | origin))
    assert_nowhere(watched, canary, answers)


def test_in_every_field_of_a_token_request(watched: Broker) -> None:
    answers, canaries = [], []
    for field in ("size", "content_type", "sensitive", "route", "ttl_seconds", "sha256", "unknown"):
        canaries.append(secrets.token_hex(24))
        answers.append(
            call(watched, "POST", "/token", json={"size": 4, field: canaries[-1]}, headers=watched.auth())
        )
    canaries.append(secrets.token_hex(24))
    answers.append(
        call(watched, "POST", "/token", json={"size": 4, canaries[-1][:38]: 1}, headers=watched.auth())
    )
    canaries.append(secrets.token_hex(24))
    answers.append(call(watched, "POST", "/token", content=canaries[-1], headers=watched.auth()))
    assert {answer.status_code for answer in answers[:-1]} == {422}
    for canary in [*canaries[:-2], canaries[-1]]:
        assert_nowhere(watched, canary, answers)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_a_subject(watched: Broker, shape: str) -> None:
    """Someone takes a user's credential for their name."""
    canary = SHAPES[shape]()
    asked = {"size": 4, "subject": canary, "route": "proxy"}
    minted = call(watched, "POST", "/token", json=asked, headers=watched.auth())
    assert minted.status_code == 200
    form = {"subject": canary}
    revoked = call(watched, "POST", "/token/revoke", data=form, headers=watched.auth())
    assert revoked.status_code == 200
    assert_nowhere(watched, canary, [])


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
@pytest.mark.parametrize("taken", [True, False])
def test_in_a_file_s_name_its_content_and_its_form(watched: Broker, path: str, taken: bool) -> None:
    name, content, field, value = (secrets.token_hex(24) for _ in range(4))
    file = (f"{name}.{'csv' if taken else 'exe'}", CSV + content.encode())
    answer = call(watched, "POST", path, data={field: value}, files={"file": file}, headers=watched.auth())
    assert (answer.status_code == 200) is taken
    for canary in (content, field, value):
        assert_nowhere(watched, canary, [answer])
    assert_nowhere(watched, name, [] if taken else [answer])


def test_in_the_name_of_a_key(watched: Broker) -> None:
    """A name is kept, and listed; but not logged, nor in the audit."""
    canary = "cub_sk_" + secrets.token_hex(23)
    made = watched.create_key("--scope=token:mint", f"--name={canary}")  # the last name counts
    where = written(watched)
    assert canary not in where["log"] + where["audit"]
    assert made["key"][11:-4] not in str(where)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_in_what_coze_answers(watched: Broker, sandbox: SandboxControl, shape: str, status: int) -> None:
    canary = SHAPES[shape]()
    answers = []
    for path in ("/proxy/upload", "/v1/files/upload"):
        sandbox.fail(path="/v1/files/upload", status=status, code=4000, msg=f"token {canary} is bad")
        headers = watched.auth()
        answers.append(call(watched, "POST", path, files={"file": ("a.csv", CSV)}, headers=headers))
        sandbox.heal()
    assert_nowhere(watched, canary, answers)


def test_every_credential_that_the_broker_makes_itself(watched: Broker) -> None:
    """Used, used again, refused, taken back: none of it is written anywhere."""
    made = watched.create_key("--scope=token:mint", "--scope=files:upload", "--scope=keys:admin")
    auth = watched.auth(made["key"])
    proxy = watched.mint(key=made["key"], size=len(CSV), route="proxy")["access_token"]
    direct = watched.mint(key=made["key"], size=len(CSV), file_name="a.csv")
    for _ in range(2):
        call(watched, "POST", "/proxy/upload", files={"file": ("a.csv", CSV)}, headers=watched.auth(proxy))
    call(watched, "POST", "/token/introspect", data={"token": proxy}, headers=auth)
    call(watched, "POST", "/token/revoke", data={"token": proxy}, headers=auth)
    rotated = call(watched, "POST", f"/keys/{made['id']}/rotate", headers=auth).json()
    call(watched, "DELETE", f"/keys/{made['id']}", headers=watched.auth(rotated["key"]))
    shown_once = [made["key"], made["signing_secret"], rotated["key"], rotated["signing_secret"]]
    for secret in (*shown_once, proxy, direct["access_token"], direct["complete_token"]):
        where = written(watched)
        # What a key begins and ends with is its mask.
        assert [name for name, text in where.items() if secret[12:-5] in text] == []


def test_a_snapshot_and_the_configuration_show_none(watched: Broker) -> None:
    shown = watched.command("config", "--json").stdout
    for name in ("COZE_API_TOKEN", "COZE_JWT_OAUTH_PRIVATE_KEY"):
        value = watched.environment.get(name)
        assert value is None or value not in shown
    assert json.loads(shown)
