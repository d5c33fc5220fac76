"""A signed request is the one that was signed, from the one who signed it, and comes once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver
from http_message_signatures.algorithms import HMAC_SHA256
from starlette.datastructures import Headers

from broker.auth.body_digests import MAX_REST_BYTES, BodyDigest, check_body
from broker.auth.signatures import Message, SignedRequests, is_signed, signer_of
from broker.errors import InvalidSignature, SignatureReplayed, StoreUnavailable
from broker.signing import SignedAuth, content_digest
from broker.state.claims import DatabaseClaims
from broker.state.database import Database
from broker.uploader import BrokerClient, UploadFailedError
from tests.support import needs
from tests.support.signed_app import Secrets, running_signed_app

KEY_ID = "key_0123456789abcdef"
SECRET = "cub_ss_" + "s" * 46
OLD_SECRET = "cub_ss_" + "o" * 46
BODY = b'{"size": 1234}'
PUBLIC_URL = "https://upload.example.com"
DOCUMENT = Path(__file__).parent.parent / "docs" / "signed-requests.md"
GIVEN = ("@method", "@path", "@query", "content-digest")


def sha256(content: bytes) -> str:
    return content_digest(hashlib.sha256(content).digest())


@pytest.fixture(scope="module")
async def claims(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DatabaseClaims]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('claims') / 'broker.db'}")
    await database.migrate()
    yield DatabaseClaims(database)
    await database.close()


@pytest.fixture
def signatures(claims: DatabaseClaims) -> SignedRequests:
    return SignedRequests(Secrets({KEY_ID: [SECRET, OLD_SECRET]}), claims, PUBLIC_URL)


def signed(
    covered: tuple[str, ...] = GIVEN,
    *,
    method: str = "POST",
    path: str = "/token",
    query: str = "",
    headers: dict[str, str] | None = None,
    secret: str = SECRET,
    label: str = "sig",
    **parameters: Any,
) -> list[tuple[str, str]]:
    """The headers of a request, signed after the RFC by hand; a parameter that is None is left out."""
    sent = {"Content-Length": str(len(BODY)), "Content-Digest": sha256(BODY), **(headers or {})}
    given = {"created": int(time.time()), "keyid": KEY_ID, "nonce": os.urandom(16).hex(), **parameters}
    text = "".join(f";{name}={written(value)}" for name, value in given.items() if value is not None)
    values = {
        **{name.lower(): value for name, value in sent.items()},
        **{"@method": method, "@path": path, "@query": f"?{query}", "@authority": "upload.example.com"},
        "@target-uri": PUBLIC_URL + path + (f"?{query}" if query else ""),
    }
    parts = f"({' '.join(chr(34) + name + chr(34) for name in covered)}){text}"
    lines = [f'"{name}": {values.get(name, "")}' for name in covered]
    base = "\n".join([*lines, f'"@signature-params": {parts}'])
    proof = base64.b64encode(hmac.digest(secret.encode(), base.encode(), "sha256")).decode()
    return [
        *sent.items(),
        ("Signature-Input", f"{label}={parts}"),
        ("Signature", f"{label}=:{proof}:"),
    ]


def written(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def as_headers(fields: list[tuple[str, str]]) -> Headers:
    return Headers(raw=[(name.lower().encode(), value.encode("latin-1")) for name, value in fields])


def replaced(fields: list[tuple[str, str]], name: str, value: str | None) -> list[tuple[str, str]]:
    """The fields with another value for one of them; None leaves it out."""
    rest = [field for field in fields if field[0] != name]
    return rest if value is None else [*rest, (name, value)]


# --- what passes ----------------------------------------------------------------------------------

PASSING: dict[str, dict[str, Any]] = {
    "as the documents say": {},
    "the whole address instead of its parts": {"covered": ("@method", "@target-uri", "content-digest")},
    "and the host": {"covered": (*GIVEN, "@authority")},
    "and other headers": {"covered": (*GIVEN, "x-other"), "headers": {"X-Other": "1"}},
    "in another order": {"covered": GIVEN[::-1]},
    "with alg": {"alg": "hmac-sha256"},
    "with a tag": {"tag": "uploads"},
    "with expires": {"expires": int(time.time()) + 600},
    "25 seconds late": {"created": -25},
    "25 seconds early": {"created": 25},
    "with the secret from before the rotation": {"secret": OLD_SECRET},
    "a nonce of 16 characters": {"nonce": "0123456789abcde!"},
    "a nonce of 128 characters": {"nonce": "n" * 128},
    "two digests of the body": {
        "headers": {"Content-Digest": f"sha-512=:{base64.b64encode(bytes(64)).decode()}:, {sha256(BODY)}"}
    },
}


@pytest.mark.parametrize("case", PASSING)
async def test_what_is_signed_as_documented_passes(case: str, signatures: SignedRequests) -> None:
    fields = signed(**from_now(PASSING[case]))
    found = await signatures.verify("POST", b"/token", b"", as_headers(fields))
    assert found.key_id == KEY_ID
    assert found.body_sha256 == hashlib.sha256(BODY).digest()


async def test_a_request_without_a_body_needs_no_digest(signatures: SignedRequests) -> None:
    fields = signed(GIVEN[:3], method="GET", path="/keys", query="limit=5&after=key_1%2F")
    bare = [field for field in fields if not field[0].startswith("Content-")]
    found = await signatures.verify("GET", b"/keys", b"limit=5&after=key_1%2F", as_headers(bare))
    assert found.body_sha256 is None


async def test_a_proxy_may_take_the_public_url_s_path_away(claims: DatabaseClaims) -> None:
    """The caller signs what it asked for; the broker sees less of it."""
    behind = SignedRequests(Secrets({KEY_ID: [SECRET]}), claims, "https://example.com/broker/")
    for path in ("/broker/token", "/token"):
        assert (await behind.verify("POST", b"/token", b"", as_headers(signed(path=path)))).key_id == KEY_ID
    with pytest.raises(InvalidSignature):
        await behind.verify("POST", b"/token", b"", as_headers(signed(path="/other/token")))


def test_the_example_of_the_rfc_verifies() -> None:
    """RFC 9421, appendix B.2.5."""
    secret = base64.b64decode(
        "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
    )
    fields = [
        ("Host", "example.com"),
        ("Date", "Tue, 20 Apr 2021 02:07:55 GMT"),
        ("Content-Type", "application/json"),
        (
            "Signature-Input",
            'sig-b25=("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"',
        ),
        ("Signature", "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:"),
    ]
    message = Message("POST", "https://example.com/foo?param=Value&Pet=dog", as_headers(fields))
    assert signer_of(message, (secret,)) == secret
    assert signer_of(message, (b"another", secret)) == secret
    assert signer_of(message, (b"another",)) is None
    other_date = Message("POST", message.url, as_headers(replaced(fields, "Date", "now")))
    assert signer_of(other_date, (secret,)) is None


async def test_another_program_s_signature_passes(signatures: SignedRequests) -> None:
    """The library's own signer, which shares no code with how requests are signed in these tests."""
    keys = MappingKeyResolver(public_keys={}, private_keys={KEY_ID: SECRET.encode()})
    request = httpx.Request("POST", f"{PUBLIC_URL}/token?a=b", content=BODY)
    HTTPMessageSigner(signature_algorithm=HMAC_SHA256, key_resolver=keys).sign(
        request,
        key_id=KEY_ID,
        nonce="n" * 22 + os.urandom(4).hex(),
        covered_component_ids=("@method", "@authority", "@path", "@query"),
        body=BODY,
    )
    found = await signatures.verify("POST", b"/token", b"a=b", as_headers(list(request.headers.items())))
    assert found.key_id == KEY_ID


# --- what does not --------------------------------------------------------------------------------

NOT_SIGNED_AS_IT_MUST: dict[str, dict[str, Any]] = {
    "method not covered": {"covered": ("@path", "@query", "content-digest")},
    "path not covered": {"covered": ("@method", "@query", "content-digest")},
    "query not covered": {"covered": ("@method", "@path", "content-digest")},
    "digest not covered": {"covered": ("@method", "@path", "@query")},
    "nothing covered": {"covered": ()},
    "a component twice": {"covered": (*GIVEN, "@path")},
    "a component that does not exist": {"covered": (*GIVEN, "@nothing")},
    "a header that is not there": {"covered": (*GIVEN, "x-other")},
    "a component of another request": {"covered": (*GIVEN, "@status")},
    "31 seconds old": {"created": -31},
    "31 seconds early": {"created": 31},
    "a year old": {"created": -31_536_000},
    "no created": {"created": None},
    "created as text": {"created": "now"},
    "created with a fraction": {"created": 1.5},
    "created beyond all time": {"created": 999_999_999_999_999},
    "expired": {"expires": int(time.time()) - 1},
    "expires as text": {"expires": "never"},
    "no nonce": {"nonce": None},
    "a nonce of 15 characters": {"nonce": "n" * 15},
    "a nonce of 129 characters": {"nonce": "n" * 129},
    "a nonce with blanks": {"nonce": "n" * 16 + " " + "n" * 16},
    "a nonce that is a number": {"nonce": 1_234_567_890_123_456},
    "no keyid": {"keyid": None},
    "another key's id": {"keyid": "key_fedcba9876543210"},
    "an id that is no key's": {"keyid": "1"},
    "an id that is a path": {"keyid": "../../key_0123456789abcdef"},
    "an id that is a key": {"keyid": "cub_sk_" + "k" * 46},
    "another secret": {"secret": "cub_ss_" + "x" * 46},
    "the key itself as the secret": {"secret": KEY_ID},
    "no secret": {"secret": ""},
    "alg is rsa": {"alg": "rsa-v1_5-sha256"},
    "alg is another hmac": {"alg": "hmac-sha512"},
    "alg in capitals": {"alg": "HMAC-SHA256"},
    "alg is none": {"alg": "none"},
    "a parameter that nobody knows": {"scope": "all"},
    "no digest": {"headers": {"Content-Digest": ""}},
    "a digest of another algorithm": {
        "headers": {"Content-Digest": f"sha-512=:{base64.b64encode(bytes(64)).decode()}:"}
    },
    "a digest that is too short": {"headers": {"Content-Digest": "sha-256=:AAAA:"}},
    "a digest as text": {"headers": {"Content-Digest": 'sha-256="AAAA"'}},
    "a digest in capitals": {"headers": {"Content-Digest": sha256(BODY).replace("sha", "SHA")}},
    "a huge digest": {"headers": {"Content-Digest": f"{sha256(BODY)}, x={'1, y=' * 2000}1"}},
    "a huge label": {"label": "s" * 3000},
}


@pytest.mark.parametrize("case", NOT_SIGNED_AS_IT_MUST)
async def test_what_is_not_signed_as_it_must_be_is_refused(case: str, signatures: SignedRequests) -> None:
    await refused(signatures, signed(**from_now(NOT_SIGNED_AS_IT_MUST[case])))


async def refused(signatures: SignedRequests, fields: list[tuple[str, str]], **asked: Any) -> None:
    sent = {"method": "POST", "path": b"/token", "query": b"", **asked}
    with pytest.raises(InvalidSignature) as raised:
        await signatures.verify(**sent, headers=as_headers(fields))
    assert raised.value.detail == InvalidSignature.sentence, "the reason is for the log alone"
    assert raised.value.log
    assert SECRET not in raised.value.log


CHANGED_ON_ITS_WAY: dict[str, dict[str, Any]] = {
    "the method": {"method": "PUT"},
    "the path": {"path": b"/keys"},
    "the path's case": {"path": b"/Token"},
    "a slash more": {"path": b"/token/"},
    "a query": {"query": b"a=1"},
    "bytes that are no address": {"path": b"/token\xff\n"},
}


@pytest.mark.parametrize("case", CHANGED_ON_ITS_WAY)
async def test_what_was_changed_on_its_way_is_refused(case: str, signatures: SignedRequests) -> None:
    await refused(signatures, signed(), **CHANGED_ON_ITS_WAY[case])


MANGLED: dict[str, Callable[[list[tuple[str, str]]], list[tuple[str, str]]]] = {
    "another body's digest": lambda it: replaced(it, "Content-Digest", sha256(b"other")),
    "no Signature": lambda it: replaced(it, "Signature", None),
    "no Signature-Input": lambda it: replaced(it, "Signature-Input", None),
    "two Signature headers": lambda it: [*it, ("Signature", dict(it)["Signature"])],
    "two Signature-Input headers": lambda it: [*it, ("Signature-Input", dict(it)["Signature-Input"])],
    "two signatures": lambda it: [*it[:-2], *both(it, signed(label="other"))],
    "one label, two signatures": lambda it: [*it[:-2], *both(it, it)],
    "another label": lambda it: replaced(it, "Signature", dict(it)["Signature"].replace("sig=", "gis=")),
    "a signature that is text": lambda it: replaced(it, "Signature", 'sig="text"'),
    "an empty signature": lambda it: replaced(it, "Signature", "sig=::"),
    "junk for a signature": lambda it: replaced(it, "Signature", "\xff\x00"),
    "junk for its input": lambda it: replaced(it, "Signature-Input", "sig=((((("),
    "an input that is no list": lambda it: replaced(it, "Signature-Input", 'sig="@method"'),
    "an input that is empty": lambda it: replaced(it, "Signature-Input", ""),
    "an input with numbers for names": lambda it: replaced(it, "Signature-Input", "sig=(1 2 3)"),
    "a huge signature": lambda it: replaced(it, "Signature", f"sig=:{'A' * 60_000}:"),
    "a huge input": lambda it: replaced(it, "Signature-Input", "sig=(" + '"@method" ' * 6000 + ")"),
    "a credential beside it": lambda it: [*it, ("Authorization", "Bearer cub_sk_x")],
}


def both(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Two signatures in one header each."""
    return [(name, f"{dict(one)[name]}, {dict(other)[name]}") for name in ("Signature-Input", "Signature")]


@pytest.mark.parametrize("case", MANGLED)
async def test_headers_that_are_not_one_good_signature_are_refused(
    case: str, signatures: SignedRequests
) -> None:
    fields = MANGLED[case](signed())
    assert is_signed(as_headers(fields))
    await refused(signatures, fields)


def test_a_request_without_signature_headers_is_not_signed() -> None:
    assert not is_signed(Headers({"authorization": "Bearer x", "content-digest": sha256(BODY)}))


# --- once -----------------------------------------------------------------------------------------


async def test_a_nonce_is_good_for_one_request(signatures: SignedRequests) -> None:
    fields = signed(nonce="once-and-no-more-" + os.urandom(4).hex())
    await signatures.verify("POST", b"/token", b"", as_headers(fields))
    with pytest.raises(SignatureReplayed):
        await signatures.verify("POST", b"/token", b"", as_headers(fields))
    nonce = dict(fields)["Signature-Input"].partition('nonce="')[2].partition('"')[0]
    with pytest.raises(SignatureReplayed):  # signed anew, with the same nonce
        await signatures.verify("POST", b"/token", b"", as_headers(signed(nonce=nonce, tag="again")))


async def test_a_wrong_signature_takes_nobody_s_nonce(signatures: SignedRequests) -> None:
    nonce = "mine-" + os.urandom(8).hex()
    await refused(signatures, signed(nonce=nonce, secret="guessed"))
    await signatures.verify("POST", b"/token", b"", as_headers(signed(nonce=nonce)))


async def test_a_nonce_is_one_key_s_own(claims: DatabaseClaims) -> None:
    other = "key_00000000000000ff"
    signatures = SignedRequests(Secrets({KEY_ID: [SECRET], other: [SECRET]}), claims, PUBLIC_URL)
    nonce = "shared-" + os.urandom(8).hex()
    for key_id in (KEY_ID, other):
        fields = signed(nonce=nonce, keyid=key_id)
        assert (await signatures.verify("POST", b"/token", b"", as_headers(fields))).key_id == key_id


async def test_without_the_store_nobody_is_let_in(folder: Path) -> None:
    """It can't be known whether the nonce came before."""
    gone = Database(f"sqlite+aiosqlite:///{folder / 'no' / 'folder' / 'broker.db'}")
    (folder / "no").write_text("a file in the way")
    signatures = SignedRequests(Secrets({KEY_ID: [SECRET]}), DatabaseClaims(gone), PUBLIC_URL)
    with pytest.raises(StoreUnavailable):
        await signatures.verify("POST", b"/token", b"", as_headers(signed()))
    await gone.close()


# --- the body -------------------------------------------------------------------------------------


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize(
    "parts", [[b"whole"], [b"wh", b"ole"], [b"w", b"h", b"o", b"l", b"e"], [b"", b"whole"]]
)
async def test_the_signed_body_passes_piece_by_piece(parts: list[bytes]) -> None:
    body = BodyDigest(pieces(*parts), hashlib.sha256(b"whole").digest())
    assert b"".join([piece async for piece in body]) == b"whole"
    await body.finish()


@pytest.mark.parametrize(
    "parts", [[b"other"], [b"wh", b"OLE"], [b"wh", b"ol"], [b"wh", b"ole", b"!"], [b"whole", b"\n"]]
)
async def test_another_body_never_gets_to_its_end(parts: list[bytes]) -> None:
    """The last piece is kept back, so that whoever takes the body can't finish."""
    body = BodyDigest(pieces(*parts), hashlib.sha256(b"whole").digest())
    assert [await anext(body) for _ in parts[:-1]] == parts[:-1]
    with pytest.raises(InvalidSignature):
        await anext(body)
    with pytest.raises(InvalidSignature):
        await body.finish()


async def test_no_body_is_not_the_signed_body() -> None:
    body = BodyDigest(pieces(), hashlib.sha256(b"whole").digest())
    with pytest.raises(InvalidSignature):
        await anext(body)


async def test_what_stands_behind_a_form_s_end_is_judged_too() -> None:
    """The form's reader stops there; the digest is of the whole body."""
    form, rest = b"--x--\r\n", b"epilogue"
    good = BodyDigest(pieces(form, rest), hashlib.sha256(form + rest).digest())
    assert await anext(good) == form
    await good.finish()
    bad = BodyDigest(pieces(form, rest), hashlib.sha256(form).digest())
    assert await anext(bad) == form
    with pytest.raises(InvalidSignature):
        await bad.finish()


async def test_nobody_waits_for_an_endless_end() -> None:
    rest = [b"x" * 10_000] * (MAX_REST_BYTES // 10_000 + 2)
    body = BodyDigest(pieces(b"form", *rest), hashlib.sha256(b"form" + b"".join(rest)).digest())
    assert await anext(body) == b"form"
    with pytest.raises(InvalidSignature):
        await body.finish()


def test_a_whole_body_is_held_against_its_digest() -> None:
    check_body(BODY, hashlib.sha256(BODY).digest())
    with pytest.raises(InvalidSignature):
        check_body(BODY + b" ", hashlib.sha256(BODY).digest())


# --- real requests, real processes ----------------------------------------------------------------


@pytest.fixture(scope="module")
async def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('signed') / 'broker.db'}"
    database = Database(url)
    await database.migrate()
    await database.close()
    return url


@pytest.fixture(scope="module")
def server(database_url: str) -> Iterator[str]:
    with running_signed_app(database_url, {KEY_ID: [SECRET]}) as address:
        yield address


def test_what_httpx_sends_signed_arrives_signed(server: str) -> None:
    """Bodies of every kind, none at all, and addresses with whatever belongs in them."""
    with httpx.Client(base_url=server, auth=SignedAuth(KEY_ID, SECRET)) as client:
        answers = [
            client.post("/token", json={"size": 1234}),
            client.post("/token", json={"size": 1234}),
            client.get("/keys", params={"after": "a b/ü&=", "limit": "5"}),
            client.get("/a%20b/%C3%BC"),
            client.post("/form", data={"a": "b"}),
            client.post("/form", files={"file": ("a.csv", b"1")}),
            client.post("/pieces", content=iter([b"in ", b"pieces"])),
            client.post("/empty"),
        ]
    assert [answer.json().get("log") for answer in answers] == [None] * len(answers)
    assert {answer.json()["key_id"] for answer in answers} == {KEY_ID}


async def test_an_asynchronous_client_signs_too(server: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"in "
        yield b"pieces"

    async with httpx.AsyncClient(base_url=server, auth=SignedAuth(KEY_ID, SECRET)) as client:
        answers = [
            await client.post("/token", json={"size": 1234}),
            await client.post("/pieces", content=body()),
            await client.post("/form", files={"file": ("a.csv", b"1")}),
            await client.get("/keys"),
        ]
    assert [answer.json().get("log") for answer in answers] == [None] * len(answers)
    assert answers[1].json()["bytes"] == len(b"in pieces")


def test_the_secret_never_leaves(server: str) -> None:
    request = httpx.Request("POST", f"{server}/token", content=BODY)
    next(SignedAuth(KEY_ID, SECRET).auth_flow(request))
    assert SECRET not in str(request.headers.raw)
    assert SECRET not in repr(SignedAuth(KEY_ID, SECRET))


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_a_streamed_body_that_was_changed_is_refused_at_its_end(server: str, size: int) -> None:
    content = bytes(size)
    request = httpx.Request("POST", f"{server}/upload", content=content)
    next(SignedAuth(KEY_ID, SECRET).auth_flow(request))
    with httpx.Client() as client:
        changed = client.post(f"{server}/upload", content=content[:-1] + b"x", headers=request.headers)
        assert changed.json()["code"] == "invalid_signature"
        replayed = client.post(f"{server}/upload", content=content, headers=request.headers)
        assert replayed.json()["code"] == "signature_replayed"


def test_a_request_that_comes_to_two_processes_at_once_passes_once(database_url: str, server: str) -> None:
    with running_signed_app(database_url, {KEY_ID: [SECRET]}) as other, ThreadPoolExecutor(8) as pool:
        for _ in range(25):
            request = httpx.Request("POST", f"{server}/token", content=BODY)
            next(SignedAuth(KEY_ID, SECRET).auth_flow(request))

            def send(address: str, headers: httpx.Headers = request.headers) -> str:
                answer = httpx.post(f"{address}/token", content=BODY, headers=headers)
                return str(answer.json().get("code"))

            codes = Counter(pool.map(send, [server, other] * 4))
            assert codes == {"None": 1, "signature_replayed": 7}


@pytest.mark.parametrize("name", ["file.bin", "标题 (1).bin"])
def test_the_uploader_signs_what_it_sends(server: str, folder: Path, name: str) -> None:
    """The file's digest is known beforehand, though the file is sent in pieces."""
    path = folder / name
    path.write_bytes(os.urandom(1_000_000))
    client = BrokerClient(server, signer=SignedAuth(KEY_ID, SECRET))
    with pytest.raises(UploadFailedError, match="without a file_id"):  # this server has none to give
        client.upload(path)
    with pytest.raises(UploadFailedError, match="signature"):
        BrokerClient(server, signer=SignedAuth(KEY_ID, OLD_SECRET)).upload(path)


def test_the_documented_example_works(server: str) -> None:
    """With curl and openssl alone."""
    needs.executable("curl")
    needs.executable("openssl")
    found = re.search(r"```sh\n(.+?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    environment = {**os.environ, "KEY_ID": KEY_ID, "SIGNING_SECRET": SECRET, "BROKER_URL": server}
    done = subprocess.run(
        ["sh", "-euc", found[1]], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    assert f'"key_id":"{KEY_ID}"' in done.stdout


# --- an unknown key -------------------------------------------------------------------------------


async def test_an_unknown_key_is_answered_like_a_wrong_signature(signatures: SignedRequests) -> None:
    """By what is said, and by how long it takes: one median is not twice the other."""

    async def tried(**wrong: Any) -> tuple[str, float]:
        fields = as_headers(signed(**wrong))
        began = time.perf_counter()
        with pytest.raises(InvalidSignature) as raised:
            await signatures.verify("POST", b"/token", b"", fields)
        return f"{raised.value.detail} {raised.value.log}", time.perf_counter() - began

    pairs = [(await tried(keyid="key_fedcba9876543210"), await tried(secret="wrong")) for _ in range(200)]
    assert len({said for pair in pairs for said, _ in pair}) == 1
    unknown, wrong = (sorted(seconds for _, seconds in each)[100] for each in zip(*pairs, strict=True))
    assert 0.5 < unknown / wrong < 2


def from_now(given: dict[str, Any]) -> dict[str, Any]:
    """The table's ``created`` is counted from now."""
    created = given.get("created")
    if type(created) is int and abs(created) < 10**9:
        return {**given, "created": int(time.time()) + created}
    return given
