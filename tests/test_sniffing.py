"""Name, declared type and content of a file: what agrees goes on, what can't agree does not."""

from __future__ import annotations

import hashlib
import itertools
import mimetypes
import sqlite3
from collections.abc import Iterator

import httpx
import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.errors import (
    FileContentMismatch,
    FileTypeRefused,
    MalformedMultipart,
    MalformedRequest,
    TypeNotGranted,
)
from broker.settings import COZE_FILE_TYPES
from broker.transfer import formats
from broker.transfer.filenames import content_type_of
from broker.transfer.sniffing import HEAD_BYTES, FileTypes, declared_type
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.raw_http import FORM_TYPE, form, part
from tests.support.real_files import FAMILIES, FILES
from tests.support.refusals import CLIENT, PROXY, SHAPES, assert_refused
from tests.support.sandbox_control import SandboxControl

TAKEN = frozenset(COZE_FILE_TYPES.split(","))
STRICT = FileTypes(TAKEN)
RELABELLING = FileTypes(TAKEN, "relabel")
HONEST = [
    pytest.param(extension, content[:HEAD_BYTES], id=f"{extension}-{number}")
    for extension, contents in FILES.items()
    for number, content in enumerate(contents)
]
PNG, JPEG, GIF, PDF = FILES["png"][0], FILES["jpg"][0], FILES["gif"][0], FILES["pdf"][0]
HTML = b"<!DOCTYPE html><script>alert(1)</script>"
SVG = b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'
EXE = b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff\0\0" + b"\0" * 44 + b"\x80\0\0\0"


UNCLEAR = (FILES["pdf"][2], FILES["csv"][10], FILES["c"][1])
"""What has a PDF's header further down, or two letters that are a BMP's too."""


def family(extension: str) -> set[str]:
    return next((each for each in FAMILIES if extension in each), {extension})


def settled(name: str, head: bytes, declared: str = "", types: FileTypes = STRICT) -> tuple[str, str]:
    return types.settle(name, declared, head[:HEAD_BYTES])


# --- content ----------------------------------------------------------------------------------------


def test_there_is_a_file_of_every_type_that_is_taken() -> None:
    assert set(FILES) == TAKEN


@pytest.mark.parametrize(("extension", "head"), HONEST)
def test_an_honest_file_goes_on_as_it_is(extension: str, head: bytes) -> None:
    for name in (f"a.{extension}", f"A.B.{extension.upper()}"):
        for types in (STRICT, RELABELLING, FileTypes(), FileTypes(TAKEN, "ignore")):
            assert settled(name, head, "", types) == (name, "")


@pytest.mark.parametrize("pretended", sorted(TAKEN))
def test_a_file_of_another_family_is_refused(pretended: str) -> None:
    """Only of what has no signature of its own may some pass: nothing says what it is."""
    may_be_anything = {"csv", "py", "c", "cpp", "java", "mp3", "aac", "pcd"}
    for extension in TAKEN - family(pretended):
        if {extension, pretended} <= may_be_anything:
            continue
        for head in FILES[extension]:
            if head in UNCLEAR or (head.startswith(b"ID3") and pretended == "flac"):
                continue
            with pytest.raises(FileContentMismatch) as refused:
                settled(f"a.{pretended}", head)
            assert refused.value.detail.startswith(f"The file is called a.{pretended}, but its content is ")


@pytest.mark.parametrize("extension", sorted(TAKEN - {"csv", "py", "c", "cpp", "java"}))
@pytest.mark.parametrize("head", [HTML, SVG, b"\xef\xbb\xbf \n<HTML>", b"#!/bin/sh\n", b"<?php echo 1 ?>"])
def test_markup_and_scripts_do_not_pass_under_another_name(extension: str, head: bytes) -> None:
    with pytest.raises(FileContentMismatch):
        settled(f"a.{extension}", head)


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table a (b)")
        return connection.serialize()


@pytest.mark.parametrize("extension", sorted(TAKEN - {"pcd"}))
@pytest.mark.parametrize(
    "head",
    [EXE, b"\x7fELF\x02\x01\x01\0" + b"\0" * 56, b"\xca\xfe\xba\xbe\0\0\0\x34", b"8BPS\0\x01", database()],
    ids=["Windows program", "Linux program", "Java class", "Photoshop", "SQLite"],
)
def test_what_coze_never_takes_does_not_pass_under_any_name(extension: str, head: bytes) -> None:
    with pytest.raises(FileContentMismatch):
        settled(f"a.{extension}", head)


POLYGLOTS = {
    "a GIF that is JavaScript too": ("a.gif", b"GIF89a=1;alert(1)//"),
    "a PNG with a ZIP archive after it": ("a.png", FILES["png"][1]),
    "a PDF that does not begin with its header": ("a.pdf", b"<script>1</script>" + PDF),
    "a ZIP archive with HTML in it": ("a.zip", b"PK\x03\x04" + b"\0" * 26 + HTML),
    "a JPEG with PHP in its comment": ("a.jpg", b"\xff\xd8\xff\xfe\0\x10<?php echo 1 ?>"),
}


@pytest.mark.parametrize(("name", "head"), POLYGLOTS.values(), ids=POLYGLOTS)
def test_a_file_that_is_two_at_once_is_what_it_begins_as(name: str, head: bytes) -> None:
    """It serves both; the signature says that one of them is what its name says."""
    assert settled(name, head) == (name, "")
    with pytest.raises(FileContentMismatch):
        settled("a.webp", head)


@pytest.mark.parametrize("extension", ["csv", "py", "c", "cpp", "java"])
@pytest.mark.parametrize("head", [b"a,b\0", b"\0", PNG, PDF, b"\xff\xfb\x90\0", "a,b".encode("utf-16-le")])
def test_binary_content_is_no_text(extension: str, head: bytes) -> None:
    with pytest.raises(FileContentMismatch):
        settled(f"a.{extension}", head)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.json", "a.html", "a.svg", "a.dwg", "a.bin", "a", "a."])
def test_where_any_type_is_taken_an_unknown_one_is_not_judged(name: str) -> None:
    assert settled(name, b"words", "", FileTypes()) == (name, "")
    if formats.TEXTS.isdisjoint({name[2:]}):
        assert settled(name, EXE, "", FileTypes()) == (name, "")
    else:
        with pytest.raises(FileContentMismatch):
            settled(name, EXE, "", FileTypes())


@pytest.mark.parametrize("extension", sorted(TAKEN))
def test_a_file_of_one_byte(extension: str) -> None:
    if extension in {"csv", "py", "c", "cpp", "java", "mp3", "aac", "pcd"}:
        assert settled(f"a.{extension}", b"x") == (f"a.{extension}", "")
    else:
        with pytest.raises(FileContentMismatch):
            settled(f"a.{extension}", b"x")


# --- sentences --------------------------------------------------------------------------------------

SENTENCES = {
    "renamed": (
        "photo.jpg",
        PNG,
        "The file is called photo.jpg, but its content is a PNG image. Name it photo.png and send it again.",
    ),
    "renamed document": (
        "a.b.pdf",
        FILES["docx"][0],
        "The file is called a.b.pdf, but its content is a Word document. Name it a.b.docx and send it again.",
    ),
    "phone's picture": (
        "IMG_1.JPG",
        FILES["heic"][0],
        "The file is called IMG_1.JPG, but its content is a HEIC image. "
        "Name it IMG_1.heic and send it again.",
    ),
    "old or with a password": (
        "a.docx",
        FILES["doc"][0],
        "The file is called a.docx, but its content is an older Office document, or one with a password. "
        "Save it as what it is called and send it again.",
    ),
    "a web page": (
        "report.xls",
        HTML,
        "The file is called report.xls, but its content is an HTML page. "
        "Save it as what it is called and send it again.",
    ),
    "words": (
        "a.png",
        "Grüße".encode()[:-1],
        "The file is called a.png, but its content is text. Save it as what it is called and send it again.",
    ),
    "no words": (
        "a.csv",
        b"\0\x01",
        "The file is called a.csv, but its content is not text. "
        "Save it as what it is called and send it again.",
    ),
    "nothing known": (
        "a.png",
        b"\0\x01",
        "The file is called a.png, but its content is of another type. "
        "Save it as what it is called and send it again.",
    ),
    "long name": (
        "标" * 80 + ".png",
        JPEG,
        f"The file is called {'标' * 29}…{'标' * 6}.png, but its content is a JPEG image. "
        f"Name it {'标' * 29}…{'标' * 6}.jpg and send it again.",
    ),
}


@pytest.mark.parametrize(("name", "head", "sentence"), SENTENCES.values(), ids=SENTENCES)
def test_the_sentence_says_what_was_seen_and_what_to_do(name: str, head: bytes, sentence: str) -> None:
    with pytest.raises(FileContentMismatch) as refused:
        settled(name, head)
    assert refused.value.detail == sentence


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("a.txt", "Files of the type .txt are not taken. Send one of these: csv, pdf."),
        ("a." + "x" * 200, f"Files of the type .{'x' * 29}…{'x' * 10} are not taken. "),
        (
            "README",
            "The file's name has no extension, by which its type is told. Send one of these: csv, pdf.",
        ),
        (".pdf", "The file's name has no extension, "),
        ("pdf", "The file's name has no extension, "),
        ("a.pdf.", "The file's name has no extension, "),
    ],
)
def test_a_type_that_is_not_taken_is_named_with_those_that_are(name: str, beginning: str) -> None:
    with pytest.raises(FileTypeRefused) as refused:
        FileTypes(frozenset({"pdf", "csv"}), "ignore").settle(name, "", PDF)
    assert refused.value.detail.startswith(beginning)


# --- relabelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("photo.jpg", PNG, ("photo.png", "image/png")),
        ("photo.png", FILES["webp"][0], ("photo.webp", "image/webp")),
        ("a.b.PDF", FILES["xlsx"][0], ("a.b.xlsx", content_type_of("a.xlsx"))),
        ("a.docx", FILES["webm"][0], ("a.webm", "video/webm")),
        ("a.csv", PDF, ("a.pdf", "application/pdf")),
        ("x" * 251 + ".gif", FILES["webp"][0], ("x" * 250 + ".webp", "image/webp")),
    ],
)
def test_a_file_may_go_on_as_what_it_is(name: str, head: bytes, expected: tuple[str, str]) -> None:
    assert settled(name, head, "image/png", RELABELLING) == expected


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.docx", FILES["doc"][0]),
        ("a.png", FILES["wmv"][0]),
        ("a.png", HTML),
        ("a.png", b"x"),
        ("a.py", EXE),
    ],
)
def test_what_the_content_does_not_tell_is_not_guessed(name: str, head: bytes) -> None:
    with pytest.raises(FileContentMismatch):
        settled(name, head, "", RELABELLING)


def test_a_file_is_not_given_a_name_that_is_not_taken() -> None:
    with pytest.raises(FileContentMismatch):
        settled("a.jpg", PNG, "", FileTypes(frozenset({"jpg"}), "relabel"))
    with pytest.raises(FileTypeRefused):
        settled("a.txt", PNG, "", RELABELLING)


@pytest.mark.parametrize(("extension", "head"), HONEST)
def test_a_name_that_a_content_tells_fits_it(extension: str, head: bytes) -> None:
    found = formats.recognised(head)
    assert found is None or found.extension is None or formats.fits(found.extension, head), extension


# --- declared types ---------------------------------------------------------------------------------

UNKNOWING = ["", "application/octet-stream", "multipart/form-data", "binary/octet-stream", "text/plain"]
AS_REGISTERED = {
    "csv": ["application/vnd.ms-excel", "text/csv", "text/comma-separated-values", "application/csv"],
    "py": ["text/x-python", "text/x-python-script", "application/x-python-code"],
    "c": ["text/x-csrc", "text/x-c"],
    "java": ["text/x-java", "text/x-java-source"],
    "jpg": ["image/jpg", "image/jpeg", "image/pjpeg"],
    "jpg2": ["image/jp2", "image/jpeg"],
    "png": ["image/x-png", "image/apng"],
    "bmp": ["image/x-ms-bmp", "image/x-bmp"],
    "heic": ["image/heic", "image/heif", "image/heic-sequence"],
    "pcd": ["image/x-photo-cd", "text/x-pcd", "model/vnd.pcd"],
    "docx": ["application/msword", "application/zip", "application/wps-writer"],
    "xls": ["application/vnd.ms-excel", "application/kset"],
    "numbers": ["application/vnd.apple.numbers", "application/x-iwork-numbers-sffnumbers", "application/zip"],
    "zip": ["application/x-zip-compressed", "application/x-zip"],
    "rar": ["application/x-rar-compressed", "application/x-compressed", "application/vnd.rar"],
    "7z": ["application/x-compressed", "application/x-7z-compressed"],
    "gz": ["application/x-gzip", "application/gzip", "text/csv", "application/x-tar", "image/svg+xml"],
    "bz2": ["application/x-tar", "application/pdf"],
    "m4a": ["audio/x-m4a", "audio/mp4", "video/mp4"],
    "mp3": ["audio/mp3", "audio/mpeg", "video/mpeg"],
    "ogg": ["audio/ogg", "video/ogg", "application/ogg"],
    "mkv": ["video/x-matroska", "audio/x-matroska"],
    "avi": ["video/avi", "video/x-msvideo", "video/vnd.avi"],
    "3gp": ["audio/3gpp", "video/3gpp"],
    "rmvb": ["audio/x-pn-realaudio", "application/vnd.rn-realmedia-vbr"],
    "midi": ["audio/mid", "audio/midi", "audio/x-midi"],
    "flv": ["video/x-flv", "application/x-flash-video"],
}


@pytest.mark.parametrize("extension", sorted(TAKEN))
def test_what_senders_know_of_a_type_or_do_not_is_taken(extension: str) -> None:
    guessed = mimetypes.guess_type(f"a.{extension}")[0] or ""
    for declared in [guessed, *UNKNOWING, *AS_REGISTERED.get(extension, [])]:
        settled_as = settled(f"a.{extension}", FILES[extension][0], declared)
        assert settled_as == (f"a.{extension}", declared)


CONTRADICTIONS = [
    ("pdf", "image/png"),
    ("png", "image/jpeg"),
    ("png", "text/html"),
    ("jpg", "application/pdf"),
    ("gif", "video/mp4"),
    ("mp4", "image/jpeg"),
    ("mp3", "text/csv"),
    ("docx", "application/pdf"),
    ("zip", "image/gif"),
    ("csv", "image/png"),
    ("csv", "application/pdf"),
    ("py", "audio/mpeg"),
    ("jpg2", "audio/mpeg"),
]


@pytest.mark.parametrize(("extension", "declared"), CONTRADICTIONS)
def test_a_type_that_can_not_be_meant_is_refused(extension: str, declared: str) -> None:
    name, head = f"a.{extension}", FILES[extension][0]
    with pytest.raises(FileContentMismatch) as refused:
        settled(name, head, declared)
    assert refused.value.detail == (
        f"The file is called {name}, and its content agrees, but it was sent as {declared}. "
        "Send it with its own content type, or with none."
    )
    assert settled(name, head, declared, RELABELLING)[0] == name
    assert settled(name, head, declared, RELABELLING)[1] != declared
    assert settled(name, head, declared, FileTypes(TAKEN, "ignore")) == (name, declared)


TYPES = {
    "none": ("", ""),
    "plain": ("image/png", "image/png"),
    "capitals": ("Text/CSV", "text/csv"),
    "parameters": ('text/csv;\tcharset="utf-8"', "text/csv"),
    "blanks around": (" image/png ", "image/png"),
    "long": ("a/" + "b" * 253, "a/" + "b" * 253),
    "of a vendor": ("application/vnd.a+b.c-d_e~f!", "application/vnd.a+b.c-d_e~f!"),
}
MALFORMED_TYPES = {
    "no slash": "image",
    "two slashes": "a/b/c",
    "no subtype": "image/",
    "no type": "/png",
    "TAB in the type": "image/\tpng",
    "blank in the type": "image/ png",
    "LF": "image/png\nX-A: b",
    "CR": "image/png\rX-A: b",
    "CR at the end": "image/png\r",
    "NUL": "image/png\0",
    "overlong": "a/" + "b" * 254,
    "overlong parameters": "a/b; " + "c" * 255,
    "quotes": '"image/png"',
    "not ASCII": "image/pñg",
}


@pytest.mark.parametrize(("value", "expected"), TYPES.values(), ids=TYPES)
def test_a_declared_type_is_read(value: str, expected: str) -> None:
    assert declared_type(value) == expected


@pytest.mark.parametrize("value", MALFORMED_TYPES.values(), ids=MALFORMED_TYPES)
def test_a_declared_type_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(MalformedRequest):
        declared_type(value)


# --- whatever comes ---------------------------------------------------------------------------------

NAMES = st.one_of(
    st.text(min_size=1),
    st.builds("{}.{}".format, st.text(), st.sampled_from(sorted(TAKEN | formats.TEXTS | {"bin"}))),
)
HEADS = st.one_of(
    st.binary(min_size=1, max_size=HEAD_BYTES),
    st.builds(
        lambda head, rest: (head[:40] + rest)[:HEAD_BYTES],
        st.sampled_from(list(itertools.chain(*FILES.values()))),
        st.binary(max_size=200),
    ),
)
POLICIES = [FileTypes(taken, how) for taken in (None, TAKEN) for how in ("refuse", "relabel", "ignore")]


@given(NAMES, st.one_of(st.text(), st.sampled_from(CONTRADICTIONS).map(lambda pair: pair[1])), HEADS)
@example("a.pdf", "", b"%PDF")
@example("a.mp3", "", b"<" * HEAD_BYTES)
@example("a.png", "", (b"PK\x03\x04docProps/" * 400)[:HEAD_BYTES])
@example("a.svg", "", b"<!" * 2048)
def test_anything_is_taken_or_refused(name: str, declared: str, head: bytes) -> None:
    for types in POLICIES:
        try:
            settled_name, _ = types.settle(name, declared, head)
        except (FileTypeRefused, FileContentMismatch):
            continue
        assert types.settle(settled_name, "", head) == (settled_name, "")


@given(st.text())
def test_any_type_is_read_or_refused(value: str) -> None:
    try:
        declared = declared_type(value, MalformedMultipart)
    except MalformedMultipart:
        return
    assert declared.isascii()
    assert declared.isprintable()
    assert declared == "" or declared.count("/") == 1


# --- over HTTP --------------------------------------------------------------------------------------

ORIGIN = {"Origin": PAGE_ORIGIN}


def upload(
    broker: Broker,
    name: str,
    content: bytes,
    path: str = PROXY,
    *,
    key: str | None = None,
    declared: str | None = None,
) -> httpx.Response:
    more = () if declared is None else (b"Content-Type: " + declared.encode(),)
    body = form(part(content, "file", name.encode(), *more))
    headers = broker.auth(key) | ORIGIN | {"Content-Type": FORM_TYPE}
    return CLIENT.post(broker.url + path, content=body, headers=headers)


@pytest.fixture(scope="module")
def relabelling_broker(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    settings = {"BROKER_CONTENT_MISMATCH": "relabel", "BROKER_FILE_TYPES": ".PNG, jpg,csv,"}
    with running_broker(
        tmp_path_factory.mktemp("relabel"), session_sandbox.environment, **settings
    ) as broker:
        yield broker


@pytest.fixture(scope="module")
def lenient_broker(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    settings = {"BROKER_CONTENT_MISMATCH": "ignore", "BROKER_FILE_TYPES": "*"}
    with running_broker(tmp_path_factory.mktemp("ignore"), session_sandbox.environment, **settings) as broker:
        yield broker


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(
    ("name", "content", "declared", "refusal"),
    [
        ("a.jpg", PNG, None, FileContentMismatch),
        ("a.jpg", JPEG[:20] + b"x" * 10_000, "image/png", FileContentMismatch),
        ("a.png", HTML * 10_000, "image/png", FileContentMismatch),
        ("a.csv", b"x" * 4095 + b"\0" + b"x" * 10_000_000, "text/csv", FileContentMismatch),
        ("a.txt", b"words", "text/plain", FileTypeRefused),
        ("a", b"words", None, FileTypeRefused),
        ("a.png", PNG, "image/\tpng", MalformedMultipart),
        ("a.png", PNG, "image", MalformedMultipart),
        ("a.png", PNG, "image/" + "x" * 250, MalformedMultipart),
    ],
    ids=str,
)
def test_what_does_not_agree_never_reaches_coze(
    broker: Broker,
    sandbox: SandboxControl,
    *,
    path: str,
    name: str,
    content: bytes,
    declared: str,
    refusal: type,
) -> None:
    answer = upload(broker, name, content, path, declared=declared)
    assert_refused(broker, answer, refusal, path)
    assert sandbox.events(kind="upload") == []


@pytest.mark.parametrize(
    ("headers", "content", "refusal"),
    [
        ({"Content-Type": "image/png"}, JPEG, FileContentMismatch),
        ({"Content-Type": "image/png; " + "x" * 255}, PNG, MalformedRequest),
        ({"Content-Type": "png", "Content-Disposition": "attachment; filename=a.png"}, PNG, MalformedRequest),
        ({"Content-Type": "text/plain"}, b"words", FileTypeRefused),
    ],
    ids=["content", "long type", "no type", "not taken"],
)
def test_a_bare_file_is_looked_at_too(
    broker: Broker, sandbox: SandboxControl, headers: dict[str, str], content: bytes, refusal: type
) -> None:
    answer = CLIENT.post(broker.url + PROXY, content=content, headers=broker.auth() | ORIGIN | headers)
    assert_refused(broker, answer, refusal)
    assert sandbox.events(kind="upload") == []


def test_nothing_is_lost_by_a_mismatch(broker: Broker, sandbox: SandboxControl) -> None:
    """Neither the token, nor a look at Coze's credential: the right file can follow at once."""
    token = broker.mint(size=len(PNG), route="proxy", origin=PAGE_ORIGIN)["access_token"]
    assert_refused(broker, upload(broker, "photo.jpg", PNG, key=token), FileContentMismatch)
    assert_refused(broker, upload(broker, "photo.exe", PNG, key=token), FileTypeRefused)
    assert sandbox.events() == []
    assert upload(broker, "photo.png", PNG, key=token).status_code == 200


@pytest.mark.parametrize("sizes", [[1], [4095, 1], [1] * 40], ids=["byte first", "one byte short", "bytes"])
def test_the_head_is_waited_for(broker: Broker, sandbox: SandboxControl, sizes: list[int]) -> None:
    """However the body is cut, the same is seen; and what was looked at is sent, once."""
    content = b"x" * 4094 + b"\0" + b"x" * 9000

    def pieces(content: bytes) -> Iterator[bytes]:
        at = 0
        for size in sizes:
            yield content[at : at + size]
            at += size
        yield content[at:]

    headers = broker.auth() | ORIGIN | {"Content-Type": "text/csv"}
    refused = CLIENT.post(broker.url + PROXY, content=pieces(content), headers=headers)
    assert_refused(broker, refused, FileContentMismatch)
    taken = CLIENT.post(broker.url + PROXY, content=pieces(content.replace(b"\0", b"y")), headers=headers)
    stored = sandbox.file(taken.json()["file_id"])
    assert stored["sha256"] == hashlib.sha256(content.replace(b"\0", b"y")).hexdigest()


@pytest.mark.parametrize(("extension", "head"), HONEST)
def test_an_honest_file_reaches_coze(
    broker: Broker, sandbox: SandboxControl, extension: str, head: bytes
) -> None:
    """Whose word is the last one: the sandbox does not know every odd one."""
    answer = upload(broker, f"a.{extension}", head)
    (event,) = sandbox.events(kind="upload")
    assert answer.status_code == (200 if event["outcome"] == "stored" else 415)


@pytest.mark.parametrize("route", ["auto", "proxy"])
@pytest.mark.parametrize("name", ["a.exe", "a", "C:\\files\\a.txt"])
def test_no_token_is_minted_for_what_is_not_taken(
    broker: Broker, sandbox: SandboxControl, name: str, route: str
) -> None:
    asked = {"size": 1, "file_name": name, "route": route}
    answer = CLIENT.post(f"{broker.url}/token", json=asked, headers=broker.auth() | ORIGIN)
    assert_refused(broker, answer, FileTypeRefused)
    assert sandbox.events() == []


def test_a_relabelled_file_is_told_with_its_name(relabelling_broker: Broker, sandbox: SandboxControl) -> None:
    broker = relabelling_broker
    answer = upload(broker, "Foto 1.JPG", PNG).json()
    stored = sandbox.file(answer["file_id"])
    assert (answer["file_name"], stored["file_name"]) == ("Foto 1.png", "Foto 1.png")
    receipt = jwt.decode(answer["receipt"], options={"verify_signature": False})
    assert receipt["file_name"] == "Foto 1.png"
    assert stored["content_type"] == "image/png"
    assert_refused(broker, upload(broker, "a.png", GIF), FileContentMismatch)
    assert_refused(broker, upload(broker, "a.gif", GIF), FileTypeRefused)


def test_a_name_that_a_content_tells_must_be_granted_too(
    relabelling_broker: Broker, sandbox: SandboxControl
) -> None:
    """A token for pictures of one type is not turned into one for others by calling them so."""
    broker = relabelling_broker
    minted = broker.mint(size=1000, route="proxy", content_type="image/jpeg", origin=PAGE_ORIGIN)
    for name, content in (("a.jpg", PNG), ("a.csv", b"a,b\n"), ("a.png", PNG)):
        refused = upload(broker, name, content, key=minted["access_token"], declared="image/jpeg")
        assert_refused(broker, refused, TypeNotGranted)
    assert sandbox.events(kind="upload") == []
    answer = upload(broker, "a.png", JPEG, key=minted["access_token"], declared="image/jpeg")
    assert answer.json()["file_name"] == "a.jpg"


def test_an_operator_may_leave_it_all_to_coze(lenient_broker: Broker, sandbox: SandboxControl) -> None:
    for name, content, refusal in (("a.png", HTML, FileContentMismatch), ("a.exe", EXE, FileTypeRefused)):
        assert_refused(lenient_broker, upload(lenient_broker, name, content), refusal)
        assert sandbox.events(kind="upload")[-1]["file_name"] == name
    assert lenient_broker.mint(size=1, file_name="a.exe")["route"] == "direct"
