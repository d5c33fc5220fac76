"""File names: from whatever a client wrote to what Coze can be told.

A name keeps its characters. Folders before it are dropped, what can't be a name is refused.
"""

from __future__ import annotations

import mimetypes
import re
import unicodedata
from urllib.parse import unquote_to_bytes

from broker.errors import BadFileName

MAX_NAME_BYTES = 255
MAX_EXTENSION_BYTES = 32

# Browsers and httpx write these three as percent signs in a form (WHATWG HTML, "escape a multipart
# form data name"); any other percent sign is the user's own.
_ESCAPED = re.compile(rb"%(22|0D|0A)", re.IGNORECASE)
_FOLDERS = re.compile(r"^.*[/\\]", re.DOTALL)
# Characters that make a name show otherwise than it is (Unicode UAX #9: embeddings, overrides, isolates).
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_EXTRA_TYPES = {".heic": "image/heic", ".heif": "image/heif", ".webp": "image/webp", ".m4a": "audio/mp4"}


def from_parameters(parameters: dict[bytes, bytes]) -> str | None:
    """The name in a Content-Disposition, or None when it has none.

    ``filename*`` comes before ``filename``, as RFC 6266 §4.3 has it. Raises :class:`BadFileName`.
    """
    if b"filename*" in parameters:
        return clean(_decode_extended(parameters[b"filename*"]))
    if b"filename" in parameters:
        raw = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), parameters[b"filename"])
        return clean(_decode(raw))
    return None


def clean(name: str) -> str:
    """The name without its folders, cut to 255 bytes with its extension kept.

    Raises :class:`BadFileName` for control characters, hidden reordering, or a name of dots only.
    """
    base = _FOLDERS.sub("", unicodedata.normalize("NFC", name))
    if any(unicodedata.category(char) in ("Cc", "Cs") or char in _BIDI_CONTROLS for char in base):
        raise BadFileName("The file name has control characters. Rename the file and send it again.")
    base = _cut(base.strip()).strip()  # where it is cut, a blank may stand
    if not base.strip(". "):
        raise BadFileName("The file has no name but dots or blanks. Give it a name and send it again.")
    return base


def extension_of(name: str) -> str:
    """What stands after a name's last dot, in lower case; empty where nothing stands before that dot."""
    stem, _, extension = name.rpartition(".")
    return extension.lower() if stem else ""


def with_extension(name: str, extension: str) -> str:
    """The name with another extension in the place of its own, cut to 255 bytes again."""
    return _cut(f"{name.rpartition('.')[0] or name}.{extension}")


def content_type_of(name: str) -> str:
    """The content type that a name's extension stands for."""
    extension = name[name.rfind(".") :].lower() if "." in name else ""
    guessed, encoding = mimetypes.guess_type(name)
    if encoding:  # what guess_type names is inside
        return "application/octet-stream"
    return _EXTRA_TYPES.get(extension) or guessed or "application/octet-stream"


def for_content_type(content_type: str) -> str | None:
    """A name for a file that came without one, or None when its type does not tell an extension."""
    if content_type in ("", "application/octet-stream"):
        return None
    extension = mimetypes.guess_extension(content_type)
    return f"upload{extension}" if extension else None


def quoted(name: str) -> bytes:
    """The name as it stands between quotes in a form's header: raw UTF-8, as browsers write it."""
    return name.replace('"', "%22").encode()


def _cut(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > MAX_EXTENSION_BYTES:
        stem, dot, extension = name, "", ""
    room = MAX_NAME_BYTES - len((dot + extension).encode())
    return stem.encode()[:room].decode(errors="ignore") + dot + extension


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadFileName("The file name is not UTF-8. Send it as UTF-8.") from None


def _decode_extended(raw: bytes) -> str:
    """RFC 8187: ``UTF-8'language'percent-encoded``. No other charset need be taken, and none is."""
    charset, _, rest = raw.partition(b"'")
    _, quote, encoded = rest.partition(b"'")
    if charset.lower() != b"utf-8" or not quote:
        raise BadFileName("filename* is not of the form UTF-8''name. Write it that way.")
    return _decode(unquote_to_bytes(encoded))
