"""An ID token is believed only when all of it is right: who signed it, for whom, when, and how."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.auth.oidc import MAX_TOKEN_LENGTH, IdTokens, make_id_tokens
from broker.errors import ExpiredCredential, InvalidCredential
from tests.support.key_server import AUDIENCE, SUBJECT, KeyServer, SigningKey, new_key, serving_keys

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
KEY = new_key("ES256", "key-1")
RSA_KEY = new_key("RS256", "key-2")
STRANGER = new_key("ES256", "key-1")


@pytest.fixture(scope="module")
def provider() -> Iterator[KeyServer]:
    with serving_keys(KEY, RSA_KEY) as provider:
        yield provider


@pytest.fixture
async def id_tokens(provider: KeyServer) -> AsyncIterator[IdTokens]:
    made = make_id_tokens(provider.issuer, AUDIENCE)
    yield made
    await made.aclose()


async def test_a_good_token_says_who_its_user_is(provider: KeyServer, id_tokens: IdTokens) -> None:
    claims = provider.claims()
    token = await id_tokens.verify(KEY.sign(claims))
    assert (token.subject, token.issuer) == (SUBJECT, provider.issuer)
    assert (token.issued_at, token.expires_at) == (claims["iat"], claims["exp"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_allowed_algorithm_verifies(algorithm: str) -> None:
    key = new_key(algorithm)
    with serving_keys(key) as provider:
        id_tokens = make_id_tokens(provider.issuer, AUDIENCE)
        assert (await id_tokens.verify(key.sign(provider.claims()))).subject == SUBJECT
        await id_tokens.aclose()


# --- claims ---------------------------------------------------------------------------------------


def seconds(offset: float) -> Callable[[], float]:
    return lambda: time.time() + offset


GOOD_CLAIMS: dict[str, dict[str, Any]] = {
    "several audiences, issued to us": {"aud": ["other", AUDIENCE], "azp": AUDIENCE},
    "our audience as a list": {"aud": [AUDIENCE]},
    "azp is us": {"azp": AUDIENCE},
    "a time with a fraction": {"iat": time.time() - 0.5},
    "expired within the leeway": {"exp": seconds(-25)},
    "issued in the future within the leeway": {"iat": seconds(25)},
    "not before, within the leeway": {"nbf": seconds(25)},
    "a sub of 255 characters": {"sub": "s" * 255},
    "a sub that is not ASCII": {"sub": "Ångström 标题"},
    "Keycloak's name for an ID token": {"typ": "ID"},
}


@pytest.mark.parametrize("case", GOOD_CLAIMS)
async def test_what_is_right_passes(case: str, provider: KeyServer, id_tokens: IdTokens) -> None:
    claims = provider.claims(**settled(GOOD_CLAIMS[case]))
    assert (await id_tokens.verify(KEY.sign(claims))).subject == claims["sub"]


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    # F31
    "no exp": {"exp": None},
    "exp as text": {"exp": "9999999999"},
    "exp as a huge float": {"exp": 1e300},
    "exp as a huge integer": {"exp": 10**400},
    "exp is true": {"exp": True},
    "exp is infinite": {"exp": float("inf")},
    "exp is no number": {"exp": float("nan")},
    "exp is negative": {"exp": -1},
    "exp in a list": {"exp": [9_999_999_999]},
    "no iat": {"iat": None},
    "iat as text": {"iat": "1"},
    "iat is true": {"iat": True},
    "issued in the future": {"iat": seconds(40)},
    "not yet valid": {"nbf": seconds(40)},
    "nbf as text": {"nbf": "0"},
    # F32
    "another audience": {"aud": "other"},
    "no audience": {"aud": None},
    "an empty list of audiences": {"aud": []},
    "the audience in other letters": {"aud": AUDIENCE.upper()},
    "an audience that begins like ours": {"aud": AUDIENCE + "-2"},
    "audiences that are not all text": {"aud": [AUDIENCE, 1], "azp": AUDIENCE},
    "several audiences and no azp": {"aud": [AUDIENCE, "other"]},
    "several audiences, issued to another": {"aud": [AUDIENCE, "other"], "azp": "other"},
    "issued to another": {"azp": "other"},
    "issued to nobody": {"azp": ""},
    "another issuer": {"iss": "https://other.example"},
    "no issuer": {"iss": None},
    "a logout token": {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
    "an access token that says so inside": {"typ": "Bearer"},
    # who?
    "no sub": {"sub": None},
    "an empty sub": {"sub": ""},
    "a sub of 256 characters": {"sub": "s" * 256},
    "sub is a number": {"sub": 42},
    "sub is a list": {"sub": [SUBJECT]},
    "sub with a line end": {"sub": "anna\nroot"},
}


@pytest.mark.parametrize("case", BAD_CLAIMS)
async def test_a_claim_that_is_not_right_is_refused(
    case: str, provider: KeyServer, id_tokens: IdTokens
) -> None:
    claims = provider.claims(**settled(BAD_CLAIMS[case]))
    with pytest.raises(InvalidCredential) as raised:
        await id_tokens.verify(signed_by_hand(claims))
    assert raised.value.detail == InvalidCredential.sentence, "the reason is for the log alone"
    assert raised.value.log


async def test_an_expired_token_is_told_from_a_bad_one(provider: KeyServer, id_tokens: IdTokens) -> None:
    with pytest.raises(ExpiredCredential):
        await id_tokens.verify(KEY.sign(provider.claims(exp=int(time.time()) - 31)))


async def test_whether_it_expired_is_told_only_of_what_is_signed(
    provider: KeyServer, id_tokens: IdTokens
) -> None:
    with pytest.raises(InvalidCredential):
        await id_tokens.verify(STRANGER.sign(provider.claims(exp=1)))


# --- signatures -----------------------------------------------------------------------------------


def segment(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed_by_hand(claims: dict[str, Any], **header: Any) -> str:
    """Signed by the provider's own key; PyJWT would not write some of these claims."""
    text = f"{segment({'alg': 'ES256', 'kid': KEY.kid, **header})}.{segment(claims)}"
    signature = jwt.get_algorithm_by_name("ES256").sign(text.encode(), KEY.private_key)
    return f"{text}.{segment(signature)}"


def unsigned(claims: dict[str, Any], algorithm: Any) -> str:
    return f"{segment({'alg': algorithm, 'kid': KEY.kid})}.{segment(claims)}."


def with_the_public_key_as_secret(claims: dict[str, Any]) -> str:
    """HS256 with the provider's public RSA key in the place of a secret."""
    secret = RSA_KEY.private_key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    text = f"{segment({'alg': 'HS256', 'typ': 'JWT', 'kid': RSA_KEY.kid})}.{segment(claims)}"
    return f"{text}.{segment(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def tampered(claims: dict[str, Any]) -> str:
    head, _, signature = KEY.sign(claims).split(".")
    return f"{head}.{segment({**claims, 'sub': 'root'})}.{signature}"


FORGED: dict[str, Callable[[dict[str, Any]], str]] = {
    # F29
    "alg none": lambda claims: unsigned(claims, "none"),
    "alg nOnE": lambda claims: unsigned(claims, "nOnE"),
    "alg NONE": lambda claims: unsigned(claims, "NONE"),
    "no alg": lambda claims: unsigned(claims, None),
    "alg is a list": lambda claims: unsigned(claims, ["ES256"]),
    "alg is a number": lambda claims: unsigned(claims, 256),
    "HS256 with the public key": with_the_public_key_as_secret,
    "an unknown alg": lambda claims: signed_by_hand(claims, alg="XS256"),
    "alg in small letters": lambda claims: signed_by_hand(claims, alg="es256"),
    "an alg that no entry allows": lambda claims: signed_by_hand(claims, alg="ES256K"),
    "RS512 with a key for RS256": lambda claims: jwt.encode(
        claims, RSA_KEY.private_key, algorithm="RS512", headers={"kid": "key-2"}
    ),
    "PS256 with a key for RS256": lambda claims: jwt.encode(
        claims, RSA_KEY.private_key, algorithm="PS256", headers={"kid": "key-2"}
    ),
    "RS256 under the name of an EC key": lambda claims: RSA_KEY.sign(claims, kid="key-1"),
    # F30
    "kid is a path": lambda claims: signed_by_hand(claims, kid="../../dev/null"),
    "kid is SQL": lambda claims: signed_by_hand(claims, kid="' OR '1'='1"),
    "kid is an address": lambda claims: signed_by_hand(claims, kid="http://127.0.0.1:1/key"),
    "kid of 1 MB": lambda claims: signed_by_hand(claims, kid="k" * 1_000_000),
    "kid is a number": lambda claims: signed_by_hand(claims, kid=1),
    "kid is a list": lambda claims: signed_by_hand(claims, kid=["key-1"]),
    "kid is null": lambda claims: signed_by_hand(claims, kid=None),
    "kid in capitals": lambda claims: signed_by_hand(claims, kid="KEY-1"),
    "an unknown kid": lambda claims: signed_by_hand(claims, kid="key-9"),
    "jwk in the header": lambda claims: STRANGER.sign(claims, jwk=STRANGER.entry()),
    # F32 and what else may be sent
    "another key": STRANGER.sign,
    "an access token": lambda claims: signed_by_hand(claims, typ="at+jwt"),
    "an access token by its whole type": lambda claims: signed_by_hand(claims, typ="application/at+jwt"),
    "a logout token by its type": lambda claims: signed_by_hand(claims, typ="logout+jwt"),
    "an upload token by its type": lambda claims: signed_by_hand(claims, typ="upload+jwt"),
    "typ is a list": lambda claims: signed_by_hand(claims, typ=["JWT"]),
    "changed claims": tampered,
    "an unknown critical header": lambda claims: signed_by_hand(claims, crit=["x"], x=1),
    "a payload outside of the token": lambda claims: signed_by_hand(claims, b64=False, crit=["b64"]),
    "no signature": lambda claims: KEY.sign(claims).rpartition(".")[0] + ".",
    "half a signature": lambda claims: KEY.sign(claims)[:-40],
    "two segments": lambda claims: KEY.sign(claims).rpartition(".")[0],
    "four segments": lambda claims: KEY.sign(claims) + ".x",
    "nothing": lambda _: "",
    "dots": lambda _: "..",
    "no JSON": lambda _: f"{segment(b'{')}.{segment(b'{')}.{segment(b'x')}",
    "JSON that is no object": lambda _: f"{segment([])}.{segment([])}.{segment(b'x')}",
    "deep JSON": lambda _: f"{segment(b'[' * 3000)}.{segment(b'{}')}.{segment(b'x')}",
    "no ASCII": lambda _: "é.é.é",
    "half a character": lambda _: "\ud800.\ud800.\ud800",
    "too long": lambda claims: KEY.sign({**claims, "x": "x" * MAX_TOKEN_LENGTH}),
}


@pytest.mark.parametrize("case", FORGED)
async def test_what_the_provider_did_not_sign_as_it_stands_is_refused(
    case: str, provider: KeyServer, id_tokens: IdTokens
) -> None:
    token = FORGED[case](provider.claims())
    await id_tokens.verify(KEY.sign(provider.claims()))
    asked_before = dict(provider.asked)
    with pytest.raises(InvalidCredential) as raised:
        await id_tokens.verify(token)
    assert raised.value.detail == InvalidCredential.sentence, "the reason is for the log alone"
    assert token == "" or token not in (raised.value.log or "")
    assert dict(provider.asked) == asked_before, "the provider was asked a moment ago: no storm"


@pytest.mark.parametrize("member", ["jku", "x5u"])
async def test_an_address_in_the_header_is_never_asked(
    member: str, provider: KeyServer, id_tokens: IdTokens
) -> None:
    with serving_keys(STRANGER) as foreign:
        token = STRANGER.sign(provider.claims(), **{member: f"{foreign.issuer}/keys"})
        with pytest.raises(InvalidCredential):
            await id_tokens.verify(token)
        assert not foreign.asked


# --- which key ------------------------------------------------------------------------------------


async def test_without_a_kid_the_only_fitting_key_counts() -> None:
    only, other_kind = new_key("ES256", None), new_key("RS256", None)
    with serving_keys(only, other_kind) as provider:
        id_tokens = make_id_tokens(provider.issuer, AUDIENCE)
        assert (await id_tokens.verify(only.sign(provider.claims()))).subject == SUBJECT
        await id_tokens.aclose()


async def test_without_a_kid_two_fitting_keys_are_one_too_many() -> None:
    with serving_keys(KEY, new_key("ES256", "key-3")) as provider:
        id_tokens = make_id_tokens(provider.issuer, AUDIENCE)
        with pytest.raises(InvalidCredential):
            await id_tokens.verify(jwt.encode(provider.claims(), KEY.private_key, algorithm="ES256"))
        await id_tokens.aclose()


WEAK = SigningKey("key-1", "RS256", rsa.generate_private_key(65537, 1024))
OPAQUE: list[Any] = [
    1,
    None,
    [],
    {},
    {"kty": []},
    {"kty": "EC", "crv": {}},
    {"kty": "RSA", "n": 1, "e": "AQAB"},
]
ENTRIES: dict[str, tuple[SigningKey, list[Any], bool]] = {
    "without alg": (KEY, [KEY.entry(alg=None)], True),
    "for signatures by its operations": (KEY, [KEY.entry(use=None, key_ops=["verify"])], True),
    "beside what is not understood": (KEY, [*OPAQUE, KEY.entry()], True),
    "with its private half, which is not used": (KEY, [KEY.entry(d="AA")], True),
    "for encryption": (KEY, [KEY.entry(use="enc")], False),
    "for signing only": (KEY, [KEY.entry(use=None, key_ops=["sign"])], False),
    "of another curve": (KEY, [KEY.entry(crv="P-384")], False),
    "of no curve": (KEY, [KEY.entry(crv=None)], False),
    "for another algorithm": (KEY, [KEY.entry(alg="ES384")], False),
    "for none": (KEY, [KEY.entry(alg="none")], False),
    "with the name twice": (KEY, [KEY.entry(), STRANGER.entry()], False),
    "a secret one": (KEY, [{"kty": "oct", "k": "AA", "kid": "key-1", "alg": "HS256"}], False),
    "too short": (WEAK, [WEAK.entry()], False),
    "with a number for a name": (KEY, [KEY.entry(kid=1)], False),
}


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("case", ENTRIES)
async def test_a_key_is_what_its_own_entry_says(case: str) -> None:
    key, entries, is_good = ENTRIES[case]
    spare = new_key("EdDSA", "spare")  # so that there is a key set in any case
    with serving_keys(spare) as provider:
        provider.entries += entries
        id_tokens = make_id_tokens(provider.issuer, AUDIENCE)
        token = key.sign(provider.claims())
        if is_good:
            assert (await id_tokens.verify(token)).subject == SUBJECT
        else:
            with pytest.raises(InvalidCredential):
                await id_tokens.verify(token)
        await id_tokens.aclose()


# --- who is to verify -----------------------------------------------------------------------------


async def test_the_issuer_that_a_token_names_only_tells_who_has_to_verify_it(
    provider: KeyServer, id_tokens: IdTokens
) -> None:
    assert id_tokens.claims_to_be_from(KEY.sign(provider.claims()))
    assert id_tokens.claims_to_be_from(STRANGER.sign(provider.claims())), "though it will not verify"
    assert not id_tokens.claims_to_be_from(KEY.sign(provider.claims(iss="https://other.example")))
    for junk in ("", "..", "x", "é.é.é", "a" * 100_000, unsigned(provider.claims(), "none") + "!"):
        assert not id_tokens.claims_to_be_from(junk)


def settled(changes: dict[str, Any]) -> dict[str, Any]:
    """The table's times, counted from now."""
    return {name: value() if callable(value) else value for name, value in changes.items()}
