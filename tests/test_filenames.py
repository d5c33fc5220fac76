"""A file's name: what is kept of it, what is refused, and that it can't say more than a name."""

from __future__ import annotations

import email
import unicodedata
from email.message import Message

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.errors import BadFileName
from broker.transfer import filenames
from broker.transfer.multipart import Envelope, options

KEPT = {
    "plain": ("data.csv", "data.csv"),
    "blanks inside": ("my data.csv", "my data.csv"),
    "blanks around": ("  data.csv ", "data.csv"),
    "folders": ("../../etc/x.csv", "x.csv"),
    "folders of Windows": (r"C:\Users\me\x.csv", "x.csv"),
    "mixed folders": (r"a/b\..\x.csv", "x.csv"),
    "quotes": ('a "b" c.csv', 'a "b" c.csv'),
    "semicolons": ('a"; name="b.csv', 'a"; name="b.csv'),
    "percent signs": ("100%41.csv", "100%41.csv"),
    "Chinese": ("中文.csv", "中文.csv"),
    "emoji": ("📊.csv", "📊.csv"),
    "decomposed letters": ("re\u0301sume\u0301.csv", "résumé.csv"),
    "no extension": ("README", "README"),
    "hidden file": (".csv", ".csv"),
    "reserved on Windows": ("CON.csv", "CON.csv"),
}
REFUSED = {
    "empty": "",
    "blanks": "   ",
    "a dot": ".",
    "two dots": "..",
    "dots and blanks": ". . ",
    "a folder only": "folder/",
    "a folder's dots": "a/..",
    "NUL": "a\0.csv",
    "CR": "a\r.csv",
    "LF": "a\n.csv",
    "CR LF at the end": "a.csv\r\n",
    "TAB": "a\t.csv",
    "DEL": "a\x7f.csv",
    "a C1 control": "a\x85.csv",
    "bidi override": "gpj.\u202efdp",
    "bidi isolate": "a\u2066b.csv",
    "half a surrogate pair": "\ud83d.csv",
    "dots only once it is cut": "." * 255 + "a" * 33,
}


@pytest.mark.parametrize(("name", "expected"), KEPT.values(), ids=KEPT)
def test_a_name_keeps_its_characters_and_loses_its_folders(name: str, expected: str) -> None:
    assert filenames.clean(name) == expected


@pytest.mark.parametrize("name", REFUSED.values(), ids=REFUSED)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(BadFileName):
        filenames.clean(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a" * 10_000 + ".csv", "a" * 251 + ".csv"),
        ("中" * 4_000 + ".csv", "中" * 83 + ".csv"),
        ("a" * 300, "a" * 255),
        ("a." + "b" * 300, "a." + "b" * 253),
        ("." + "b" * 300, "." + "b" * 254),
        ("a" * 251 + ".csv", "a" * 251 + ".csv"),
        ("a" * 254 + " b", "a" * 254),
    ],
    ids=[
        "ASCII",
        "three bytes a character",
        "no extension",
        "no real one",
        "nothing before it",
        "fits",
        "a blank where it is cut",
    ],
)
def test_a_long_name_is_cut_to_255_bytes_and_keeps_its_extension(name: str, expected: str) -> None:
    assert filenames.clean(name) == expected


FROM_HEADERS = {
    "filename": ('form-data; name="file"; filename="a.csv"', "a.csv"),
    "without quotes": ("attachment; filename=a.csv", "a.csv"),
    "in capitals": ('attachment; FILENAME="a.csv"', "a.csv"),
    "UTF-8 in it": ('attachment; filename="中文.csv"'.encode().decode("latin-1"), "中文.csv"),
    "escaped as browsers do": ('attachment; filename="a%22b.csv"', 'a"b.csv'),
    "escaped as curl does": (r'attachment; filename="a\"b.csv"', 'a"b.csv'),
    "a percent sign of its own": ('attachment; filename="100%20.csv"', "100%20.csv"),
    "filename*": ("attachment; filename*=UTF-8''%E4%B8%AD%E6%96%87.csv", "中文.csv"),
    "filename* with a language": ("attachment; filename*=utf-8'zh-CN'%E4%B8%AD.csv", "中.csv"),
    "filename* goes first": ("attachment; filename=\"b.csv\"; filename*=UTF-8''a.csv", "a.csv"),
    "filename* goes first wherever it stands": (
        "attachment; filename*=UTF-8''a.csv; filename=b.csv",
        "a.csv",
    ),
    "filename* within quotes is no parameter": (
        "attachment; filename=\"filename*=UTF-8''b.csv\"",
        "filename*=UTF-8''b.csv",
    ),
    "none": ("attachment", None),
}
BAD_HEADERS = {
    "invalid UTF-8": 'attachment; filename="\xff\xfe.csv"',
    "invalid UTF-8 in filename*": "attachment; filename*=UTF-8''%FF.csv",
    "another charset": "attachment; filename*=ISO-8859-1''%E9.csv",
    "filename* without a charset": "attachment; filename*=a.csv",
    "filename* with an empty value": "attachment; filename*=UTF-8''",
    "escaped line end": 'attachment; filename="a%0D%0Ab.csv"',
    "escaped line end at the end": 'attachment; filename="a.csv%0D%0A"',
    "NUL by filename*": "attachment; filename*=UTF-8''a%00.csv",
    "folders only by filename*": "attachment; filename*=UTF-8''..%2F..",
}


@pytest.mark.parametrize(("header", "expected"), FROM_HEADERS.values(), ids=FROM_HEADERS)
def test_a_name_is_read_from_content_disposition(header: str, expected: str | None) -> None:
    """``filename*`` before ``filename`` (RFC 6266 §4.3), whatever their order."""
    assert filenames.from_parameters(options(header)[1]) == expected


@pytest.mark.parametrize("header", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_name_that_cannot_be_read_is_refused(header: str) -> None:
    with pytest.raises(BadFileName):
        filenames.from_parameters(options(header)[1])


def test_quotes_that_are_never_closed_take_no_longer_than_others() -> None:
    """Looking for the end of each quote anew would take hours for this header."""
    assert options('form-data; name="file"; filename="' + '\\"' * 500_000)[0] == b"form-data"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.csv", "text/csv"),
        ("a.PDF", "application/pdf"),
        ("a.heic", "image/heic"),
        ("a", "application/octet-stream"),
        ("a.unheard-of", "application/octet-stream"),
    ],
)
def test_the_content_type_comes_from_the_extension(name: str, expected: str) -> None:
    assert filenames.content_type_of(name) == expected


@given(st.text())
@example("a\u0301" * 200)
@example("ﷺ" * 90)
def test_a_name_that_passes_is_one_line_of_at_most_255_bytes(name: str) -> None:
    try:
        cleaned = filenames.clean(name)
    except BadFileName:
        return
    assert 0 < len(cleaned.encode()) <= 255
    assert not any(unicodedata.category(char) == "Cc" or char in "/\\" for char in cleaned)
    assert cleaned.strip(". ")


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1))
@example('a"; filename="b.csv')
@example("a.csv\\")
@example("a" * 254 + " b")
def test_a_name_that_was_cleaned_stays_as_it_is(name: str) -> None:
    try:
        cleaned = filenames.clean(name)
    except BadFileName:
        return
    assert filenames.clean(cleaned) == cleaned


@given(st.text(min_size=1))
@example('a"\r\nX-Injected: yes\r\n\r\nmore.csv')
@example('a"; name="other')
@example("a%22.csv")
def test_no_name_can_add_a_header_or_a_part(name: str) -> None:
    """Read by Python's own e-mail parser: one part, two headers, the name as it was."""
    try:
        cleaned = filenames.clean(name)
    except BadFileName:
        return
    envelope = Envelope.around(cleaned, filenames.content_type_of(cleaned))
    (part,) = parts_of(envelope, b"content")
    assert part.keys() == ["Content-Disposition", "Content-Type"]
    raw = envelope.head.split(b"\r\n")[1]
    assert raw == b'Content-Disposition: form-data; name="file"; filename="%b"' % (
        cleaned.replace('"', "%22").encode()
    )
    assert raw.count(b'"') == 4


def parts_of(envelope: Envelope, content: bytes) -> list[Message]:
    body = envelope.head + content + envelope.end(0)
    message = email.message_from_bytes(
        b"Content-Type: " + envelope.content_type.encode() + b"\r\n\r\n" + body
    )
    assert not message.defects
    parts = message.get_payload()
    assert isinstance(parts, list)
    return [part for part in parts if isinstance(part, Message)]
