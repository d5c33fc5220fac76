"""A secret is planted wherever a caller, or Coze, can put one. Afterwards it is looked for wherever the
broker writes: in its log, its audit, its refusals, its database.
"""

from __future__ import annotations

import json
import secrets
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker, stop
from tests.support.refusals import CLIENT
from tests.support.sandbox_control import SandboxControl

CSV = b"a,b\n1,2\n"
DATABASE = "broker.db"
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


@pytest.fixture(scope="module")
def canaries(watched: Broker) -> Canaries:
    return Canaries(watched)


@pytest.fixture(scope="module")
def named_key(watched: Broker) -> dict[str, Any]:
    """A key whose name is a secret, made at the command line."""
    name = "cub_sk_" + secrets.token_hex(23)
    scopes = ("token:mint", "files:upload", "keys:admin")
    # Of several names the last counts.
    return watched.create_key(f"--name={name}", *(f"--scope={scope}" for scope in scopes))


class Canaries:
    """Every secret that was planted in a broker, and where to look for it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._planted: list[tuple[str, str | None]] = []
        """What must be found nowhere, besides where."""
        self._read_bytes = 0
        self._read_seq = 0

    def assert_nowhere(
        self, canary: str, answers: Sequence[httpx.Response] = (), *, besides: str | None = None
    ) -> None:
        """Neither in an answer nor in what was written since the last look, ``besides`` where it may be.

        The secret, or a part of it that would do to guess the rest.
        """
        # A part's end stands wherever the part does.
        ends = [part[8:] for part in canary.replace(".", " ").split() if len(part) > 12]
        assert ends
        self._planted += [(end, besides) for end in ends]
        shown = {f"answer {answer.status_code}": answer.text + str(answer.headers) for answer in answers}
        texts = {**self.fresh(), **shown}
        for end in ends:
            assert_not_in(texts, end, besides)

    def assert_nowhere_at_all(self) -> None:
        """None of them in anything: a row or a line may be written later than it was looked for."""
        self._read_bytes = self._read_seq = 0
        everything = self.fresh()
        assert everything["audit"].count("token.mint") > 10
        for end, besides in self._planted:
            assert_not_in(everything, end, besides)

    def fresh(self) -> dict[str, str]:
        """What came to log and audit since this was called before, and all of the files of the database."""
        data = Path(self._broker.environment["BROKER_DATA_DIR"])
        files = [*data.glob(f"{DATABASE}*"), *data.glob("audit-spool*")]
        kept = {path.name: path.read_bytes().decode("latin-1") for path in files}
        return {"log": self._fresh_log(), "audit": self._fresh_audit(data), **kept}

    def _fresh_log(self) -> str:
        with self._broker.log.open("rb") as log:
            log.seek(self._read_bytes)
            text = log.read()
        self._read_bytes += text.rfind(b"\n") + 1  # the last line may be half written
        return text.decode()

    def _fresh_audit(self, data: Path) -> str:
        with closing(sqlite3.connect(data / DATABASE)) as database:
            rows = database.execute("SELECT * FROM audit WHERE seq > ?", [self._read_seq]).fetchall()
        self._read_seq = max((row[0] for row in rows), default=self._read_seq)
        return str(rows)


def assert_not_in(texts: dict[str, str], secret: str, besides: str | None) -> None:
    for where, text in texts.items():
        if besides is None or not where.startswith(besides):
            at = text.find(secret)
            assert at < 0, f"{where}: …{text[max(0, at - 120) :][:240]}…"


def call(broker: Broker, method: str, path: str, **given: Any) -> httpx.Response:
    headers = {"Origin": PAGE_ORIGIN, **given.pop("headers", {})}
    return CLIENT.request(method, broker.url + path, headers=headers, **given)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_the_authorization_of_every_call(watched: Broker, canaries: Canaries, shape: str) -> None:
    canary = SHAPES[shape]()
    answers = [
        call(watched, method, path, headers={"Authorization": f"{scheme} {canary}"})
        for method, path in CALLS
        for scheme in ("Bearer", "Basic", "Token")
    ]
    assert {answer.status_code for answer in answers} <= {401, 404}
    canaries.assert_nowhere(canary, answers)


@pytest.mark.parametrize(
    "header",
    [
        *("Cookie", "X-Api-Key", "X-Forwarded-For", "Forwarded", "User-Agent", "Referer", "X-Request-Id"),
        *("X-Coze-Client-User-Agent", "Idempotency-Key", "Repr-Digest", "Content-Digest", "Signature"),
        *("Signature-Input", "X-Upload-Sensitive", "Content-Disposition", "Traceparent", "X-Tt-Logid"),
    ],
)
def test_in_a_header(watched: Broker, canaries: Canaries, header: str) -> None:
    canary = secrets.token_hex(24)
    answers = [
        call(watched, method, path, headers={**watched.auth(), header: canary}) for method, path in CALLS
    ]
    canaries.assert_nowhere(canary, answers)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", ["Origin", "path", "query", "part of a path"])
def test_in_what_is_logged(watched: Broker, canaries: Canaries, shape: str, place: str) -> None:
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
    canaries.assert_nowhere(canary, answers)


def test_in_every_field_of_a_token_request(watched: Broker, canaries: Canaries) -> None:
    answers, planted = [], []
    for field in ("size", "content_type", "sensitive", "route", "ttl_seconds", "sha256", "unknown"):
        planted.append(secrets.token_hex(24))
        answers.append(
            call(watched, "POST", "/token", json={"size": 4, field: planted[-1]}, headers=watched.auth())
        )
    planted.append(secrets.token_hex(24))
    answers.append(
        call(watched, "POST", "/token", json={"size": 4, planted[-1][:38]: 1}, headers=watched.auth())
    )
    planted.append(secrets.token_hex(24))
    answers.append(call(watched, "POST", "/token", content=planted[-1], headers=watched.auth()))
    assert {answer.status_code for answer in answers[:-1]} == {422}
    for canary in [*planted[:-2], planted[-1]]:
        canaries.assert_nowhere(canary, answers)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_a_subject(watched: Broker, canaries: Canaries, shape: str) -> None:
    """Someone takes a user's credential for their name."""
    canary = SHAPES[shape]()
    asked = {"size": 4, "subject": canary, "route": "proxy"}
    minted = call(watched, "POST", "/token", json=asked, headers=watched.auth())
    assert minted.status_code == 200
    refused = call(watched, "POST", "/token", json=asked | {"ttl_seconds": 100_000}, headers=watched.auth())
    assert refused.status_code == 422
    form = {"subject": canary}
    revoked = call(watched, "POST", "/token/revoke", data=form, headers=watched.auth())
    assert revoked.status_code == 200
    canaries.assert_nowhere(canary, [refused, revoked])


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
@pytest.mark.parametrize("taken", [True, False])
def test_in_a_file_s_name_its_content_and_its_form(
    watched: Broker, canaries: Canaries, path: str, taken: bool
) -> None:
    name, content, field, value = (secrets.token_hex(24) for _ in range(4))
    file = (f"{name}.{'csv' if taken else 'exe'}", CSV + content.encode())
    answer = call(watched, "POST", path, data={field: value}, files={"file": file}, headers=watched.auth())
    assert (answer.status_code == 200) is taken
    for canary in (content, field, value):
        canaries.assert_nowhere(canary, [answer])
    canaries.assert_nowhere(name, [] if taken else [answer])


def test_in_the_name_of_a_key(canaries: Canaries, named_key: dict[str, Any]) -> None:
    """A name is kept, and listed; but not logged, nor in the audit."""
    assert "cub_sk_" in named_key["name"]
    canaries.assert_nowhere(named_key["name"], besides=DATABASE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("status", [200, 400, 401, 500])
def test_in_what_coze_answers(
    watched: Broker, canaries: Canaries, sandbox: SandboxControl, shape: str, status: int
) -> None:
    canary = SHAPES[shape]()
    answers = []
    for path in ("/proxy/upload", "/v1/files/upload"):
        sandbox.fail(path="/v1/files/upload", status=status, code=4000, msg=f"token {canary} is bad")
        headers = watched.auth()
        answers.append(call(watched, "POST", path, files={"file": ("a.csv", CSV)}, headers=headers))
        sandbox.heal()
    canaries.assert_nowhere(canary, answers)


def test_every_credential_that_the_broker_makes_itself(
    watched: Broker, canaries: Canaries, named_key: dict[str, Any]
) -> None:
    """Used, used again, refused, taken back: none of it is written anywhere."""
    made = named_key
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
        canaries.assert_nowhere(secret[12:-5])  # what a key begins and ends with is its mask


def test_a_snapshot_and_the_configuration_show_none(watched: Broker) -> None:
    shown = watched.command("config", "--json").stdout
    for name in ("COZE_API_TOKEN", "COZE_JWT_OAUTH_PRIVATE_KEY"):
        value = watched.environment.get(name)
        assert value is None or value not in shown
    assert json.loads(shown)


def test_at_the_end_none_of_all_these_is_anywhere(watched: Broker, canaries: Canaries) -> None:
    """Once the broker has ended, all that it had to write is written."""
    assert stop(watched.process) in (0, -signal.SIGTERM)
    canaries.assert_nowhere_at_all()
