"""Name, declared type and content: three lines, the rest of the input is the file's head."""

from __future__ import annotations

from broker.errors import BadFileName, FileContentMismatch, FileTypeRefused, MalformedRequest
from broker.settings import COZE_FILE_TYPES
from broker.transfer.filenames import MAX_NAME_BYTES, clean, extension_of, with_extension
from broker.transfer.sniffing import HEAD_BYTES, FileTypes, declared_type

TAKEN = frozenset(COZE_FILE_TYPES.split(","))
POLICIES = [FileTypes(taken, how) for taken in (None, TAKEN) for how in ("refuse", "relabel", "ignore")]


def check(data: bytes) -> None:
    """Fails when anything but a refusal comes out, or a file is settled on what would be refused itself."""
    name, declared, head = [*data.split(b"\n", 2), b"", b""][:3]
    try:
        content_type = declared_type(declared.decode("latin-1"))
    except MalformedRequest:
        content_type = ""
    try:
        file_name = clean(name.decode(errors="replace"))
    except BadFileName:
        return
    for types in POLICIES:
        _check(types, file_name, content_type, head[:HEAD_BYTES] or b"x")


def _check(types: FileTypes, name: str, content_type: str, head: bytes) -> None:
    try:
        settled, _ = types.settle(name, content_type, head)
    except (FileTypeRefused, FileContentMismatch):
        return
    assert settled in (name, with_extension(name, extension_of(settled)))
    assert len(settled.encode()) <= MAX_NAME_BYTES
    assert types.settle(settled, "", head) == (settled, "")
