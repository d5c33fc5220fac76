"""File formats: by which extensions their content goes, and what it begins with.

Coze tells a file's type by its extension and holds the content against it; these are the formats of the
extensions that it takes, and of what most often hides behind them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import puremagic

TEXTS = frozenset(
    {"csv", "tsv", "txt", "md", "log", "json", "xml", "html", "htm", "svg", "css", "yaml", "yml", "toml"}
    | {"py", "c", "cpp", "java", "h", "hpp", "js", "sh", "sql"}
)
"""Extensions of what is text, whatever it says."""
UNMARKED = frozenset({"mp3", "aac", "pcd"})
"""Extensions of formats whose content may begin with anything; at most it is known to be of another."""

MIN_SIGNATURE_BYTES, MIN_DIFFERENT_BYTES = 4, 3
"""What a signature of puremagic's must have to be a proof: it knows formats that begin with one byte, or
with padding."""


@dataclass(frozen=True)
class Format:
    """A kind of content."""

    name: str
    """As it stands in a sentence."""
    extensions: frozenset[str]
    """All that such content may be called."""
    extension: str | None
    """What it is to be called, where the content tells."""
    shows: re.Pattern[bytes]
    """What content under one of these extensions begins with."""
    proves: re.Pattern[bytes]
    """What content under any extension begins with that can be nothing else."""
    is_text: bool = False


def _format(
    name: str,
    extensions: str,
    shows: bytes,
    *,
    proves: bytes | None = None,
    tells: bool = True,
    is_text: bool = False,
) -> Format:
    """``extensions`` has the one that the content tells first, unless it ``tells`` none."""
    every = extensions.split()
    return Format(
        name,
        frozenset(every),
        every[0] if tells else None,
        re.compile(shows, re.DOTALL),
        re.compile(proves or shows, re.DOTALL),
        is_text,
    )


_ZIP = "zip docx xlsx pptx numbers"
_ISO = "mp4 m4v mov m4a 3gp 3gpp heic heif"
_MATROSKA = "mkv webm"
_BEFORE_MARKUP = rb"(?:\xef\xbb\xbf)?\s*+"


def _office(name: str, extension: str, folder: bytes) -> Format:
    """Microsoft's packages (ECMA-376 part 2): a ZIP archive with parts of the package and a folder."""
    package = rb"PK\x03\x04(?=.*(?:\[Content_Types\]\.xml|_rels/\.rels|docProps/))"
    entry = rb"(?:.*PK\x03\x04)?.{26}"
    return _format(name, f"{extension} {_ZIP}", rb"PK\x03\x04", proves=package + entry + folder)


def _film(name: str, extension: str, brands: bytes) -> Format:
    """ISO/IEC 14496-12 §4.3: the file's first box names its major brand."""
    return _format(name, f"{extension} {_ISO}", rb".{4}ftyp(?:" + brands + rb")")


# Of two that match, the first one counts: the narrower stand before the wider.
FORMATS = (
    # ISO 32000-1 annex H.3.4.1: readers take the header anywhere in the first 1,024 bytes.
    _format(
        "a PDF document",
        "pdf",
        rb".{0,1019}?(?:%PDF-|%!PS-Adobe-\d\.\d PDF-)",
        proves=rb"(?:\xef\xbb\xbf)?\s*+%PDF-\d",
    ),
    _format("a PNG image", "png", rb"\x89PNG\r\n\x1a\n"),
    _format("a JPEG image", "jpg jpeg jpe jfif jpg2", rb"\xff\xd8\xff"),
    _format("a GIF image", "gif", rb"GIF8[79]a"),
    _format("a WebP image", "webp", rb"RIFF.{4}WEBP"),
    _format("a BMP image", "bmp dib", rb"BM", proves=rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    _format("a TIFF image", "tiff tif", rb"II[*+]\0|MM\0[*+]"),
    _format("a JPEG 2000 image", "jpg2 jp2", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    _film("a HEIC image", "heic", rb"hei[cxms]|hev[cxms]"),
    _film("an M4A recording", "m4a", rb"M4[AB] "),
    _film("a QuickTime film", "mov", rb"qt  "),
    _film("a 3GP film", "3gp", rb"3g[a-z0-9]{2}"),
    _film("an MP4 film", "mp4", rb"iso[m2-9]|mp4[12]|avc1|M4V[ HP]|MSNV|dash"),
    _format(
        "a film, recording or image of the MP4 family",
        _ISO,
        rb".{4}(?:ftyp|styp|moov|moof|mdat|free|skip|wide|pnot|pict|junk|uuid|meta|sidx|emsg)",
        proves=rb"\0.{3}(?:ftyp|styp|moov|mdat|free|wide)",
        tells=False,
    ),
    _format("a WebM film", f"webm {_MATROSKA}", rb"\x1aE\xdf\xa3.{0,64}?webm"),
    _format("a Matroska film", f"mkv {_MATROSKA}", rb"\x1aE\xdf\xa3.{0,64}?matroska"),
    _format("a Matroska or WebM film", _MATROSKA, rb"\x1aE\xdf\xa3", tells=False),
    _format("an AVI film", "avi", rb"RIFF.{4}AVI"),
    _format("an FLV film", "flv", rb"FLV", proves=rb"FLV\x01"),
    _format("a RealMedia film", "rmvb rm", rb"\.RMF", proves=rb"\.RMF\0"),
    _format(
        "a Windows Media film or recording",
        "wmv wma asf",
        rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9",
        tells=False,
    ),
    _format("a WAV recording", "wav", rb"(?:RIFF|RIFX|RF64|BW64).{4}WAVE"),
    _format("a FLAC recording", "flac", rb"fLaC"),
    _format("an Ogg recording", "ogg oga ogv opus", rb"OggS", proves=rb"OggS\0"),
    _format("a MIDI file", "midi mid", rb"MThd|RIFF.{4}RMID", proves=rb"MThd\0\0\0\x06|RIFF.{4}RMID"),
    _format("an AAC recording", "aac", rb"ADIF"),
    # The tag may stand before other sound as well, and FLAC files have it too.
    _format("an MP3 recording", "mp3 aac flac", rb"ID3[\x02-\x04]"),
    _office("a Word document", "docx", rb"word/"),
    _office("an Excel workbook", "xlsx", rb"xl/"),
    _office("a PowerPoint presentation", "pptx", rb"ppt/"),
    _format(
        "a document in a ZIP archive",
        _ZIP,
        rb"PK\x03\x04.{26,}?(?:\[Content_Types\]\.xml|_rels/|docProps/|mimetype|META-INF/|Index/|AndroidManifest)",
        tells=False,
    ),
    _format("a ZIP archive", _ZIP, rb"PK(?:\x03\x04|\x05\x06|\x07\x08|00PK)"),
    # With a password, the newer kinds of document are packed so as well.
    _format(
        "an older Office document, or one with a password",
        "doc xls ppt",
        rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        tells=False,
    ),
    _format("a RAR archive", "rar", rb"Rar!\x1a\x07"),
    _format("a 7z archive", "7z", rb"7z\xbc\xaf\x27\x1c"),
    _format("a gzip archive", "gz gzip", rb"\x1f\x8b", proves=rb"\x1f\x8b\x08"),
    _format(
        "a bzip2 archive",
        "bz2",
        rb"BZh[1-9]",
        proves=rb"BZh[1-9](?:\x31\x41\x59\x26\x53\x59|\x17\x72\x45\x38\x50\x90)",
    ),
    _format("an SVG drawing", "svg", _BEFORE_MARKUP + rb"(?:<[?!][^>]*+>\s*+)*+(?i:<svg)[\s>]", is_text=True),
    _format(
        "an HTML page",
        "html htm",
        _BEFORE_MARKUP + rb"(?:<!--[^>]*+>\s*+)*+(?i:<!doctype html|<(?:html|head|body|script)[\s>])",
        is_text=True,
    ),
    _format("an XML document", "xml", _BEFORE_MARKUP + rb"<\?xml\s", is_text=True),
    _format("a script", "sh", rb"#! ?/|<\?php\s", tells=False, is_text=True),
    _format("an RTF document", "rtf", rb"\{\\rtf", is_text=True),
)
_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_NO_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")


def _by_extension() -> dict[str, tuple[Format, ...]]:
    marked = {extension for each in FORMATS if not each.is_text for extension in each.extensions} - UNMARKED
    return {name: tuple(each for each in FORMATS if name in each.extensions) for name in marked}


_OF_EXTENSION = _by_extension()


def fits(extension: str, head: bytes) -> bool:
    """Whether content that begins with ``head`` may go by this extension, as far as can be told.

    A format with a signature must show it. Any other is only refused when it is surely something else.
    An extension that nothing is known of fits everything.
    """
    if extension in TEXTS:
        return not _is_binary(head)
    if extension in UNMARKED:
        return not _is_surely_other(extension, head)
    formats = _OF_EXTENSION.get(extension)
    return formats is None or any(each.shows.match(head) for each in formats)


def recognised(head: bytes) -> Format | None:
    """The format that this content surely has; None when it could be anything."""
    return next((each for each in FORMATS if each.proves.match(head)), None)


def is_plain_text(head: bytes) -> bool:
    """Whether this can be read: the beginning of UTF-8 without odd control characters."""
    if _NO_TEXT.search(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:  # the last character may have been cut in two
        return error.reason == "unexpected end of data"
    return True


def _is_binary(head: bytes) -> bool:
    found = recognised(head)
    if found is not None and not found.is_text:
        return True
    return b"\0" in head and not head.startswith(_UTF_16_OR_32)


def _is_surely_other(extension: str, head: bytes) -> bool:
    found = recognised(head)
    if found is not None:
        return extension not in found.extensions
    others = _extensions_by_puremagic(head)
    return bool(others) and extension not in others


def _extensions_by_puremagic(head: bytes) -> set[str]:
    """The extensions of formats that puremagic knows to begin with just these bytes, and surely so."""
    try:
        matches = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return set()
    sure = (match for match in matches if _is_proof(match.byte_match) and head.startswith(match.byte_match))
    return {match.extension.removeprefix(".") for match in sure}


def _is_proof(signature: bytes) -> bool:
    return len(signature) >= MIN_SIGNATURE_BYTES and len(set(signature)) >= MIN_DIFFERENT_BYTES
