"""Name, declared type and content of a file must agree. Decides, opens nothing.

Coze refuses what doesn't agree too, once it has the whole file, with a message that nobody understands.
It looks again, so that in doubt a file is let through: a refusal in error would be the greater fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from broker.errors import FileContentMismatch, FileTypeRefused, MalformedRequest
from broker.transfer import formats
from broker.transfer.filenames import content_type_of, extension_of, with_extension
from broker.transfer.formats import Format

HEAD_BYTES = 4096
"""How much of a file is looked at."""
MAX_TYPE_LENGTH = 255
SHOWN_CHARACTERS = 40
"""How much of what a caller made up stands in a sentence."""

OnMismatch = Literal["refuse", "relabel", "ignore"]


@dataclass(frozen=True)
class FileTypes:
    """Which files the operator takes: by extension (``None``: any), and what becomes of a mismatch."""

    taken: frozenset[str] | None = None
    on_mismatch: OnMismatch = "refuse"

    def check_name(self, file_name: str) -> None:
        """Raises :class:`FileTypeRefused` for a name whose extension is not taken."""
        extension = extension_of(file_name)
        if self.taken is None or extension in self.taken:
            return
        said = f"Files of the type .{_shown(extension)} are not taken" if extension else _NO_EXTENSION
        raise FileTypeRefused(f"{said}. Send one of these: {', '.join(sorted(self.taken))}.")

    def settle(self, file_name: str, content_type: str, head: bytes) -> tuple[str, str]:
        """The name and the content type under which a file goes on: its own, or what its content tells.

        ``head`` is the file's first 4,096 bytes, or the whole of it.
        Raises :class:`FileTypeRefused` or :class:`FileContentMismatch`.
        """
        self.check_name(file_name)
        if self.on_mismatch == "ignore":
            return file_name, content_type
        name = self._name_by_content(file_name, head)
        if name == file_name and not is_contradicted(name, content_type):
            return file_name, content_type
        if self.on_mismatch == "refuse":
            raise FileContentMismatch(
                f"The file is called {_shown(name)}, and its content agrees, but it was sent as "
                f"{_shown(content_type)}. Send it with its own content type, or with none."
            )
        return name, content_type_of(name)

    def _name_by_content(self, file_name: str, head: bytes) -> str:
        """The name, with another extension where the content needs one and the operator wants that.

        Raises :class:`FileContentMismatch`.
        """
        if formats.fits(extension_of(file_name), head):
            return file_name
        found = formats.recognised(head)
        better = self._better_name(file_name, found)
        if better is not None and self.on_mismatch == "relabel":
            return better
        advice = f"Name it {_shown(better)}" if better else "Save it as what it is called"
        raise FileContentMismatch(
            f"The file is called {_shown(file_name)}, but its content is {_content(file_name, found, head)}. "
            f"{advice} and send it again."
        )

    def _better_name(self, file_name: str, found: Format | None) -> str | None:
        if found is None or found.extension is None:
            return None
        if self.taken is not None and found.extension not in self.taken:
            return None
        return with_extension(file_name, found.extension)


def declared_type(value: str, refusal: type[MalformedRequest] = MalformedRequest) -> str:
    """The content type that a file was sent as, without parameters, in lower case; empty for none.

    Raises ``refusal`` for what is no type and subtype (RFC 9110 §8.3.1), or longer than 255 characters.
    """
    declared = value.partition(";")[0].strip(" \t")
    if len(value) > MAX_TYPE_LENGTH or (declared and not _MEDIA_TYPE.fullmatch(declared)):
        raise refusal("The file's Content-Type is not of the form type/subtype. Mend it, or leave it out.")
    return declared.lower()


def is_contradicted(file_name: str, content_type: str) -> bool:
    """Whether a file of this name can't be what it was sent as.

    Senders go by their system's registry, or know nothing: only what can't be meant so is held against them.
    """
    extension = extension_of(file_name)
    expected = next((kind for kind, extensions in _EXTENSIONS.items() if extension in extensions), None)
    declared = _kind(content_type)
    if expected is None or declared is None or expected == declared:
        return False
    return "image" not in (expected, declared) or expected.partition("/")[0] != declared.partition("/")[0]


def _kind(content_type: str) -> str | None:
    if content_type in _UNTELLING:
        return None
    if content_type in _KINDS:
        return _KINDS[content_type]
    return _KINDS_BY_TOP_LEVEL.get(content_type.partition("/")[0])


def _content(file_name: str, found: Format | None, head: bytes) -> str:
    if found is not None:
        return found.name
    if extension_of(file_name) in formats.TEXTS:
        return "not text"
    return "text" if formats.is_plain_text(head) else "of another type"


def _shown(name: str) -> str:
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[: SHOWN_CHARACTERS - 11]}…{name[-10:]}"


_NO_EXTENSION = "The file's name has no extension, by which its type is told"
_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Kinds of files that no sender takes for one another. What gz and bz2 files are sent as is mostly the type
# of what they hold, and a pcd file is a picture or a cloud of points: these are of no kind.
_EXTENSIONS = {
    "text": formats.TEXTS,
    "pdf": {"pdf"},
    "package": {"doc", "docx", "xls", "xlsx", "ppt", "pptx", "numbers", "zip", "rar", "7z"},
    "media": {"wav", "mp3", "flac", "m4a", "aac", "ogg", "wma", "midi"}
    | {"mp4", "avi", "mov", "3gp", "3gpp", "flv", "webm", "wmv", "rmvb", "m4v", "mkv"},
    "image/png": {"png"},
    "image/jpeg": {"jpg", "jpeg"},
    "image/gif": {"gif"},
    "image/webp": {"webp"},
    "image/bmp": {"bmp"},
    "image/tiff": {"tiff", "tif"},
    "image/heif": {"heic", "heif"},
    "image": {"jpg2"},
}
# What Windows calls CSV files, and what libraries send where they know nothing.
_UNTELLING = {"application/vnd.ms-excel", "text/plain", "text/rtf"}
_KINDS = {
    "application/pdf": "pdf",
    "application/x-pdf": "pdf",
    "application/msword": "package",
    "application/vnd.ms-powerpoint": "package",
    "application/zip": "package",
    "application/x-zip-compressed": "package",
    "application/vnd.rar": "package",
    "application/x-rar-compressed": "package",
    "application/x-7z-compressed": "package",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "package",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "package",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "package",
    "image/svg+xml": "text",
    "image/png": "image/png",
    "image/x-png": "image/png",
    "image/jpeg": "image/jpeg",
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/gif": "image/gif",
    "image/webp": "image/webp",
    "image/bmp": "image/bmp",
    "image/x-ms-bmp": "image/bmp",
    "image/tiff": "image/tiff",
    "image/heic": "image/heif",
    "image/heif": "image/heif",
}
_KINDS_BY_TOP_LEVEL = {"audio": "media", "video": "media", "text": "text", "image": "image"}
