"""Forms: however a body is cut, the same file or the same refusal; and the form that goes to Coze."""

from __future__ import annotations

import asyncio
import hashlib
import re
import unicodedata
from collections.abc import AsyncIterator, Iterable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from python_multipart.multipart import MultipartParser
from starlette.datastructures import Headers

from broker.errors import (
    BadFileName,
    EmptyFile,
    MalformedMultipart,
    MissingFile,
    Refusal,
    SeveralFiles,
    TooLarge,
)
from broker.transfer import multipart
from broker.transfer.incoming import IncomingFile, open_file
from broker.transfer.multipart import Envelope, FormReader
from broker.transfer.outgoing import OutgoingBody
from broker.transfer.pace import Pace
from tests.support.passage import FOREVER, Outcome, Sent, passed
from tests.support.raw_http import BOUNDARY, FORM_TYPE, form, part

DELIMITER = b"\r\n--" + BOUNDARY.encode()
NEAR = (
    b"\r",
    b"\n",
    b"\r\n",
    b"-",
    b"--",
    DELIMITER[:-1],
    DELIMITER[2:],
    DELIMITER[:5],
    BOUNDARY.encode(),
    b"x",
)
HEAD_BYTES = len(part(b"")) - len(b"\r\n")
CONTENTS = {
    "one byte": b"x",
    "a CR first": b"\rx",
    "a line end first": b"\r\nx",
    "line ends only": b"\r\n\r\n",
    "a boundary but for its last byte": DELIMITER[:-1],
    "a boundary without its line end": DELIMITER[2:] + b"--",
    "boundaries that break off": DELIMITER[:-1] + DELIMITER[:-1] + b"\r" + DELIMITER[:9],
    "a boundary that goes on": DELIMITER + b"x" + DELIMITER + b"-x" + DELIMITER + b"\rx",
}
SOUND = {
    **{name: form(part(content)) for name, content in CONTENTS.items()},
    "without the last line end": form(part(b"a,b"), end=b""),
    "a field before": form(part(b"v", "purpose", None), part(b"a,b")),
    "a field after": form(part(b"a,b"), part(b"v", "purpose", None)),
    "line ends before the first boundary": b"\r\n\r\n" + form(part(b"a,b")),
    "an epilogue": form(part(b"a,b"), end=b"\r\nepilogue"),
}
BROKEN: dict[str, tuple[bytes, type[Refusal]]] = {
    "nothing": (b"", MalformedMultipart),
    "no form": (b"a,b\r\n", MalformedMultipart),
    "a preamble after a line end": (b"\r\njunk" + form(part(b"a,b")), MalformedMultipart),
    "another boundary": (form(part(b"a,b")).replace(BOUNDARY.encode(), b"another"), MalformedMultipart),
    "no end": (part(b"a,b"), MalformedMultipart),
    "an end that breaks off": (part(b"a,b") + DELIMITER + b"-", MalformedMultipart),
    "no part": (form(), MissingFile),
    "no file": (form(part(b"v", "file", None)), MissingFile),
    "no name": (form(part(b"a,b", "file", b"")), MissingFile),
    "another field": (form(part(b"a,b", "upload")), MissingFile),
    "two files": (form(part(b"a,b"), part(b"c,d")), SeveralFiles),
    "a bad name": (form(part(b"a,b", "file", b"a\0b.csv")), BadFileName),
    "a part without a disposition": (form(b"--%b\r\nX: y\r\n\r\nv" % BOUNDARY.encode()), MalformedMultipart),
    "a header without a colon": (form(part(b"a,b", "file", b"a.csv", b"nonsense")), MalformedMultipart),
    "too many headers": (form(part(b"a,b", "file", b"a.csv", *[b"X: y"] * 8)), MalformedMultipart),
    "a header too long": (form(part(b"a,b", "file", b"a" * 16_384)), MalformedMultipart),
    "too many parts": (form(*[part(b"v", "v", None)] * 33), MalformedMultipart),
    "too large a field": (form(part(b"v" * 66_000, "v", None), part(b"a,b")), MalformedMultipart),
}


def read(pieces: Iterable[bytes]) -> tuple[bytes, str, int | None] | type[Refusal]:
    """What a reader makes of a body in these pieces."""
    reader, found = FormReader(BOUNDARY.encode()), b""
    try:
        for piece in pieces:
            found += b"".join(reader.feed(piece))
        reader.close()
    except Refusal as refusal:
        return type(refusal)
    assert reader.file is not None
    return found, reader.file.file_name, reader.head_bytes


def cut(body: bytes, places: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for place in sorted(places):
        yield body[start:place]
        start = place
    yield body[start:]


@pytest.mark.parametrize("body", SOUND.values(), ids=SOUND)
def test_a_sound_form_reads_the_same_wherever_it_is_cut(body: bytes) -> None:
    whole = read([body])
    assert isinstance(whole, tuple), whole
    content, _, head_bytes = whole
    assert head_bytes is not None
    assert body[head_bytes:].startswith(content)
    assert all(read(cut(body, [place])) == whole for place in range(len(body)))
    assert read(body[i : i + 1] for i in range(len(body))) == whole


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_file_may_hold_what_looks_like_a_boundary(content: bytes) -> None:
    whole = read([form(part(content))])
    assert whole == (content, "data.csv", HEAD_BYTES)


@pytest.mark.parametrize(("body", "refusal"), BROKEN.values(), ids=BROKEN)
def test_a_broken_form_is_refused_the_same_way_wherever_it_is_cut(
    body: bytes, refusal: type[Refusal]
) -> None:
    assert read([body]) is refusal
    places = range(len(body)) if len(body) < 1000 else range(0, len(body), 997)
    assert all(read(cut(body, [place])) is refusal for place in places)
    assert read(body[i : i + 1] for i in range(len(body))) is refusal


@given(
    st.lists(st.sampled_from(NEAR) | st.binary(max_size=20), min_size=1).map(b"".join).filter(bool),
    st.sets(st.integers(0, 400), max_size=12),
    st.sampled_from([b"", b"\r\n", b"\r\nepilogue"]),
)
@example(b"\r\n", {HEAD_BYTES + 1}, b"\r\n")
def test_any_content_survives_any_cutting(content: bytes, places: set[int], end: bytes) -> None:
    if DELIMITER in b"\r\n" + content:
        return  # a client chooses a boundary that its file does not hold
    body = form(part(content), end=end)
    places = {min(place, len(body)) for place in places}
    assert read(cut(body, places)) == (content, "data.csv", HEAD_BYTES)


@given(
    st.lists(st.sampled_from([*NEAR, DELIMITER, part(b"x"), form(part(b"x"))]) | st.binary(max_size=8)).map(
        b"".join
    ),
    st.sets(st.integers(0, 400), max_size=8),
)
@settings(max_examples=300)
def test_any_nonsense_gets_the_same_verdict_however_it_is_cut(body: bytes, places: set[int]) -> None:
    assert read(cut(body, {min(place, len(body)) for place in places})) == read([body])


# --- the form that goes to Coze -----------------------------------------------------------------


@given(st.lists(st.sampled_from(NEAR) | st.binary(max_size=40)).map(b"".join), st.integers(0, 200))
def test_the_outgoing_form_holds_the_file_and_nothing_else(content: bytes, padding: int) -> None:
    envelope = Envelope.around('中文 "1".csv', "text/csv")
    data: list[bytes] = []
    headers: list[bytes] = []
    ended: list[bool] = []
    parser = MultipartParser(
        multipart.boundary_of(envelope.content_type),
        {
            "on_part_data": lambda chunk, start, end: data.append(chunk[start:end]),
            "on_header_value": lambda chunk, start, end: headers.append(chunk[start:end]),
            "on_end": lambda: ended.append(True),
        },
    )
    body = envelope.head + content + envelope.end(padding)
    parser.write(body)
    assert (b"".join(data), ended) == (content, [True])
    assert headers == ['form-data; name="file"; filename="中文 %221%22.csv"'.encode(), b"text/csv"]
    assert len(body) == len(envelope.head) + len(content) + len(envelope.closing) + padding


def test_each_outgoing_form_has_a_boundary_of_its_own() -> None:
    assert Envelope.around("a.csv", "text/csv").closing != Envelope.around("a.csv", "text/csv").closing


LIMIT = 5000
"""A file's, in the tests below: more than its head, so that some of it is still to come when it is opened."""


async def outgoing(
    pieces: Iterable[bytes], **headers: str
) -> tuple[IncomingFile, OutgoingBody, int | None, bytes]:
    """What goes to Coze for a body that comes in these pieces; the length is what was promised first."""

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    asked = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    file = await open_file(asked, body(), max_bytes=LIMIT)
    outgoing = OutgoingBody(file, Envelope.around("a.csv", "text/csv"), Pace(FOREVER), max_bytes=LIMIT)
    promised = outgoing.content_length
    return file, outgoing, promised, b"".join([piece async for piece in outgoing])


@pytest.mark.parametrize("size", [1, 2, 4095, 4096, 4097, LIMIT - 1, LIMIT])
@pytest.mark.parametrize(
    "body",
    [
        lambda content: form(part(content)),
        lambda content: form(part(content), end=b""),
        lambda content: form(part(content), part(b"v" * 5000, "purpose", None)),
        lambda content: form(part(b"v" * 5000, "purpose", None), part(content)),
        lambda content: form(part(content), end=b"\r\nepilogue" * 100),
    ],
    ids=["final CR LF", "no final CR LF", "field after", "field before", "epilogue"],
)
@pytest.mark.parametrize("step", [7, 1000, 100_000])
def test_the_promised_length_is_kept_to_the_byte(body: object, size: int, step: int) -> None:
    """Whatever follows the file in a form is filled up upstream; and a file of just the limit passes."""
    content = (b"\r\n-" * LIMIT)[:size]
    whole = body(content)  # type: ignore[operator]
    pieces = [whole[i : i + step] for i in range(0, len(whole), step)]
    file, sent, promised, out = asyncio.run(
        outgoing(pieces, content_type=FORM_TYPE, content_length=str(len(whole)))
    )
    assert promised == len(out)
    assert (file.file_name, sent.file_bytes, sent.sent) == ("data.csv", size, "all")
    assert content in out


def test_a_bare_body_s_length_is_its_own() -> None:
    pieces = [b"x" * 4095, b"ab", b"c"]
    file, _, promised, out = asyncio.run(outgoing(pieces, content_type="text/csv", content_length="4098"))
    assert promised == len(out)
    assert file.head == b"x" * 4095 + b"a"


@pytest.mark.parametrize(
    ("content_type", "pieces"),
    [
        ("text/csv", [b"x" * 4096, b"c"]),
        (FORM_TYPE, list(cut(form(part(b"x" * 4097)), [HEAD_BYTES + 4096]))),
    ],
    ids=["bare", "form"],
)
def test_no_length_is_promised_where_none_is_known(content_type: str, pieces: list[bytes]) -> None:
    _, sent, promised, _ = asyncio.run(outgoing(pieces, content_type=content_type))
    assert (promised, sent.file_bytes) == (None, 4097)


def test_a_small_form_without_a_length_has_a_known_one_once_it_was_read() -> None:
    _, _, promised, out = asyncio.run(outgoing([form(part(b"abc"))], content_type=FORM_TYPE))
    assert promised == len(out)


@pytest.mark.parametrize(
    ("headers", "pieces", "refusal"),
    [
        ({"content_type": FORM_TYPE}, [form(part(b"x" * (LIMIT + 1)))], TooLarge),
        ({"content_type": FORM_TYPE}, cut(form(part(b"x" * (LIMIT + 1))), [4500]), TooLarge),
        ({"content_type": FORM_TYPE, "content_length": "71000"}, [], TooLarge),
        ({"content_type": "text/csv", "content_length": "5001"}, [], TooLarge),
        ({"content_type": FORM_TYPE}, [form(part(b""))], EmptyFile),
        ({"content_type": FORM_TYPE}, [part(b"x")], MalformedMultipart),
        (
            {"content_type": FORM_TYPE, "content_length": "4500"},
            cut(form(part(b"x" * 4900)), [4400]),
            MalformedMultipart,
        ),
        ({"content_type": FORM_TYPE, "content_length": "66500"}, [form(part(b"x"))], MalformedMultipart),
        (
            {"content_type": FORM_TYPE, "content_length": "66500"},
            cut(form(part(b"x")), [HEAD_BYTES + 1]),
            MalformedMultipart,
        ),
    ],
    ids=[
        "whole",
        "cut",
        "length of a form",
        "length of a bare body",
        "empty",
        "no end",
        "longer than it said",
        "much after it",
        "much after it, cut",
    ],
)
def test_what_may_not_reach_coze_is_stopped(
    headers: dict[str, str], pieces: Iterable[bytes], refusal: type[Refusal]
) -> None:
    with pytest.raises(refusal):
        asyncio.run(outgoing(pieces, **headers))


# --- the whole way, from the request to the form that goes to Coze --------------------------------

NAMED = {"Content-Disposition": "attachment; filename*=UTF-8''%E4%B8%AD.csv"}
IN_FORM = {"Content-Type": FORM_TYPE}
WAYS: dict[str, tuple[dict[str, str], bytes, type]] = {
    "a bare file": (NAMED | {"Content-Type": "text/csv"}, b"a,b\r\n" * 20, Sent),
    "a bare file that looks like a form": (NAMED | {"Content-Type": "text/csv"}, form(part(b"a,b")), Sent),
    "a bare file named by its type": ({"Content-Type": "application/pdf"}, b"%PDF-1.7", Sent),
    "a bare file that nothing is told of": ({}, b"a,b", BadFileName),
    "a bare file without a byte": (NAMED, b"", EmptyFile),
    "a form without a boundary": ({"Content-Type": "multipart/form-data"}, form(), MalformedMultipart),
    **{name: (IN_FORM, body, Sent) for name, body in SOUND.items()},
    **{
        f"broken: {name}": (IN_FORM, body, refusal)
        for name, (body, refusal) in BROKEN.items()
        if len(body) < 1000
    },
}


def on_every_way(pieces: list[list[bytes]], headers: dict[str, str]) -> set[Outcome]:
    """What becomes of one body in these cuttings, with its length told beforehand and without."""

    async def outcomes() -> set[Outcome]:
        size = sum(map(len, pieces[0]))
        told = headers | {"Content-Length": str(size)}
        return {await passed(each, either) for each in pieces for either in (headers, told)}

    return asyncio.run(outcomes())


@pytest.mark.parametrize(("headers", "body", "expected"), WAYS.values(), ids=WAYS)
def test_a_body_has_one_outcome_wherever_it_is_cut(
    headers: dict[str, str], body: bytes, expected: type
) -> None:
    """One file of one name and digest, of the length that was promised; or one refusal."""
    cuttings = [list(cut(body, [place])) for place in range(len(body))]
    each_byte = [body[i : i + 1] for i in range(len(body))]
    (outcome,) = on_every_way([[body], each_byte, *cuttings], headers)
    assert expected in (outcome, type(outcome))


contents = (
    st.lists(st.sampled_from(NEAR) | st.binary(max_size=40), min_size=1)
    .map(b"".join)
    .filter(lambda content: content and DELIMITER not in b"\r\n" + content)
)
fields = st.lists(contents.map(lambda content: part(content, "purpose", None)), max_size=3)
file_names = st.text(
    st.characters(categories=["L", "Nd", "Zs"], include_characters='".;=%'), max_size=20
).map(lambda name: f"a{name}.csv")


@given(
    content=contents,
    before=fields,
    after=fields,
    preamble=st.sampled_from([b"", b"\r\n", b"\n\n", b"\r\n\r\n"]),
    end=st.sampled_from([b"", b"\r", b"\r\n", b"\r\nepilogue", b"\r\n" + form(part(b"c,d"))]),
    places=st.sets(st.integers(0, 1000), max_size=12),
)
@settings(max_examples=200)
def test_any_form_brings_its_file_whole_however_it_is_cut(
    *, content: bytes, before: list[bytes], after: list[bytes], preamble: bytes, end: bytes, places: set[int]
) -> None:
    """Fields before and after the file, whatever looks like a boundary, and what follows the form."""
    body = preamble + form(
        *before, part(content, "file", b"a.csv", b"Content-Type: text/csv"), *after, end=end
    )
    pieces = list(cut(body, {min(place, len(body)) for place in places}))
    expected = Sent("a.csv", "text/csv", content, hashlib.sha256(content).hexdigest())
    assert on_every_way([[body], pieces], IN_FORM) == {expected}


@given(name=file_names, places=st.sets(st.integers(0, 300), max_size=6))
@example(name='a"; name="b.csv', places={60})
def test_a_name_arrives_as_it_is_however_it_is_cut(name: str, places: set[int]) -> None:
    body = form(part(b"a,b", "file", name.replace('"', "%22").encode()))
    pieces = list(cut(body, {min(place, len(body)) for place in places}))
    (outcome,) = on_every_way([[body], pieces], IN_FORM)
    assert isinstance(outcome, Sent), outcome
    assert outcome.file_name == re.sub("%(22|0D|0A)", '"', unicodedata.normalize("NFC", name))


@given(content=contents, room=st.integers(-3, 3), places=st.sets(st.integers(0, 400), max_size=6))
def test_a_file_over_the_limit_never_passes_however_it_is_cut(
    content: bytes, room: int, places: set[int]
) -> None:
    body, max_bytes = form(part(content)), max(len(content) + room, 1)
    pieces = list(cut(body, {min(place, len(body)) for place in places}))
    outcomes = {asyncio.run(passed(each, IN_FORM, max_bytes=max_bytes)) for each in ([body], pieces)}
    assert (outcomes == {TooLarge}) == (len(content) > max_bytes), outcomes


async def test_a_small_body_in_tiny_pieces_costs_no_more_than_its_bytes() -> None:
    """What was read is counted, not summed up again for every piece."""
    measured = 0

    class Piece(bytes):
        def __len__(self) -> int:
            nonlocal measured
            measured += 1
            return super().__len__()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(20_000):
            yield Piece(b"x")

    asked = Headers({"content-type": "text/csv"})
    file = await open_file(asked, body(), max_bytes=1_000_000)
    await file.keep(65_536)
    assert len(file.kept) == 20_000
    assert measured < 10 * 20_000
