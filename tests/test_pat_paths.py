"""A console that was written for Coze Studio manages the broker's keys on the paths that it knows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from broker.auth.coze_permissions import DEFAULT_SCOPES
from tests.support.broker_process import PAGE_ORIGIN, Broker
from tests.support.refusals import assert_no_secret

PAT = "/api/permission_api/pat"
CREATE = f"{PAT}/create_personal_access_token_and_permission"
LIST = f"{PAT}/list_personal_access_tokens"
GET = f"{PAT}/get_personal_access_token_and_permission"
UPDATE = f"{PAT}/update_personal_access_token_and_permission"
DELETE = f"{PAT}/delete_personal_access_token_and_permission"
UNKNOWN = "key_0123456789abcdef"
FIELDS = {"id", "name", "created_at", "updated_at", "last_used_at", "expire_at"}


@pytest.fixture
def console(broker: Broker) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=broker.url, headers=broker.auth(broker.admin_key), timeout=30) as client:
        yield client


def data(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert (body["code"], body["msg"]) == (0, "")
    return body.get("data")


def create(console: httpx.Client, **asked: Any) -> tuple[dict[str, Any], str]:
    made = data(console.post(CREATE, json={"name": "Secret token", "duration_day": "30", **asked}))
    return made["personal_access_token"], made["token"]


def refusal(answer: httpx.Response) -> tuple[int, int, str]:
    """Status, Coze's code, and the sentence, of an answer in Coze's envelope."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert set(body) == {"code", "msg", "detail"}
    assert body["detail"]["logid"] == answer.headers["x-tt-logid"]
    assert_no_secret(answer.text)
    return answer.status_code, body["code"], body["msg"]


def scopes_of(broker: Broker, key_id: str) -> list[str]:
    shown = httpx.get(f"{broker.url}/keys/{key_id}", headers=broker.auth(broker.admin_key)).json()
    found: list[str] = shown["scopes"]
    return found


def test_a_token_lives_as_the_console_has_it(broker: Broker, console: httpx.Client) -> None:
    """Made, listed, renamed, deleted; it is a key like any other meanwhile."""
    token, secret = create(console)
    assert set(token) == FIELDS
    assert isinstance(token["id"], str)
    assert (token["name"], token["last_used_at"]) == ("Secret token", -1)
    assert token["expire_at"] == pytest.approx(time.time() + 30 * 86_400, abs=30)
    answer = httpx.get(f"{broker.url}/v1/files/retrieve?file_id=1", headers=broker.auth(secret))
    assert answer.json()["code"] == 4200, "it may read files; there is none of this id"
    listed = data(console.get(LIST))
    first, *others = listed["personal_access_tokens"]
    newest = [first, *(other for other in others if other["created_at"] == first["created_at"])]
    assert token["id"] in [each["id"] for each in newest], "the newest first"
    assert data(console.post(UPDATE, json={"id": token["id"], "name": "renamed"})) is None
    assert data(console.get(GET, params={"id": token["id"]}))["personal_access_token"]["name"] == "renamed"
    assert scopes_of(broker, token["id"]) == list(DEFAULT_SCOPES)
    assert data(console.post(DELETE, json={"id": token["id"]})) is None
    answer = httpx.get(f"{broker.url}/v1/files/retrieve?file_id=1", headers=broker.auth(secret))
    assert (answer.status_code, answer.json()["code"]) == (401, 4100)
    assert token["id"] not in console.get(LIST, params={"size": 500}).text
    for gone in (
        console.get(GET, params={"id": token["id"]}),
        console.post(DELETE, json={"id": token["id"]}),
    ):
        assert refusal(gone) == (404, 4200, "There is no token with this id.")


def test_a_token_is_shown_this_once(console: httpx.Client) -> None:
    token, _ = create(console)
    for answer in (console.get(LIST, params={"size": 500}), console.get(GET, params={"id": token["id"]})):
        assert_no_secret(answer.text)


# --- when it ends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("days", ["1", "30", "60", "90", "180", "365"])
def test_a_token_lives_for_so_many_days(console: httpx.Client, days: str) -> None:
    token, _ = create(console, duration_day=days)
    assert token["expire_at"] == pytest.approx(time.time() + int(days) * 86_400, abs=30)


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("duration", [{"duration_day": "customize"}, {"duration_day": ""}])
def test_a_token_lives_until_a_time_of_its_own(
    console: httpx.Client, duration: dict[str, str], as_text: bool
) -> None:
    """A 64-bit number may come as a string: JavaScript would round it."""
    at = int(time.time()) + 1000
    token, _ = create(console, **duration, expire_at=str(at) if as_text else at)
    assert token["expire_at"] == at


@pytest.mark.parametrize(
    "never", [{"duration_day": "permanent"}, {"duration_day": "customize", "expire_at": -1}]
)
def test_a_token_may_live_for_ever(console: httpx.Client, never: dict[str, Any]) -> None:
    assert create(console, **never)[0]["expire_at"] == -1


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"duration_day": ""}, "Say when the token expires"),
        ({"duration_day": "customize"}, "Say when the token expires"),
        ({"duration_day": "customize", "expire_at": 0}, "Say when the token expires"),
        ({"duration_day": "0"}, "Say when the token expires"),
        ({"duration_day": "-1"}, "Say when the token expires"),
        ({"duration_day": "9" * 5000}, "Say when the token expires"),
        ({"duration_day": "٣"}, "Say when the token expires"),
        ({"duration_day": 30}, "duration_day: Input should be a valid string"),
        ({"duration_day": "customize", "expire_at": 1}, "expires_at is a time to come"),
        (
            {"duration_day": "customize", "expire_at": 1_790_000_000_000},
            "expire_at: Input should be less than",
        ),
        ({"duration_day": "customize", "expire_at": "soon"}, "expire_at: Input should be a valid integer"),
        ({"name": ""}, "A name has 1 to 200 characters"),
        ({"name": 5}, "name: Input should be a valid string"),
    ],
)
def test_a_token_that_can_not_be_is_refused_in_coze_s_envelope(
    console: httpx.Client, asked: dict[str, Any], sentence: str
) -> None:
    status, code, msg = refusal(console.post(CREATE, json={"name": "x", "duration_day": "1", **asked}))
    assert (status, code) == (422, 4000)
    assert sentence in msg


# --- what it may do -------------------------------------------------------------------------------


def account(*names: str) -> dict[str, Any]:
    return {"account_permission": {"permission_list": names}}


def workspace(*names: Any, version: str = "_v2", **more: Any) -> dict[str, Any]:
    return {f"workspace_permission{version}": {"option": 2, "permission_list": names, **more}}


@pytest.mark.parametrize(
    ("asked", "scopes"),
    [
        ({}, list(DEFAULT_SCOPES)),
        (account("Account.uploadFile"), ["files:upload"]),
        (account("uploadFile", "File.retrieveFile"), ["files:upload", "files:read"]),
        (account("Account.uploadFile", "Account.createSpeech"), ["files:upload"]),
        (account("Conversation.getChat", "Conversation.listMessage"), ["chat", "conversations"]),
        (account("Account.listWorkspace"), ["workspaces:read"]),
        (workspace("Bot.getMetadata", "Workflow.run"), ["bots:read", "workflow:run"]),
        (workspace({"resource_type": "Bot", "actions": ["chat"]}, version=""), ["chat"]),
        (account("Account.uploadFile") | workspace("Bot.chat"), ["files:upload", "chat"]),
    ],
)
def test_permissions_become_the_scopes_that_they_stand_for(
    broker: Broker, console: httpx.Client, asked: dict[str, Any], scopes: list[str]
) -> None:
    token, _ = create(console, **asked, organization_id="7", unknown={"to": "us"})
    assert scopes_of(broker, token["id"]) == scopes
    shown = data(console.get(GET, params={"id": token["id"]}))
    again, _ = create(
        console,
        account_permission=shown["account_permission"],
        workspace_permission_v2=shown["workspace_permission_v2"],
    )
    named = set(scopes) - {"users:read"}
    assert set(scopes_of(broker, again["id"])) == named, "what is shown may be sent back"


def test_a_token_never_gets_what_is_the_broker_s_own(broker: Broker, console: httpx.Client) -> None:
    for asked in ({}, account("keys:admin", "token:mint", "Account.uploadFile")):
        token, _ = create(console, **asked)
        assert {"keys:admin", "token:mint"}.isdisjoint(scopes_of(broker, token["id"]))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (account(), "None of these permissions means anything here. Known: Account.uploadFile"),
        (account("Account.createSpeech"), "None of these permissions"),
        (
            workspace("Bot.chat") | {"workspace_permission_v2": {"option": 1, "permission_list": []}},
            "workspaces",
        ),
        (
            {
                "workspace_permission": {
                    "option": 1,
                    "workspace_id_list": ["7"],
                    "permission_list": ["Bot.chat"],
                }
            },
            "can't be bound to workspaces",
        ),
        ({"account_permission": {}}, "account_permission.permission_list: Field required"),
        (
            {"workspace_permission_v2": {"option": 3, "permission_list": []}},
            "workspace_permission_v2.option: ",
        ),
    ],
)
def test_more_than_was_asked_for_is_never_given(console: httpx.Client, asked: Any, sentence: str) -> None:
    """A bound that the broker doesn't know is refused, not dropped."""
    status, code, msg = refusal(console.post(CREATE, json={"name": "x", "duration_day": "1", **asked}))
    assert (status, code) == (422, 4000)
    assert sentence in msg


def test_a_change_keeps_the_scopes_that_coze_has_no_name_for(broker: Broker, console: httpx.Client) -> None:
    key = broker.create_key("--scope=token:mint", "--scope=users:read", "--scope=chat")
    data(console.post(UPDATE, json={"id": key["id"], **account("Account.uploadFile")}))
    assert scopes_of(broker, key["id"]) == ["files:upload", "token:mint", "users:read"]
    assert data(console.get(GET, params={"id": key["id"]}))["personal_access_token"]["name"] == "test"


def test_a_page_s_key_gets_no_more_through_the_console(broker: Broker, console: httpx.Client) -> None:
    key = broker.create_key("--publishable", f"--origin={PAGE_ORIGIN}")
    answer = console.post(UPDATE, json={"id": key["id"], **account("Account.uploadFile")})
    assert refusal(answer)[:2] == (422, 4000)
    assert scopes_of(broker, key["id"]) == ["token:mint"]


# --- the list -------------------------------------------------------------------------------------


def test_pages_are_counted_as_studio_counts_them(console: httpx.Client) -> None:
    """0 and 1 are the first; each token is on one page."""
    made = [create(console)[0]["id"] for _ in range(3)]
    first = data(console.get(LIST, params={"page": 0, "size": 2, "search_option": "all", "msToken": "x"}))
    assert first == data(console.get(LIST, params={"page": "1", "size": "2"}))
    second = data(console.get(LIST, params={"page": 2, "size": 2}))
    ids = [token["id"] for page in (first, second) for token in page["personal_access_tokens"]]
    assert len(set(ids)) == 4
    assert set(made) < set(ids)
    assert first["has_more"] is True
    assert data(console.get(LIST, params={"page": 1000})) == {"personal_access_tokens": [], "has_more": False}


def test_a_listed_token_has_what_the_console_shows(broker: Broker, console: httpx.Client) -> None:
    key = broker.create_key("--scope=chat", "--owner=shop")
    listed = data(console.get(LIST, params={"size": 500}))["personal_access_tokens"]
    found = next(token for token in listed if token["id"] == key["id"])
    creator = {
        "creator_name": "shop",
        "creator_unique_name": "shop",
        "locked": False,
        "creator_status": "active",
    }
    assert creator.items() <= found.items()
    assert (found["last_used_at"], found["expire_at"]) == (-1, -1)
    assert set(found) > FIELDS


@pytest.mark.parametrize(
    "query", ["size=501", "size=-1", "page=-1", "page=x", "page=99999999999999999999", "page=1&page=2"]
)
def test_a_page_that_is_none_is_refused(console: httpx.Client, query: str) -> None:
    assert refusal(console.get(f"{LIST}?{query}"))[:2] == (422, 4000)


# --- who may --------------------------------------------------------------------------------------

CALLS = [("POST", CREATE), ("GET", LIST), ("GET", GET), ("POST", UPDATE), ("POST", DELETE)]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_nobody_else_may_and_a_cookie_is_no_credential(broker: Broker, method: str, path: str) -> None:
    page = {"Origin": PAGE_ORIGIN}
    cases: list[tuple[dict[str, str], tuple[int, int]]] = [
        ({}, (401, 4100)),
        ({"Cookie": f"session_key={broker.admin_key}"}, (401, 4100)),
        (broker.auth(broker.secret_key), (403, 4101)),
        (broker.auth(broker.publishable_key) | page, (403, 4101)),
    ]
    for headers, expected in cases:
        assert refusal(httpx.request(method, broker.url + path, headers=headers))[:2] == expected


@pytest.mark.parametrize("key_id", [UNKNOWN, "7388888888888888888", "", "\0"])
def test_a_token_that_is_not_there_is_not_found(console: httpx.Client, key_id: str) -> None:
    for answer in (
        console.get(GET, params={"id": key_id}),
        console.post(UPDATE, json={"id": key_id, "name": "x"}),
        console.post(DELETE, json={"id": key_id}),
    ):
        assert refusal(answer)[:2] == (404, 4200)


def test_without_an_id_there_is_nothing_to_do(console: httpx.Client) -> None:
    for answer in (console.get(GET), console.post(UPDATE, json={}), console.post(DELETE, json={})):
        assert refusal(answer) == (422, 4000, "id: Field required.")


def test_paths_beside_them_answer_in_the_envelope_too(console: httpx.Client) -> None:
    assert refusal(console.get("/api/permission_api/pat/impersonate"))[:2] == (404, 4200)
    assert refusal(console.get(CREATE))[:2] == (405, 4000)
