"""Any origin may read the answers, errors included, unless that is switched off."""

from collections.abc import Callable

import httpx
import pytest

from broker.sandbox.serve import in_thread

ORIGIN = {"origin": "https://app.example"}
PREFLIGHT = ORIGIN | {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-coze-client-user-agent",
}
PATHS = [
    "/v1/files/upload",
    "/v1/files/retrieve",
    "/api/permission/oauth2/token",
    "/v1/unknown",
    "/_sandbox/files",
]


def is_shared(response: httpx.Response) -> bool:
    return bool(response.headers.get("access-control-allow-origin") == ORIGIN["origin"])


@pytest.mark.parametrize("path", PATHS)
def test_preflight_names_headers_and_methods(path: str, anonymous: httpx.Client) -> None:
    response = anonymous.options(path, headers=PREFLIGHT)
    assert response.status_code == 200
    assert is_shared(response)
    assert response.headers["x-tt-logid"]
    assert "POST" in response.headers["access-control-allow-methods"]
    allowed = response.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "x-coze-client-user-agent"))


@pytest.mark.parametrize("path", PATHS)
def test_answers_and_errors_are_shared(path: str, anonymous: httpx.Client) -> None:
    for response in (anonymous.get(path, headers=ORIGIN), anonymous.post(path, headers=ORIGIN)):
        assert is_shared(response)
        assert "x-tt-logid" in response.headers["access-control-expose-headers"]
        assert "Origin" in response.headers["vary"]


def test_a_fault_can_hide_one_answer(order: Callable[..., None], client: httpx.Client) -> None:
    order(cors=False)
    assert not is_shared(client.options("/v1/files/upload", headers=PREFLIGHT))
    hidden = client.post("/v1/files/upload", headers=ORIGIN, files={"file": ("a.csv", b"1")})
    assert not is_shared(hidden)
    assert hidden.json()["code"] == 0
    assert is_shared(client.options("/v1/files/upload", headers=PREFLIGHT))


def test_faults_keep_their_cors_headers(order: Callable[..., None], client: httpx.Client) -> None:
    order(status=503)
    response = client.post("/v1/files/upload", headers=ORIGIN)
    assert response.status_code == 503
    assert is_shared(response)


def test_cors_can_be_switched_off() -> None:
    with in_thread(cors=False) as running, httpx.Client(base_url=running.base_url) as client:
        assert not is_shared(client.options("/v1/files/upload", headers=PREFLIGHT))
        assert not is_shared(client.post("/v1/files/upload", headers=ORIGIN))
