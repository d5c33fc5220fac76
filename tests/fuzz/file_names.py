"""File names: taken as a name, and as the Content-Disposition that holds one."""

from __future__ import annotations

import unicodedata

from broker.errors import BadFileName
from broker.transfer import filenames
from broker.transfer.multipart import Envelope, FormReader, boundary_of, options
from tests.support.passage import LOOKS_ESCAPED

BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check(data: bytes) -> None:
    """Fails when a name is taken that can't be one, or that Coze would read as another."""
    for read in (_as_name, _as_header):
        try:
            name = read(data)
        except BadFileName:
            continue
        if name is not None:
            _check_name(name)


def _as_name(data: bytes) -> str:
    return filenames.clean(data.decode(errors="surrogateescape"))


def _as_header(data: bytes) -> str | None:
    return filenames.from_parameters(options(data.decode("latin-1"))[1])


def _check_name(name: str) -> None:
    assert 0 < len(name.encode()) <= filenames.MAX_NAME_BYTES
    assert not any(unicodedata.category(char) in ("Cc", "Cs") or char in BIDI for char in name)
    assert "/" not in name
    assert "\\" not in name
    assert name.strip(". ")
    assert filenames.clean(name) == name
    if not LOOKS_ESCAPED.search(name):
        _check_envelope(name)


def _check_envelope(name: str) -> None:
    envelope = Envelope.around(name, filenames.content_type_of(name))
    reader = FormReader(boundary_of(envelope.content_type))
    assert reader.feed(envelope.head + b"x" + envelope.end(0)) == [b"x"]
    reader.close()
    assert reader.file is not None
    assert reader.file.file_name == name
