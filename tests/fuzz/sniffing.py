"""Name, declared type and content: three lines, the rest of the input is the file's head."""

from __future__ import annotations

from broker.errors import FileContentMismatch, FileTypeRefused, MalformedRequest
from broker.settings import COZE_FILE_TYPES
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
    for types in POLICIES:
        _check(types, name.decode(errors="replace") or "a", content_type, head[:HEAD_BYTES] or b"x")


def _check(types: FileTypes, name: str, content_type: str, head: bytes) -> None:
    try:
        settled, _ = types.settle(name, content_type, head)
    except (FileTypeRefused, FileContentMismatch):
        return
    assert settled.rpartition(".")[0] in (name.rpartition(".")[0], name)
    assert types.settle(settled, "", head) == (settled, "")
