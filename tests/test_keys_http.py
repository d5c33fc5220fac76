"""/keys: what an administrator asks for is so from the next request on, and no secret is shown twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from broker.auth import key_format, scopes
from tests.support.broker_process import PAGE_ORIGIN, Broker
from tests.support.refusals import assert_no_secret

UNKNOWN = "key_0123456789abcdef"
FAR = 4_102_444_800
"""The first second of the year 2100."""
BOUND = {
    "bots": ["7338"],
    "workflows": ["7444"],
    "content_types": ["image/*"],
    "networks": ["192.0.2.0/24", "2001:db8::/32"],
    "max_bytes": 1000,
    "limits": {"requests": 10, "bytes": 0, "window_seconds": 60, "inflight_uploads": 2},
}


@pytest.fixture
def admin(broker: Broker) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=broker.url, headers=broker.auth(broker.admin_key), timeout=30) as client:
        yield client


def create(admin: httpx.Client, **asked: Any) -> dict[str, Any]:
    answer = admin.post("/keys", json={"name": "test", "scopes": ["token:mint"], **asked})
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def described(created: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in created.items() if name not in ("key", "signing_secret")}


def mint(broker: Broker, key: str) -> tuple[int, str | None]:
    answer = httpx.post(f"{broker.url}/token", json={"size": 1}, headers=broker.auth(key))
    return answer.status_code, answer.json().get("code")


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert_no_secret(answer.text)
    body = answer.json()
    return answer.status_code, body["detail"]


# --- create ---------------------------------------------------------------------------------------


def test_a_key_works_from_the_moment_it_is_made(broker: Broker, admin: httpx.Client) -> None:
    answer = admin.post("/keys", json={"name": "server", "owner": "shop", "scopes": ["token:mint"]})
    created = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/keys/{created['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert created["key"].startswith("cub_sk_")
    assert created["signing_secret"].startswith("cub_ss_")
    assert (created["name"], created["owner"], created["status"]) == ("server", "shop", "active")
    assert (created["last_used_at"], created["expires_at"], created["revoked_at"]) == (None, 0, None)
    assert created["created_at"] == created["updated_at"] == pytest.approx(time.time(), abs=30)
    assert mint(broker, created["key"]) == (200, None)


def test_a_secret_is_in_no_other_answer(admin: httpx.Client) -> None:
    """Nor in the log, whatever the request was."""
    created = create(admin, name="shown once")
    path = f"/keys/{created['id']}"
    answers = [
        admin.get(path),
        admin.get("/keys", params={"limit": 500}),
        admin.patch(path, json={"name": "renamed"}),
        admin.delete(path),
        admin.post(f"{path}/rotate"),
    ]
    for answer in answers:
        assert_no_secret(answer.text)
        assert answer.headers["cache-control"] == "no-store"
    assert created["hint"] == f"{created['key'][:11]}…{created['key'][-4:]}"


def test_all_that_was_asked_for_is_shown(admin: httpx.Client) -> None:
    asked = {
        "owner": "王",
        "scopes": list(scopes.ALL),
        "origins": [PAGE_ORIGIN],
        "expires_at": FAR,
        "rights": BOUND,
    }
    created = create(admin, **asked)
    assert {name: created[name] for name in asked} == asked
    assert admin.get(f"/keys/{created['id']}").json() == described(created)


def test_a_publishable_key_mints_and_has_no_signing_secret(broker: Broker, admin: httpx.Client) -> None:
    created = create(admin, kind="publishable", scopes=[], origins=[PAGE_ORIGIN])
    assert created["key"].startswith("cub_pk_")
    assert created["scopes"] == ["token:mint"]
    assert "signing_secret" not in created
    assert mint(broker, created["key"]) == (403, "origin_not_allowed")


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": ""}, "A name has 1 to 200 characters"),
    "a name with a NUL": ({"name": "a\0b"}, "A name has 1 to 200 characters"),
    "half a character": ({"name": "\ud800"}, "not valid JSON"),
    "an owner of two lines": ({"owner": "a\nb"}, "An owner has at most 200"),
    "no scope": ({"scopes": []}, "A key without a scope can do nothing"),
    "another scope": ({"scopes": ["keys:all"]}, "A secret key can't have keys:all. It may have: token:mint"),
    "admin for a page": (
        {"kind": "publishable", "scopes": ["keys:admin"], "origins": [PAGE_ORIGIN]},
        "A publishable key can't have keys:admin. It may have: token:mint.",
    ),
    "a page without origins": ({"kind": "publishable", "scopes": []}, "needs the origins"),
    "any origin": ({"origins": ["*"]}, "'*' is not an origin"),
    "any origin behind others": (
        {"origins": [*(f"https://{n}.example" for n in range(5)), "*"]},
        "'*' is not an origin",
    ),
    "a kind of its own": ({"kind": "root"}, "kind: Input should be 'secret' or 'publishable'."),
    "the past": ({"expires_at": 1}, "expires_at is a time to come"),
    "milliseconds": ({"expires_at": FAR * 1000}, "expires_at is a time to come, in Unix seconds"),
    "a fraction": ({"expires_at": 1.5}, "expires_at: Input should be a valid integer"),
    "a text": ({"expires_at": "never"}, "expires_at: Input should be a valid integer"),
    "something else": ({"admin": True}, "admin: Extra inputs are not permitted."),
    "another right": ({"rights": {"god": True}}, "rights.god: Extra inputs are not permitted."),
    "an agent that is none": ({"rights": {"bots": ["a/b"]}}, "which a/b is not"),
    "a workflow that is none": ({"rights": {"workflows": [""]}}, "bots and workflows are ids"),
    "a type that is none": ({"rights": {"content_types": ["image"]}}, "content_types are like image/*"),
    "a network that is none": ({"rights": {"networks": ["10.0.0.1/8"]}}, "which 10.0.0.1/8 is not"),
    "IPv4 as IPv6": ({"rights": {"networks": ["::ffff:10.0.0.0/104"]}}, "networks are CIDR ranges"),
    "no bytes": ({"rights": {"max_bytes": 0}}, "max_bytes is 1 to"),
    "less than nothing": ({"rights": {"limits": {"requests": -1}}}, "requests is 0 to"),
    "no window": ({"rights": {"limits": {"window_seconds": 0}}}, "window_seconds is 1 to"),
    "beyond all numbers": ({"rights": {"max_bytes": 10**30}}, "max_bytes is 1 to"),
    "too many": ({"rights": {"bots": ["1"] * 50 + [str(n) for n in range(100)]}}, ""),
    "far too many": ({"rights": {"bots": [str(n) for n in range(101)]}}, "at most 100 bots"),
}


@pytest.mark.parametrize("case", RULES)
def test_a_key_beyond_the_rules_is_refused_in_a_sentence(admin: httpx.Client, case: str) -> None:
    given, sentence = RULES[case]
    body = json.dumps({"name": "x", "scopes": ["chat"], **given})
    headers = {"Content-Type": "application/json"}
    answer = admin.post("/keys", content=body, headers=headers)
    if not sentence:
        assert answer.status_code == 201, "the same a hundred times is one"
        return
    status, detail = refusal(answer)
    assert status in (400, 422)
    assert sentence in detail


def test_every_broken_rule_is_told_at_once(admin: httpx.Client) -> None:
    status, detail = refusal(admin.post("/keys", json={"name": "", "rights": {"max_bytes": 0}}))
    assert status == 422
    for sentence in ("A name has", "A key without a scope", "max_bytes is"):
        assert sentence in detail


def test_what_is_written_in_two_ways_is_kept_in_one(admin: httpx.Client) -> None:
    rights = {"content_types": ["IMAGE/*", "image/*"], "networks": ["192.0.2.7", "2001:DB8::/32"]}
    created = create(admin, rights=rights, scopes=["chat", "chat"])
    assert created["rights"]["content_types"] == ["image/*"]
    assert created["rights"]["networks"] == ["192.0.2.7/32", "2001:db8::/32"]
    assert created["scopes"] == ["chat"]


# --- list -----------------------------------------------------------------------------------------


def test_a_list_is_told_in_pages_without_gap_or_repeat(admin: httpx.Client) -> None:
    made = [create(admin, owner="pages", name=f"key {n}")["id"] for n in range(7)]
    found: list[str] = []
    cursor: str | None = None
    while True:
        query: dict[str, str | int | None] = {"limit": 3, "owner": "pages"}
        query |= {"cursor": cursor} if cursor else {}
        page = admin.get("/keys", params=query).json()
        assert len(page["keys"]) <= 3
        found += [key["id"] for key in page["keys"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert sorted(found) == sorted(made)


def test_a_list_is_narrowed_down(admin: httpx.Client) -> None:
    live, dead = create(admin, owner="narrow"), create(admin, owner="narrow")
    page = create(admin, owner="narrow", kind="publishable", scopes=[], origins=[PAGE_ORIGIN])
    admin.delete(f"/keys/{dead['id']}")

    def listed(**query: str) -> set[str]:
        found = admin.get("/keys", params={"owner": "narrow", **query}).json()["keys"]
        return {key["id"] for key in found}

    assert listed() == {live["id"], dead["id"], page["id"]}
    assert listed(kind="publishable") == {page["id"]}
    assert listed(active="true") == {live["id"], page["id"]}
    assert listed(active="true", kind="secret") == {live["id"]}
    assert admin.get("/keys", params={"owner": "nobody"}).json() == {"keys": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("limit=0", "limit: "),
        ("limit=501", "limit: "),
        ("limit=many", "limit: "),
        ("limit=1&limit=2", "limit: given more than once."),
        ("kind=root", "kind: "),
        ("active=perhaps", "active: "),
        ("page=2", "page: Extra inputs are not permitted."),
        ("cursor=x", "The cursor is none that an earlier page gave."),
        ("cursor=%00%ff", "The cursor is none that an earlier page gave."),
        ("cursor=MTox", "The cursor is none that an earlier page gave."),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(admin: httpx.Client, query: str, sentence: str) -> None:
    status, detail = refusal(admin.get(f"/keys?{query}"))
    assert status == 422
    assert sentence in detail


def test_an_owner_that_no_database_could_hold_owns_nothing(admin: httpx.Client) -> None:
    assert admin.get("/keys?owner=%00").json()["keys"] == []


# --- change ---------------------------------------------------------------------------------------


def test_a_change_holds_from_the_next_request_on(broker: Broker, admin: httpx.Client) -> None:
    created = create(admin)
    assert mint(broker, created["key"]) == (200, None)
    answer = admin.patch(f"/keys/{created['id']}", json={"scopes": ["files:read"], "owner": "another"})
    assert answer.status_code == 200
    assert answer.json() == {
        **described(created),
        **_times(answer),
        "scopes": ["files:read"],
        "owner": "another",
    }
    assert mint(broker, created["key"]) == (403, "wrong_scope")


def _times(answer: httpx.Response) -> dict[str, Any]:
    return {name: answer.json()[name] for name in ("updated_at", "last_used_at")}


def test_rights_that_are_left_out_stay_and_null_takes_one_away(admin: httpx.Client) -> None:
    path = f"/keys/{create(admin, rights=BOUND)['id']}"
    change = {"max_bytes": None, "bots": None, "limits": {"requests": 20}}
    rights = admin.patch(path, json={"rights": change}).json()["rights"]
    assert rights == {**BOUND, "max_bytes": None, "bots": [], "limits": {**BOUND["limits"], "requests": 20}}  # type: ignore[dict-item]
    rights = admin.patch(path, json={"rights": {"limits": None}}).json()["rights"]
    assert set(rights["limits"].values()) == {None}
    assert rights["networks"] == BOUND["networks"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "Say what to change: name, owner, scopes, origins, expires_at, rights."),
        ({"name": ""}, "A name has"),
        ({"name": None}, "name: Input should be a valid string"),
        ({"scopes": []}, "A key without a scope"),
        ({"scopes": ["files:upload"]}, "A publishable key can't have files:upload"),
        ({"origins": []}, "A publishable key needs the origins"),
        ({"expires_at": 5}, "expires_at is a time to come"),
        ({"kind": "secret"}, "kind: Extra inputs are not permitted."),
        ({"id": UNKNOWN}, "id: Extra inputs are not permitted."),
    ],
)
def test_a_change_that_breaks_the_rules_changes_nothing(
    admin: httpx.Client, change: dict[str, Any], sentence: str
) -> None:
    created = create(admin, kind="publishable", scopes=[], origins=[PAGE_ORIGIN])
    status, detail = refusal(admin.patch(f"/keys/{created['id']}", json=change))
    assert status == 422
    assert sentence in detail
    assert admin.get(f"/keys/{created['id']}").json() == described(created)


def test_an_end_that_is_moved_away_brings_a_key_back(broker: Broker, admin: httpx.Client) -> None:
    created = create(admin, expires_at=int(time.time()) + 1)
    give_up = time.monotonic() + 10
    while mint(broker, created["key"]) != (401, "expired_credential"):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert admin.get(f"/keys/{created['id']}").json()["status"] == "expired"
    assert refusal(admin.post(f"/keys/{created['id']}/rotate"))[0] == 422, "a new secret would be of no use"
    assert admin.patch(f"/keys/{created['id']}", json={"name": "renamed"}).status_code == 200
    assert admin.patch(f"/keys/{created['id']}", json={"expires_at": 0}).json()["status"] == "active"
    assert mint(broker, created["key"]) == (200, None)


# --- revoke ---------------------------------------------------------------------------------------


def test_a_revoked_key_is_refused_at_once_and_for_good(broker: Broker, admin: httpx.Client) -> None:
    created = create(admin)
    path = f"/keys/{created['id']}"
    assert mint(broker, created["key"]) == (200, None)
    revoked = admin.delete(path)
    assert (revoked.status_code, revoked.json()["status"]) == (200, "revoked")
    assert mint(broker, created["key"]) == (401, "invalid_credential")
    again, first = admin.delete(path).json(), revoked.json()
    # Its last use may have been written down meanwhile.
    assert {**again, "last_used_at": None} == {**first, "last_used_at": None}, "as often as one likes"
    assert admin.get(path).json() == revoked.json()
    for answer in (admin.patch(path, json={"name": "x"}), admin.post(f"{path}/rotate")):
        assert (answer.status_code, answer.json()["code"]) == (409, "key_revoked")


def test_a_revoked_key_looks_like_one_that_never_was(broker: Broker, admin: httpx.Client) -> None:
    """Who guesses keys learns nothing; the log tells the operator which it was."""
    created = create(admin)
    admin.delete(f"/keys/{created['id']}")
    unknown = key_format.generate("secret")
    answers = [
        httpx.post(f"{broker.url}/token", json={"size": 1}, headers=broker.auth(key))
        for key in (created["key"], created["key"][:-1] + "!", unknown)
    ]
    seen = [{**answer.json(), "request_id": ""} for answer in answers]
    assert seen[0] == seen[1] == seen[2]
    assert created["id"] in broker.record(answers[0].headers["x-request-id"])["log"]


def test_an_administrator_may_revoke_itself(broker: Broker, admin: httpx.Client) -> None:
    own = create(admin, scopes=["keys:admin"])
    headers = broker.auth(own["key"])
    assert httpx.delete(f"{broker.url}/keys/{own['id']}", headers=headers).status_code == 200
    answer = httpx.get(f"{broker.url}/keys", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_credential")


# --- rotate ---------------------------------------------------------------------------------------


def test_both_secrets_work_in_the_grace_and_each_is_shown_masked(broker: Broker, admin: httpx.Client) -> None:
    created = create(admin)
    rotated = admin.post(f"/keys/{created['id']}/rotate", json={"grace_seconds": 60}).json()
    assert rotated["id"] == created["id"]
    assert rotated["key"] != created["key"]
    assert rotated["signing_secret"] != created["signing_secret"]
    assert [secret["hint"] for secret in rotated["secrets"]] == [rotated["hint"], created["hint"]]
    newest, old = rotated["secrets"]
    assert newest["expires_at"] == 0
    assert old["expires_at"] - newest["created_at"] in (60, 61)
    assert mint(broker, created["key"]) == mint(broker, rotated["key"]) == (200, None)


def test_without_a_grace_the_old_secret_ends_at_once(broker: Broker, admin: httpx.Client) -> None:
    created = create(admin)
    assert mint(broker, created["key"]) == (200, None)
    rotated = admin.post(f"/keys/{created['id']}/rotate", json={"grace_seconds": 0}).json()
    assert mint(broker, created["key"]) == (401, "expired_credential")
    assert mint(broker, rotated["key"]) == (200, None)
    assert len(rotated["secrets"]) == 1


def test_the_grace_is_the_operator_s_when_nobody_says(admin: httpx.Client) -> None:
    cases: list[dict[str, Any]] = [{}, {"json": {}}, {"json": {"grace_seconds": None}}]
    for options in cases:
        created = create(admin)
        rotated = admin.post(f"/keys/{created['id']}/rotate", **options).json()
        newest, old = rotated["secrets"]
        assert old["expires_at"] - newest["created_at"] in (86_400, 86_401)


@pytest.mark.parametrize("asked", [{"grace_seconds": -1}, {"grace_seconds": 10**9}, {"grace": 1}, []])
def test_a_grace_that_is_none_is_refused(admin: httpx.Client, asked: Any) -> None:
    created = create(admin)
    assert refusal(admin.post(f"/keys/{created['id']}/rotate", json=asked))[0] == 422
    assert admin.get(f"/keys/{created['id']}").json() == described(created)


# --- who may --------------------------------------------------------------------------------------

CALLS = [
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("GET", f"/keys/{UNKNOWN}"),
    ("PATCH", f"/keys/{UNKNOWN}"),
    ("DELETE", f"/keys/{UNKNOWN}"),
    ("POST", f"/keys/{UNKNOWN}/rotate"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_nobody_else_may(broker: Broker, method: str, path: str) -> None:
    """Told before anything of the body is read."""
    token = broker.mint(size=1, route="proxy")["access_token"]
    page = {"Origin": PAGE_ORIGIN}
    cases: list[tuple[dict[str, str], tuple[int, str]]] = [
        ({}, (401, "missing_credential")),
        (broker.auth("cub_sk_nonsense"), (401, "invalid_credential")),
        (broker.auth(token), (401, "invalid_credential")),
        (broker.auth(broker.secret_key), (403, "wrong_scope")),
        (broker.auth(broker.publishable_key) | page, (403, "wrong_scope")),
    ]
    for headers, expected in cases:
        answer = httpx.request(method, broker.url + path, headers=headers, content=b"{")
        assert (answer.status_code, answer.json()["code"]) == expected


@pytest.mark.parametrize("key_id", [UNKNOWN, "key_1", "%00", "a%20b", "x" * 300])
@pytest.mark.parametrize(
    ("method", "suffix"), [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")]
)
def test_a_key_that_is_not_there_is_not_found(
    admin: httpx.Client, method: str, suffix: str, key_id: str
) -> None:
    body = {"name": "x"} if method == "PATCH" else None
    answer = admin.request(method, f"/keys/{key_id}{suffix}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/keys", {"GET", "HEAD", "POST"}),
        ("POST", f"/keys/{UNKNOWN}", {"GET", "HEAD", "PATCH", "DELETE"}),
        ("GET", f"/keys/{UNKNOWN}/rotate", {"POST"}),
    ],
)
def test_another_method_is_told_which_there_are(
    admin: httpx.Client, method: str, path: str, allowed: set[str]
) -> None:
    answer = admin.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_no_page_may_change_keys(broker: Broker) -> None:
    """These routes are for servers: a browser's question beforehand is answered with no."""
    headers = {"Origin": PAGE_ORIGIN, "Access-Control-Request-Headers": "authorization"}
    for method in ("PATCH", "DELETE"):
        answer = httpx.options(
            f"{broker.url}/keys/{UNKNOWN}", headers={**headers, "Access-Control-Request-Method": method}
        )
        assert answer.status_code == 400
