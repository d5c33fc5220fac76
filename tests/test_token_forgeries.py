"""Tokens that are not what the broker made, or not for here, or not for now. Each is refused by its own name.

Those of the second and third table bear a signature that is right: nothing but what they say speaks
against them.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.auth.signed_claims import LEEWAY_SECONDS
from tests.support.broker_process import Broker
from tests.support.forging import claims_of, header_of, ring_key, signed, unsigned

Forgery = Callable[[Broker, dict[str, Any], dict[str, Any]], str]
FILE = ("a.csv", b"a,b\n")


def upload(broker: Broker, token: str) -> httpx.Response:
    return httpx.post(
        f"{broker.url}/proxy/upload", files={"file": FILE}, headers={"Authorization": f"Bearer {token}"}
    )


def minted(broker: Broker, **asked: Any) -> str:
    return str(broker.mint(size=4, route="proxy", **asked)["access_token"])


def public_pem(broker: Broker) -> bytes:
    return (
        ring_key(broker)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def with_the_public_key_as_secret(broker: Broker, header: dict[str, Any], claims: dict[str, Any]) -> str:
    text = unsigned(claims, {**header, "alg": "HS256"}).rpartition(".")[0]
    digest = hmac.new(public_pem(broker), text.encode(), hashlib.sha256).digest()
    return unsigned(claims, {**header, "alg": "HS256"}, digest)


def by_another_key(_: Broker, header: dict[str, Any], claims: dict[str, Any]) -> str:
    return signed(claims, header, Ed25519PrivateKey.generate())


def with_header(**changes: Any) -> Forgery:
    """Signed by the broker's own key, under another header; a header that is None is left out."""

    def forge(broker: Broker, header: dict[str, Any], claims: dict[str, Any]) -> str:
        changed = {name: value for name, value in {**header, **changes}.items() if value is not None}
        return signed(claims, changed, ring_key(broker))

    return forge


def with_algorithm(name: str) -> Forgery:
    return lambda _, header, claims: unsigned(claims, {**header, "alg": name})


def with_own_key_in_header(broker: Broker, header: dict[str, Any], claims: dict[str, Any]) -> str:
    key = Ed25519PrivateKey.generate()
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    addresses = {"jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/cert"}
    return signed(claims, {**header, "kid": "mine", "jwk": jwk, **addresses}, key)


FORGERIES: dict[str, Forgery] = {
    "alg none": with_algorithm("none"),
    "alg nOnE": with_algorithm("nOnE"),
    "alg NONE": with_algorithm("NONE"),
    "alg unknown": with_algorithm("XS512"),
    "alg empty": with_algorithm(""),
    "HS256 with the public key": with_the_public_key_as_secret,
    "signed by another key": by_another_key,
    "alg RS256 over an EdDSA signature": with_header(alg="RS256"),
    "kid unknown": with_header(kid="unknown"),
    "kid missing": with_header(kid=None),
    "kid a path": with_header(kid="../../../../dev/null"),
    "kid SQL": with_header(kid="' OR 1=1 --"),
    "kid a URL": with_header(kid="http://127.0.0.1:1/keys.json"),
    "kid a number": with_header(kid=7),
    "kid a list": with_header(kid=["a"]),
    "kid of 4 KB": with_header(kid="k" * 4096),
    "keys in the header": with_own_key_in_header,
    "typ missing": with_header(typ=None),
    "typ JWT": with_header(typ="JWT"),
    "typ of a receipt": with_header(typ="receipt+jwt"),
    "typ of an access token": with_header(typ="at+jwt"),
    "crit": with_header(crit=["exp"]),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_token_that_is_not_ours(broker: Broker, name: str) -> None:
    token = minted(broker)
    forged = FORGERIES[name](broker, header_of(token), claims_of(token))
    refused = upload(broker, forged)
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_credential")
    assert upload(broker, token).status_code == 200, "the real one is not spent by a forged one"


@pytest.mark.parametrize("name", ["cut", "bits", "two parts", "four parts", "1 MB", "not base64"])
def test_what_is_no_token_at_all(broker: Broker, name: str) -> None:
    token = minted(broker)
    broken = {
        "cut": token[:-10],
        "bits": token[:-2] + ("AA" if token[-2:] != "AA" else "BB"),
        "two parts": token.rpartition(".")[0],
        "four parts": token + ".e30",
        "1 MB": "eyJ" + "a" * 9000,  # 1 MB is over the head's own bound, which is smaller
        "not base64": token.replace(".", ".*"),
    }[name]
    refused = upload(broker, broken)
    assert (refused.status_code, refused.json()["code"]) == (401, "invalid_credential")


WRONG = "invalid_credential"
LATE = "expired_credential"
NOW = int(time.time())
CLAIMS: list[tuple[str, dict[str, Any], str]] = [
    ("expired", {"exp": lambda now: now - LEEWAY_SECONDS - 2}, LATE),
    ("prehistoric", {"exp": 1, "iat": 1, "nbf": 1}, LATE),
    ("not yet valid", {"nbf": lambda now: now + 60}, WRONG),
    ("issued in the future", {"iat": lambda now: now + 60}, WRONG),
    ("no exp", {"exp": None}, WRONG),
    ("no iat", {"iat": None}, WRONG),
    ("no nbf", {"nbf": None}, WRONG),
    ("no finish_by", {"finish_by": None}, WRONG),
    ("exp as text", {"exp": "9999999999"}, WRONG),
    ("exp as a float", {"exp": 9999999999.5}, WRONG),
    ("exp of 1e300", {"exp": 1e300}, WRONG),
    ("exp true", {"exp": True}, WRONG),
    ("exp a list", {"exp": [9999999999]}, WRONG),
    ("wrong aud", {"aud": "somebody-else"}, WRONG),
    ("no aud", {"aud": None}, WRONG),
    ("aud of a receipt", {"aud": "coze-upload-broker/receipt"}, WRONG),
    ("ours among other aud", {"aud": ["coze-upload-broker/upload", "somebody-else"]}, WRONG),
    ("wrong iss: another environment", {"iss": "https://staging.example.com"}, WRONG),
    ("no iss", {"iss": None}, WRONG),
    ("wrong scope", {"scope": "files:upload keys:admin"}, WRONG),
    ("no scope", {"scope": None}, WRONG),
]


@pytest.mark.parametrize(("changes", "code"), [case[1:] for case in CLAIMS], ids=[case[0] for case in CLAIMS])
def test_a_token_of_ours_that_is_not_for_here_or_now(
    broker: Broker, changes: dict[str, Any], code: str
) -> None:
    token = minted(broker)
    now = int(time.time())
    wanted = {name: value(now) if callable(value) else value for name, value in changes.items()}
    claims = {name: value for name, value in {**claims_of(token), **wanted}.items() if value is not None}
    refused = upload(broker, signed(claims, header_of(token), ring_key(broker)))
    assert (refused.status_code, refused.json()["code"]) == (401, code)


@pytest.mark.parametrize("changes", [{"exp": -3}, {"iat": 3, "nbf": 3}])
def test_clocks_may_differ_a_little(broker: Broker, changes: dict[str, int]) -> None:
    token = minted(broker)
    now = int(time.time())
    claims = {**claims_of(token), **{name: now + seconds for name, seconds in changes.items()}}
    assert upload(broker, signed(claims, header_of(token), ring_key(broker))).status_code == 200


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("query", "missing_credential"),
        ("cookie", "missing_credential"),
        ("form", "missing_credential"),
        ("two headers", "invalid_credential"),
        ("basic", "invalid_credential"),
    ],
)
def test_only_the_one_header_counts(broker: Broker, place: str, code: str) -> None:
    token = minted(broker)
    url, headers, data = f"{broker.url}/proxy/upload", [], {}
    if place == "query":
        url += f"?access_token={token}"
    elif place == "cookie":
        headers = [("Cookie", f"access_token={token}")]
    elif place == "form":
        data = {"access_token": token}
    elif place == "two headers":
        headers = [("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {broker.secret_key}")]
    else:
        headers = [("Authorization", f"Basic {token}")]
    refused = httpx.post(url, files={"file": FILE}, data=data, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (401, code)
