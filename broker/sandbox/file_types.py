"""Which file types Coze takes, and whether a file's content is what its extension says.

Coze refuses a mismatch but does not say how it looks; here puremagic judges the first bytes.
A format with a sure signature must show it. Any other is refused only when recognised as something else.
The list of types is Coze's, with `jpeg` added: its own names only `jpg`.
"""

from pathlib import PurePosixPath

import puremagic

DOCUMENTS = frozenset({"doc", "docx", "xls", "xlsx", "ppt", "pptx", "pdf", "numbers", "csv"})
SOURCES = frozenset({"cpp", "py", "java", "c"})
IMAGES = frozenset({"jpg", "jpeg", "jpg2", "png", "gif", "webp", "heic", "heif", "bmp", "pcd", "tiff"})
SOUNDS = frozenset({"wav", "mp3", "flac", "m4a", "aac", "ogg", "wma", "midi"})
FILMS = frozenset({"mp4", "avi", "mov", "3gp", "3gpp", "flv", "webm", "wmv", "rmvb", "m4v", "mkv"})
ARCHIVES = frozenset({"rar", "zip", "7z", "gz", "gzip", "bz2"})
SUPPORTED = DOCUMENTS | SOURCES | IMAGES | SOUNDS | FILMS | ARCHIVES

TEXTS = SOURCES | {"csv"}
SIGNED = frozenset(
    {"pdf", "docx", "xlsx", "pptx", "numbers", "doc", "xls", "ppt"}
    | {"png", "jpg", "jpeg", "gif", "webp", "bmp", "tiff"}
    | {"wav", "flac", "zip", "rar", "7z", "gz", "gzip", "bz2"}
)

# Extensions that share a container or a signature, with the names that puremagic gives them.
FAMILIES = (
    frozenset({"jpg", "jpeg", "jpe", "jfif"}),
    frozenset({"jpg2", "jp2", "j2k", "jpx", "jpm"}),
    frozenset({"tiff", "tif"}),
    frozenset({"bmp", "dib"}),
    frozenset({"pdf", "fdf", "ai"}),
    frozenset({"docx", "xlsx", "pptx", "numbers", "zip"}),
    frozenset({"doc", "xls", "ppt"}),
    frozenset({"gz", "gzip"}),
    frozenset({"mp4", "m4v", "m4a", "mov", "3gp", "3gpp", "3g2", "3ga", "heic", "heif", "qtvr"}),
    frozenset({"webm", "mkv", ""}),
    frozenset({"wma", "wmv", "asf"}),
    frozenset({"mp3", "mpga", "aac", "mp2"}),
    frozenset({"ogg", "oga", "ogv", "ogx", "opus", "spx", "anx", "axa", "axv"}),
    frozenset({"midi", "mid"}),
    frozenset({"rmvb", "rm", "ra", "ram"}),
)


def extension(file_name: str) -> str:
    return PurePosixPath(file_name).suffix.removeprefix(".").lower()


def is_supported(file_name: str) -> bool:
    return extension(file_name) in SUPPORTED


def content_matches(file_name: str, head: bytes) -> bool:
    suffix = extension(file_name)
    found = recognised(head)
    if suffix in TEXTS:
        return not found or not _is_binary(head)
    if not found:
        return suffix not in SIGNED
    return not found.isdisjoint(_family(suffix))


def recognised(head: bytes) -> frozenset[str]:
    """The extensions of the surest matches; empty when nothing is known of these bytes."""
    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return frozenset()
    best = max(match.confidence for match in matches)
    return frozenset(match.extension.removeprefix(".") for match in matches if match.confidence == best)


def _family(suffix: str) -> frozenset[str]:
    return next((family for family in FAMILIES if suffix in family), frozenset({suffix}))


def _is_binary(head: bytes) -> bool:
    """PDF may consist of text alone and is named here; other binary formats hold NUL bytes early."""
    return b"\0" in head or head.startswith(b"%PDF-")
