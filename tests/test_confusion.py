"""Every kind of credential at every endpoint. What the table does not list is refused, for each of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from broker.auth.scopes import ALL
from broker.signing import SignedAuth
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.openid_provider import OpenIdProvider, running_openid_provider
from tests.support.sandbox_control import SandboxControl

CSV = ("a.csv", b"a,b\n")
CLIENT_ID, OTHER_CLIENT_ID = "app-ES256", "app-RS256"

Headers = dict[str, str]


class Cast:
    """A broker with an OpenID provider, and one of every kind of credential for it."""

    def __init__(self, broker: Broker, sandbox: SandboxControl, provider: OpenIdProvider) -> None:
        self.broker = broker
        self.sandbox = sandbox
        self.keys = {scope: broker.create_key(f"--scope={scope}") for scope in ALL}
        self.expiring = self.short_lived()
        self.revoked = broker.create_key(*(f"--scope={scope}" for scope in ALL))
        broker.command("keys", "revoke", self.revoked["id"])
        tokens = provider.log_in("user-42", client_id=CLIENT_ID)
        self.id_token, self.access_token = tokens["id_token"], tokens["access_token"]
        self.foreign_id_token = provider.id_token("user-42", OTHER_CLIENT_ID)
        uploaded = self.upload(broker.secret_key).json()
        self.file_id, self.receipt = uploaded["file_id"], uploaded["receipt"]

    def short_lived(self) -> dict[str, Any]:
        """A key with every scope, for two seconds."""
        asked = {"name": "short", "scopes": [*ALL], "expires_at": int(time.time()) + 2}
        admin = {"Authorization": f"Bearer {self.keys['keys:admin']['key']}"}
        made = httpx.post(f"{self.broker.url}/keys", json=asked, headers=admin)
        assert made.status_code == 201, made.text
        created: dict[str, Any] = made.json()
        return created

    def upload(self, credential: str, path: str = "/proxy/upload") -> httpx.Response:
        headers = {"Authorization": f"Bearer {credential}"}
        return httpx.post(self.broker.url + path, files={"file": CSV}, headers=headers)

    def direct(self) -> dict[str, Any]:
        return self.broker.mint(size=4, file_name="a.csv")

    def proxy_token(self) -> str:
        return str(self.broker.mint(size=4, route="proxy")["access_token"])

    def spent(self) -> str:
        token = self.proxy_token()
        assert self.upload(token).status_code == 200
        return token

    def taken_back(self) -> str:
        token = self.proxy_token()
        form = {"token": token}
        done = httpx.post(f"{self.broker.url}/token/revoke", data=form, headers=self.broker.auth())
        assert done.status_code == 200
        return token


@pytest.fixture(scope="module")
def cast(session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    folder = tmp_path_factory.mktemp("confusion")
    with running_openid_provider() as provider:
        settings = {"BROKER_OIDC_ISSUER": provider.issuer, "BROKER_OIDC_AUDIENCE": CLIENT_ID}
        with running_broker(folder, session_sandbox.environment, **settings) as broker:
            yield Cast(broker, session_sandbox, provider)


# --- the endpoints ------------------------------------------------------------------------------------


def json_call(method: str, path: str, body: Any = None) -> Callable[[Cast, Headers], httpx.Request]:
    def make(cast: Cast, headers: Headers) -> httpx.Request:
        return httpx.Request(method, cast.broker.url + path, json=body, headers=headers)

    return make


def form_call(path: str, **fields: str) -> Callable[[Cast, Headers], httpx.Request]:
    def make(cast: Cast, headers: Headers) -> httpx.Request:
        return httpx.Request("POST", cast.broker.url + path, data=fields, headers=headers)

    return make


def file_call(path: str) -> Callable[[Cast, Headers], httpx.Request]:
    def make(cast: Cast, headers: Headers) -> httpx.Request:
        request = httpx.Request("POST", cast.broker.url + path, files={"file": CSV}, headers=headers)
        request.read()  # whoever signs must know the whole of it
        return request

    return make


def retrieve(cast: Cast, headers: Headers) -> httpx.Request:
    url = f"{cast.broker.url}/v1/files/retrieve?file_id={cast.file_id}"
    return httpx.Request("GET", url, headers=headers)


PAT = "/api/permission_api/pat"
ENDPOINTS: dict[str, Callable[[Cast, Headers], httpx.Request]] = {
    "mint": json_call("POST", "/token", {"size": 4}),
    "proxy upload": file_call("/proxy/upload"),
    "drop-in upload": file_call("/v1/files/upload"),
    "drop-in retrieve": retrieve,
    "introspect": form_call("/token/introspect", token="none"),
    "revoke": form_call("/token/revoke", token="none"),
    "complete": json_call("POST", "/uploads/upl_unknown/complete", {"file_id": "7000000000000000000"}),
    "test connection": json_call("GET", "/api/v1/test/connection"),
    "list keys": json_call("GET", "/keys"),
    "create key": json_call("POST", "/keys", {"name": "n", "scopes": ["token:mint"]}),
    "show key": json_call("GET", "/keys/key_0000000000000000"),
    "change key": json_call("PATCH", "/keys/key_0000000000000000", {"name": "m"}),
    "rotate key": json_call("POST", "/keys/key_0000000000000000/rotate", {}),
    "revoke key": json_call("DELETE", "/keys/key_0000000000000000"),
    "console: create": json_call(
        "POST", f"{PAT}/create_personal_access_token_and_permission", {"name": "n", "duration_day": "1"}
    ),
    "console: list": json_call("GET", f"{PAT}/list_personal_access_tokens"),
    "console: get": json_call("GET", f"{PAT}/get_personal_access_token_and_permission?id=1"),
    "console: update": json_call(
        "POST", f"{PAT}/update_personal_access_token_and_permission", {"id": "1", "name": "n"}
    ),
    "console: delete": json_call("POST", f"{PAT}/delete_personal_access_token_and_permission", {"id": "1"}),
}
KEYS = {name for name in ENDPOINTS if name.endswith(("key", "keys")) or name.startswith("console")}

# --- the credentials ----------------------------------------------------------------------------------


def bearer(find: Callable[[Cast], str]) -> Callable[[Cast], Headers]:
    return lambda cast: {"Authorization": f"Bearer {find(cast)}"}


def coze_token(cast: Cast) -> str:
    return cast.sandbox.environment["COZE_API_TOKEN"]


def expired_key(cast: Cast) -> str:
    """As good as it was, but for its time."""
    time.sleep(max(0.0, cast.expiring["expires_at"] - time.time()))
    return str(cast.expiring["key"])


def cut_key(cast: Cast) -> str:
    return cast.broker.secret_key[:-1] + ("A" if cast.broker.secret_key[-1] != "A" else "B")


def with_scope(scope: str) -> Callable[[Cast], Headers]:
    return bearer(lambda cast: cast.keys[scope]["key"])


CREDENTIALS: dict[str, Callable[[Cast], Headers]] = {
    "nothing": lambda _: {},
    "publishable key": lambda cast: {
        "Authorization": f"Bearer {cast.broker.publishable_key}",
        "Origin": PAGE_ORIGIN,
    },
    "publishable key, no origin": bearer(lambda cast: cast.broker.publishable_key),
    "publishable key, other origin": lambda cast: {
        "Authorization": f"Bearer {cast.broker.publishable_key}",
        "Origin": "https://evil.example",
    },
    "upload token": bearer(Cast.proxy_token),
    "spent upload token": bearer(Cast.spent),
    "revoked upload token": bearer(Cast.taken_back),
    "complete token": bearer(lambda cast: str(cast.direct()["complete_token"])),
    "direct token of Coze": bearer(lambda cast: str(cast.direct()["access_token"])),
    "Coze's own token": bearer(coze_token),
    "receipt": bearer(lambda cast: cast.receipt),
    "ID token": bearer(lambda cast: cast.id_token),
    "ID token for another client": bearer(lambda cast: cast.foreign_id_token),
    "ID token, other origin": lambda cast: {
        "Authorization": f"Bearer {cast.id_token}",
        "Origin": "https://evil.example",
    },
    "access token of the provider": bearer(lambda cast: cast.access_token),
    "revoked key": bearer(lambda cast: cast.revoked["key"]),
    "expired key": bearer(expired_key),
    "mistyped key": bearer(cut_key),
    "key's id": bearer(lambda cast: cast.revoked["id"]),
    "signing secret as key": bearer(lambda cast: cast.keys["keys:admin"]["signing_secret"]),
    "key's hash": bearer(lambda cast: hashlib.sha256(cast.broker.secret_key.encode()).hexdigest()),
    **{f"key with {scope}": with_scope(scope) for scope in ALL},
}

ALLOWED: set[tuple[str, str]] = {
    ("publishable key", "mint"),
    ("ID token", "mint"),
    ("upload token", "proxy upload"),
    ("key with token:mint", "mint"),
    ("key with token:mint", "introspect"),
    ("key with token:mint", "revoke"),
    ("key with files:upload", "proxy upload"),
    ("key with files:upload", "drop-in upload"),
    ("key with files:read", "drop-in retrieve"),
    *((f"key with {scope}", "test connection") for scope in ALL),
    *(("key with keys:admin", endpoint) for endpoint in KEYS),
}
"""Who gets past the door. A complete token fits the upload that it was minted for and no other."""


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("credential", CREDENTIALS)
def test_only_what_is_listed_is_let_in(cast: Cast, credential: str, endpoint: str) -> None:
    request = ENDPOINTS[endpoint](cast, CREDENTIALS[credential](cast))
    with httpx.Client() as client:
        answer = client.send(request)
    is_let_in = answer.status_code not in (401, 403)
    assert is_let_in == ((credential, endpoint) in ALLOWED), answer.text


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("scope", ALL)
def test_a_signature_opens_what_its_key_would(cast: Cast, scope: str, endpoint: str) -> None:
    created = cast.keys[scope]
    auth = SignedAuth(created["id"], created["signing_secret"])
    with httpx.Client() as client:
        answer = client.send(ENDPOINTS[endpoint](cast, {}), auth=auth)
    is_let_in = answer.status_code not in (401, 403)
    assert is_let_in == ((f"key with {scope}", endpoint) in ALLOWED), answer.text


def test_every_route_that_is_not_open_is_in_the_table() -> None:
    """A route that is added must be held against every credential, too."""
    from broker.app import ROUTES

    is_open = {"/.well-known/jwks.json", "/health", "/ready", "/docs", "/openapi.json", "/"}
    made = {
        (method, pattern(route.path))
        for route in ROUTES
        if route.path not in is_open
        for method in methods_of(route)
    }
    held = set()
    for make in ENDPOINTS.values():
        request = make(_Nobody, {})  # type: ignore[arg-type]
        held.add((request.method, pattern(request.url.path)))
    assert made == held


def methods_of(route: Route) -> set[str]:
    """A route to a class answers the methods that the class has."""
    found = route.methods or {name.upper() for name in vars(route.endpoint) if not name.startswith("_")}
    return found - {"HEAD"}


def pattern(path: str) -> str:
    """A path without what differs from key to key and from upload to upload."""
    parts = path.split("/")
    return "/".join("*" if part.startswith(("key_", "upl_", "{")) else part for part in parts)


class _Nobody:
    file_id = "7"

    class broker:  # noqa: N801 - stands where an instance would
        url = "http://127.0.0.1"
