"""The ring of signing keys: what may be in it, and that no rotation refuses a token, on any worker."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker import settings
from broker.auth import ring_file, rotation, signing_keys
from broker.auth.rotation import RotationError
from broker.auth.signing_keys import LOOK_SECONDS, KeyRing, SigningKey, fresh_key, kid_of
from broker.errors import InvalidCredential
from broker.settings import ed25519_keys
from broker.settings.ed25519_keys import KNOWN_KEY, NO_PRIVATE_KEY, NOT_KEYS, REGULAR_KEY, Ed25519Key
from tests.support.broker_process import Broker, run_command
from tests.support.clock import Clock
from tests.support.sandbox_control import SandboxControl
from tests.support.waiting import wait_for
from tests.support.workers import running_workers, worker_pids

TYP = "upload+jwt"


def from_seed(seed: bytes) -> Ed25519Key:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    return Ed25519Key(private.public_key(), private)


def public_half(key: Ed25519Key) -> Ed25519Key:
    return Ed25519Key(key.public)


def text(*keys: Ed25519Key) -> str:
    return ed25519_keys.render(list(keys))


ONE, TWO = fresh_key(), fresh_key()


def edit(file: Path, change: Callable[[list[Ed25519Key]], list[Ed25519Key]] = rotation.added) -> None:
    with ring_file.edited(file, change):
        pass


# --- what a ring may hold -----------------------------------------------------------------------------------

# Seeds of RFC 8032 §7.1, RFC 8410 §10.3 and RFC 9421 B.1.4; the first is the key of RFC 8037, too.
PUBLISHED = (
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
    "f5e5767cf153319517630f226876b86c8160cc583bc013744c6bf255f5cc0ee5",
    "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
    "d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842",
    "9f8362f87a484a954e6e740c5b4c0e84229139a20aa8ab56ff66586f6a7d29c5",
)
X25519 = serialization.load_pem_private_key(
    b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEIHD/WjFDJ2V4w8yYYcYd/wWUvXmQXrdQhwLCoXNHzPVM\n"
    b"-----END PRIVATE KEY-----\n",
    password=None,
)

GOOD = {
    "one": text(ONE),
    "two": text(ONE, TWO),
    "line ends of Windows": text(ONE, TWO).replace("\n", "\r\n"),
    "comments": f"# ours\n\n{text(ONE)}  # the old one\n\n{text(TWO)}# end",
    "one only to verify with": text(ONE, public_half(TWO)),
    "one to verify with first": text(public_half(TWO), ONE),
}
BAD = {
    "nothing": ("", NOT_KEYS),
    "comments alone": ("# keys\n", NOT_KEYS),
    "no PEM": ("secret", NOT_KEYS),
    "words between": (text(ONE) + "secret\n" + text(TWO), NOT_KEYS),
    "half a key": (text(ONE)[:60], NOT_KEYS),
    "a key and a half": (text(ONE) + text(TWO)[:60], NOT_KEYS),
    "a key without its end line": (text(ONE) + text(TWO).replace("-----END", "--"), NOT_KEYS),
    "damaged base64": (text(ONE).replace("MC4C", "MC4D"), NOT_KEYS),
    "another curve": (
        X25519.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
        NOT_KEYS,
    ),
    "nothing to sign with": (text(public_half(ONE)), NO_PRIVATE_KEY),
    "zeros": (text(from_seed(bytes(32))), REGULAR_KEY),
    "one byte again and again": (text(from_seed(b"\x42" * 32)), REGULAR_KEY),
    "a row of numbers": (text(from_seed(bytes(range(32)))), REGULAR_KEY),
    "a text": (text(from_seed(b"correct horse battery staple 123")), REGULAR_KEY),
    "a weak one behind a good one": (text(ONE, from_seed(bytes(32))), REGULAR_KEY),
    "the public half of a known one": (
        text(ONE, public_half(from_seed(bytes.fromhex(PUBLISHED[0])))),
        KNOWN_KEY,
    ),
    "a date that is none": ("# signs since yesterday\n" + text(ONE), NOT_KEYS),
    **{f"published {seed[:8]}": (text(from_seed(bytes.fromhex(seed))), KNOWN_KEY) for seed in PUBLISHED},
}


@pytest.mark.parametrize("case", GOOD)
def test_a_ring_is_read_as_it_is_written(case: str) -> None:
    keys = ed25519_keys.parse(GOOD[case])
    assert keys[0].public_bytes in (ONE.public_bytes, TWO.public_bytes)
    assert [kid_of(key) for key in ed25519_keys.parse(ed25519_keys.render(keys))] == [*map(kid_of, keys)]
    token = KeyRing([SigningKey.of(key) for key in keys]).sign({}, typ=TYP)
    assert jwt.get_unverified_header(token)["kid"] == kid_of(ONE), "the first private key signs"


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("source", ["text", "file"])
def test_what_is_no_safe_ring_is_a_problem_with_a_name(folder: Path, case: str, source: str) -> None:
    written, reason = BAD[case]
    file = folder / "ring.pem"
    file.write_text(written)
    file.chmod(0o600)
    given: dict[str, Any] = (
        {"broker_signing_keys_file": file} if source == "file" else {"broker_signing_keys": written or " "}
    )
    found = settings.problems(given_settings(**given))
    assert found == [f"BROKER_SIGNING_KEYS{'_FILE' if source == 'file' else ''}: {reason}."]


def given_settings(**more: Any) -> settings.Settings:
    good = {"coze_api_base": "https://api.coze.cn", "coze_api_token": "sat_1"}
    return settings.Settings(_env_file=None, **{**good, **more})


def test_keys_come_from_one_place(folder: Path) -> None:
    (folder / "ring.pem").write_text(text(ONE))
    both = given_settings(broker_signing_keys=text(ONE), broker_signing_keys_file=folder / "ring.pem")
    (problem,) = settings.problems(both)
    assert "both set" in problem
    missing = settings.problems(given_settings(broker_signing_keys_file=folder / "none.pem"))
    assert missing == ["BROKER_SIGNING_KEYS_FILE: the file can't be read (No such file or directory)."]
    (folder / "binary.pem").write_bytes(b"\xff\xfe")
    binary = settings.problems(given_settings(broker_signing_keys_file=folder / "binary.pem"))
    assert binary == [f"BROKER_SIGNING_KEYS_FILE: {NOT_KEYS}."]


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o660, True), (0o602, True)]
)
def test_a_ring_that_others_may_read_is_warned_of(folder: Path, mode: int, warned: bool) -> None:
    file = folder / "ring.pem"
    file.write_text(text(ONE))
    file.chmod(mode)
    told = settings.warnings(given_settings(broker_signing_keys_file=file))
    assert any("BROKER_SIGNING_KEYS_FILE" in sentence for sentence in told) == warned


def test_no_key_is_ever_printed() -> None:
    assert ONE.private is not None
    raw = ONE.private.private_bytes_raw()
    shown = repr(ONE) + repr(SigningKey.of(ONE)) + str(rotation.described([ONE]))
    assert raw.hex() not in shown
    assert kid_of(ONE) in shown


# --- a ring in a file ------------------------------------------------------------------------------------


@pytest.fixture
def file(folder: Path) -> Path:
    path = folder / "ring.pem"
    path.write_text(text(ONE))
    return path


def ring_of(file: Path, ticks: Callable[[], float] = time.monotonic) -> KeyRing:
    source = ring_file.RingFile(file)
    return KeyRing([SigningKey.of(key) for key in source.read()], source.changed, ticks)


def kids(ring: KeyRing) -> list[str]:
    return [key["kid"] for key in ring.jwks["keys"]]


def test_a_file_is_looked_at_once_a_second(file: Path) -> None:
    ticks = Clock()
    ring = ring_of(file, ticks)
    edit(file, lambda keys: [TWO, *keys])
    assert kids(ring) == [kid_of(ONE)]
    ticks.now += LOOK_SECONDS
    assert kids(ring) == [kid_of(TWO), kid_of(ONE)]
    assert jwt.get_unverified_header(ring.sign({}, typ=TYP))["kid"] == kid_of(TWO)


def test_a_key_that_is_not_known_is_looked_for_at_once(file: Path) -> None:
    """Another worker may sign with it already."""
    ticks = Clock()
    behind = ring_of(file, ticks)
    edit(file, lambda keys: [TWO, *keys])
    token = ring_of(file).sign({"sub": "x"}, typ=TYP)
    assert behind.claims_of(token, typ=TYP) == {"sub": "x"}


def test_tokens_of_unknown_keys_do_not_make_it_read(file: Path) -> None:
    """A file that has not changed is looked at, which takes two microseconds, and not opened."""
    reads = []

    def reread() -> None:
        reads.append(source.changed())

    source = ring_file.RingFile(file)
    ring = KeyRing([SigningKey.of(key) for key in source.read()], reread)
    opened = file.stat().st_atime_ns
    foreign = KeyRing([SigningKey.of(TWO)]).sign({}, typ=TYP)
    for _ in range(1000):
        with pytest.raises(InvalidCredential):
            ring.claims_of(foreign, typ=TYP)
    assert reads == [None] * 1000
    assert file.stat().st_atime_ns == opened
    with pytest.raises(InvalidCredential):
        ring.claims_of(foreign, typ="another")
    assert len(reads) == 1000, "of another type is refused before"


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGED: dict[str, Callable[[Path], object]] = {
    "half written": write(text(TWO, ONE).encode()[:150]),
    "empty": write(b""),
    "binary": write(b"\xff\xfe\x00"),
    "public keys alone": write(text(public_half(ONE)).encode()),
    "a known key": write(text(from_seed(bytes.fromhex(PUBLISHED[0]))).encode()),
    "gone": Path.unlink,
    "a folder": make_a_folder,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_is_no_ring_changes_nothing_and_is_complained_of_once(
    file: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from broker.observe import logs

    logs.configure("json")
    ring = ring_of(file)
    before = ring.sign({}, typ=TYP)
    DAMAGED[case](file)
    foreign = KeyRing([SigningKey.of(TWO)]).sign({}, typ=TYP)
    for _ in range(3):
        with pytest.raises(InvalidCredential):
            ring.claims_of(foreign, typ=TYP)
    assert ring.claims_of(before, typ=TYP) == {}
    assert kids(ring) == [kid_of(ONE)]
    said = capfd.readouterr().err
    assert said.count("signing keys stay as they were") == 1, said
    assert "PRIVATE KEY" not in said
    if file.is_dir():
        file.rmdir()
    file.write_text(text(TWO, ONE))
    assert ring.claims_of(foreign, typ=TYP) == {}, "it is read again once it is whole"
    assert "signing keys read again" in capfd.readouterr().err


def test_a_ring_is_replaced_whole_and_stays_its_owners(file: Path) -> None:
    file.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(file, 65534, 65534)
    before = file.stat()
    edit(file)
    after = file.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert stat.S_IMODE(after.st_mode) == 0o640, "nobody else may read it; a group may go on"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_a_link_leads_to_is_replaced_and_not_the_link(folder: Path, file: Path) -> None:
    link = folder / "link.pem"
    link.symlink_to(file)
    edit(link)
    assert link.is_symlink()
    assert len(ring_file.RingFile(file).read()) == 2


def test_of_many_who_change_a_ring_at_once_none_is_lost(file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(edit, [file] * 24))
    assert len(ring_file.RingFile(file).read()) == 25


def test_a_change_that_is_given_up_leaves_all_as_it_was(file: Path) -> None:
    before = file.read_bytes(), file.stat()
    with pytest.raises(InterruptedError), ring_file.edited(file, rotation.added):
        raise InterruptedError
    assert (file.read_bytes(), file.stat().st_ino) == (before[0], before[1].st_ino)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# --- the order of things ------------------------------------------------------------------------------------


def test_a_ring_is_rotated_in_steps() -> None:
    ring = rotation.rotated([], None, 1000)
    first = kid_of(ring[0])
    ring = rotation.added(ring)
    second = kid_of(ring[1])
    assert uses(ring) == {first: "signs", second: "verifies"}
    ring = ed25519_keys.parse(ed25519_keys.render(rotation.rotated(ring, second, 2000)))
    assert uses(ring) == {second: "signs", first: "verifies"}
    assert [each["signs_since"] for each in rotation.described(ring)] == [2000, 1000]
    with pytest.raises(RotationError, match="may have signed until 899 seconds ago"):
        rotation.removed(ring, first, 2899, life_seconds=900)
    assert uses(rotation.removed(ring, first, 2900, life_seconds=900)) == {second: "signs"}
    assert uses(rotation.removed(ring, first, 2000, life_seconds=0)) == {second: "signs"}
    assert uses(rotation.retired(ring, first)) == {second: "signs", first: "public"}


def uses(ring: list[Ed25519Key]) -> dict[Any, Any]:
    return {each["kid"]: each["use"] for each in rotation.described(ring)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda ring: rotation.retired(ring, kid_of(ONE)), "the key that signs"),
        (lambda ring: rotation.removed(ring, kid_of(ONE), 0, life_seconds=0), "the key that signs"),
        (lambda ring: rotation.rotated(ring, kid_of(ONE), 0), "signs already"),
        (lambda ring: rotation.rotated(ring, kid_of(TWO), 0), "it can't sign"),
        (lambda ring: rotation.rotated(ring, "none", 0), "There is no key none"),
        (lambda ring: rotation.retired(ring, "none"), "There is no key none"),
    ],
)
def test_what_would_leave_tokens_without_a_key_is_refused(change: Any, reason: str) -> None:
    with pytest.raises(RotationError, match=reason):
        change([ONE, public_half(TWO)])


def test_what_a_retired_key_signed_still_verifies() -> None:
    token = KeyRing([SigningKey.of(ONE)]).sign({"file_id": "7"}, typ="receipt+jwt")
    ring = KeyRing([SigningKey.of(key) for key in rotation.retired([TWO, ONE], kid_of(ONE))])
    assert ring.claims_of(token, typ="receipt+jwt") == {"file_id": "7"}
    assert kids(ring) == [kid_of(TWO), kid_of(ONE)], "it is published as before"


def test_no_name_looks_like_an_option() -> None:
    assert not [key for key in (fresh_key() for _ in range(500)) if kid_of(key).startswith("-")]


# --- the command ------------------------------------------------------------------------------------------


def command(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    given = {"PATH": os.environ["PATH"], "BROKER_DATA_DIR": str(folder / "data"), **environment}
    if "PYTHONPATH" in os.environ:
        given["PYTHONPATH"] = os.environ["PYTHONPATH"]
    done = run_command("signing-keys", *arguments, environment=given, cwd=folder)
    return done.returncode, done.stdout, done.stderr


def test_the_commands_change_the_ring(folder: Path) -> None:
    def told(*arguments: str) -> list[dict[str, Any]]:
        code, out, err = command(folder, *arguments, "--json")
        assert (code, err) == (0, "")
        rows: list[dict[str, Any]] = json.loads(out)
        return rows

    first = told("rotate")[0]["kid"]
    file = folder / "data" / signing_keys.FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    second = told("add")[1]["kid"]
    rows = told("rotate", second)
    assert [(row["kid"], row["use"]) for row in rows] == [(second, "signs"), (first, "verifies")]
    code, out, err = command(folder, "remove", first)
    assert (code, out) == (2, "")
    assert "tokens live for up to 4560. Wait, or remove it with --now" in err  # 900, 3600 for an upload, 60
    assert told("retire", first)[1]["use"] == "public"
    assert [row["kid"] for row in told("remove", first, "--now")] == [second]
    code, out, _ = command(folder, "list")
    assert out.splitlines()[0].split() == ["kid", "use", "began", "to", "sign"]
    assert out.splitlines()[1].split()[:2] == [second, "signs"]


def test_a_change_that_can_not_be_written_down_is_not_made(folder: Path) -> None:
    """And one that is not made is not written down."""
    assert command(folder, "rotate")[0] == 0
    data = folder / "data"
    before = (data / signing_keys.FILE_NAME).read_bytes(), sorted(data.glob("*.pem"))
    with closing(sqlite3.connect(data / "broker.db")) as database:
        assert command(folder, "retire", "none")[0] == 2
        count = "SELECT count(*) FROM audit WHERE action = 'signing_key.rotate'"
        assert database.execute(count).fetchone() == (1,)
        database.execute("CREATE TRIGGER no BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no room'); END")
        database.commit()
        code, out, err = command(folder, "rotate")
    assert (code, out) == (2, "")
    assert "no room" in err
    assert ((data / signing_keys.FILE_NAME).read_bytes(), sorted(data.glob("*.pem"))) == before
    assert not list(data.glob(f".{signing_keys.FILE_NAME}*"))


@pytest.mark.parametrize("arguments", [("list",), ("add",), ("rotate",), ("remove", "x")], ids=" ".join)
def test_keys_in_the_environment_can_only_be_changed_there(folder: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = command(folder, *arguments, BROKER_SIGNING_KEYS=text(ONE))
    assert (code, out) == (2, "")
    assert (
        err
        == "error BROKER_SIGNING_KEYS: the keys are in the environment, so they can only be changed there.\n"
    )


def test_a_file_that_is_no_ring_is_left_alone(folder: Path) -> None:
    (folder / "ring.pem").write_text("junk")
    for arguments in (("list",), ("add",), ("rotate",)):
        code, _, err = command(folder, *arguments, BROKER_SIGNING_KEYS_FILE=str(folder / "ring.pem"))
        assert (code, err) == (2, f"error {folder / 'ring.pem'}: {NOT_KEYS}.\n")
    assert (folder / "ring.pem").read_text() == "junk"
    assert command(folder, "list")[2].endswith("can't be used (No such file or directory).\n")


# --- over two workers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_workers(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    with running_workers(tmp_path_factory.mktemp("workers"), session_sandbox.environment) as broker:
        yield broker


def test_rotating_refuses_no_token_on_any_worker(two_workers: Broker) -> None:
    """Tokens are minted and used all the while, each request on a connection of its own."""
    ended = threading.Event()
    refused: list[str] = []
    kids_seen: set[str] = set()
    used = [0]

    def mint_and_use() -> None:
        while not ended.is_set():
            token = two_workers.mint(size=1, route="proxy")["access_token"]
            kids_seen.add(jwt.get_unverified_header(token)["kid"])
            answer = httpx.post(
                f"{two_workers.url}/proxy/upload",
                files={"file": ("a.csv", b"1")},
                headers=two_workers.auth(token),
                timeout=30,
            )
            used[0] += 1
            if answer.status_code != 200:
                refused.append(answer.text)

    threads = [threading.Thread(target=mint_and_use) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            before = used[0]
            done = two_workers.command("signing-keys", "rotate", "--json")
            assert done.returncode == 0, done.stderr
            signer = json.loads(done.stdout)[0]["kid"]
            wait_for(lambda kid=signer: kid in kids_seen)
            wait_for(lambda count=before: used[0] > count + 20)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert refused == []
    assert len(kids_seen) == 5
    served = {line["pid"] for line in two_workers.log_lines() if line.get("path") == "/proxy/upload"}
    assert served == set(worker_pids(two_workers))


def test_every_worker_publishes_the_new_key(two_workers: Broker) -> None:
    old = jwks(two_workers)
    done = two_workers.command("signing-keys", "rotate", "--json")
    kid = json.loads(done.stdout)[0]["kid"]
    wait_for(lambda: all(jwks(two_workers)[0] == kid for _ in range(10)))
    assert jwks(two_workers)[1:] == old


def jwks(broker: Broker) -> list[str]:
    return [key["kid"] for key in httpx.get(f"{broker.url}/.well-known/jwks.json").json()["keys"]]
