"""The beginnings of files of every type that Coze takes, made as the programs that write them do."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import wave
import zipfile
import zlib


def _archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, f"<{name}/>" * 20)
    return buffer.getvalue()


def _office(*names: str) -> bytes:
    return _archive("[Content_Types].xml", "_rels/.rels", *names, "docProps/app.xml")


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0\xff\0\0")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _jpeg(marker: bytes, segment: bytes) -> bytes:
    quantisation = b"\xff\xdb" + struct.pack(">H", 67) + b"\0" + b"\x01" * 64
    return b"\xff\xd8" + marker + struct.pack(">H", len(segment) + 2) + segment + quantisation


def _bmp() -> bytes:
    pixels = b"\0\0\xff\0"
    head = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 24, 0, len(pixels), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


def _tiff(order: str) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    width = struct.pack(f"{order}HHII", 256, 4, 1, 1)
    return mark + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", 1) + width + b"\0" * 4


def _riff(kind: bytes, *chunks: bytes, name: bytes = b"RIFF") -> bytes:
    body = kind + b"".join(chunks)
    return name + struct.pack("<I", len(body)) + body


def _wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0\xff\x7f" * 100)
    return buffer.getvalue()


def box(kind: bytes, content: bytes = b"") -> bytes:
    """A box of ISO/IEC 14496-12."""
    return struct.pack(">I", 8 + len(content)) + kind + content


def _iso(brand: bytes, *compatible: bytes) -> bytes:
    return box(b"ftyp", brand + struct.pack(">I", 512) + b"".join(compatible)) + box(b"free") + box(b"moov")


def _matroska(kind: bytes) -> bytes:
    fields = b"\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08"
    fields += b"\x42\x82" + bytes([0x80 | len(kind)]) + kind + b"\x42\x87\x81\x04\x42\x85\x81\x02"
    return b"\x1aE\xdf\xa3" + bytes([0x80 | len(fields)]) + fields + b"\x18S\x80g\x01"


def _compound(*names: str) -> bytes:
    """Microsoft's compound file: its header and a sector of directory."""
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 16 + struct.pack("<HHHHH", 62, 3, 0xFFFE, 9, 6)
    head = head.ljust(76, b"\0").ljust(512, b"\xff")
    return head + b"".join(name.encode("utf-16-le").ljust(128, b"\0") for name in ("Root Entry", *names))


_MPEG_FRAME = b"\xff\xfb\x90\x44" + b"\0" * 413
_ADTS_FRAME = b"\xff\xf1\x50\x80\x02\x1f\xfc" + b"\x21\x10\x04\x60" * 3
_ID3 = b"ID3\x04\0\0\0\0\0\x15TIT2\0\0\0\x0b\0\0\x03A song ok"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + struct.pack("<QIBB", 30, 5, 1, 2)
_PICTURE = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"

FILES: dict[str, tuple[bytes, ...]] = {
    "doc": (_compound("WordDocument"),),
    "xls": (_compound("Workbook"),),
    "ppt": (_compound("PowerPoint Document"),),
    "docx": (_office("word/document.xml"), _archive("_rels/.rels", "word/document.xml"), _archive("word/a")),
    "xlsx": (_office("xl/workbook.xml"),),
    "pptx": (_office("ppt/presentation.xml"),),
    "numbers": (_archive("Index/Document.iwa", "Metadata/Properties.plist"),),
    "pdf": (
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<</Type/Catalog>>\nendobj\n",
        b"\xef\xbb\xbf%PDF-1.4\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 900 + b"%PDF-1.5\n",
    ),
    "csv": (
        b"a,b\n1,2\n",
        b"1",
        "标题,值\n".encode("gbk"),
        "標題,値\n".encode("shift-jis"),
        "é;ü\r\n".encode("latin-1"),
        "\ufeff标题,值\n".encode(),
        "a,b\n".encode("utf-16"),
        "\ufeffa,b\n".encode("utf-16-be"),
        "a,b\n".encode("utf-32"),
        "\ufeffa,b\n".encode("utf-32-be"),
        b"BMW,1\n",
        b"MZ,1\n",
        b"ID3,FLV,BZh\n",
        b"PK,RIFF,GIF\n",
        b"<html>,1\n",
        b"#!AMR,1\n",
        b"\x1b[1mbold\x1b[0m,1\f\n",
        ("标" * 1365 + "a" + "题").encode()[:4096],
    ),
    "py": (b"#!/usr/bin/env python3\nprint('x')\n", b"import os\n"),
    "c": (b"#include <stdio.h>\n", b"/* %PDF-1.7 */\n"),
    "cpp": (b"// MZ\nint main() {}\n",),
    "java": (b"package a;\n", b"\xef\xbb\xbfclass A {}\n"),
    "jpg": (
        _jpeg(b"\xff\xe0", _PICTURE[6:]),
        _jpeg(b"\xff\xe1", b"Exif\0\0II*\0\x08\0\0\0"),
        b"\xff\xd8\xff\xdb\0\x43\0" + b"\x01" * 64,
    ),
    "jpeg": (_jpeg(b"\xff\xe0", _PICTURE[6:]),),
    "jpg2": (
        box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 "),
        b"\xff\x4f\xff\x51\0\x2f\0\0",
    ),
    "png": (
        _png(),
        _png() + _archive("hidden.txt"),
    ),
    "gif": (b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0" * 6, b"GIF87a\x01\0\x01\0\0\0\0"),
    "webp": (_riff(b"WEBP", b"VP8X\x0a\0\0\0"), _riff(b"WEBP", b"VP8L\x0a\0\0\0")),
    "heic": (_iso(b"heic", b"mif1", b"heic"), _iso(b"mif1", b"mif1", b"heic")),
    "heif": (_iso(b"mif1", b"mif1", b"heic"), _iso(b"msf1", b"hevc")),
    "bmp": (_bmp(),),
    "pcd": (
        b"\xff" * 2048 + b"PCD_IPI\x06" + b"\0" * 2000,
        b"# .PCD v0.7 - Point Cloud Data file format\n",
        b"PCD_OPA\0" + b"\0" * 4000,
    ),
    "tiff": (_tiff("<"), _tiff(">"), b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0"),
    "wav": (_wav(), b"RF64\xff\xff\xff\xffWAVEds64"),
    "mp3": (
        _ID3 + _MPEG_FRAME,
        _MPEG_FRAME * 9,
        b"\xff\xf3\x84\xc4" + b"\0" * 100,
        b"\0" * 4096,
        b"APETAGEX\xd0\x07\0\0" + _MPEG_FRAME,
    ),
    "flac": (b"fLaC\0\0\0\x22" + b"\x10\0" * 17, _ID3 + b"fLaC\0\0\0\x22"),
    "m4a": (_iso(b"M4A ", b"M4A ", b"mp42"), _iso(b"mp42", b"M4A ")),
    "aac": (_ADTS_FRAME * 20, b"ADIF\0\x90\0", _ID3 + _ADTS_FRAME),
    "ogg": (
        b"OggS\0\x02" + b"\0" * 20 + b"\x01\x1e\x01vorbis",
        b"OggS\0\x02" + b"\0" * 20 + b"\x01\x13OpusHead",
    ),
    "wma": (_ASF,),
    "midi": (b"MThd\0\0\0\x06\0\x01\0\x02\x01\xe0MTrk", _riff(b"RMID", b"data\0\0\0\0")),
    "mp4": (
        _iso(b"isom", b"isom", b"avc1"),
        _iso(b"mp42"),
        _iso(b"XAVC"),
        box(b"free") + box(b"mdat", b"\0" * 99),
        box(b"styp", b"msdh\0\0\0\0") + box(b"sidx"),
    ),
    "avi": (_riff(b"AVI ", b"LIST\xc0\0\0\0hdrlavih"),),
    "mov": (
        _iso(b"qt  ", b"qt  "),
        box(b"wide") + box(b"mdat", b"x" * 99),
        box(b"moov", box(b"mvhd", b"\0" * 100)),
    ),
    "3gp": (_iso(b"3gp4", b"isom"),),
    "3gpp": (_iso(b"3gp5", b"isom"),),
    "flv": (b"FLV\x01\x05\0\0\0\x09\0\0\0\0\x12",),
    "webm": (_matroska(b"webm"),),
    "wmv": (_ASF,),
    "rmvb": (b".RMF\0\0\0\x12\0\0\0\0\0\0\0\0\0\x08PROP",),
    "m4v": (_iso(b"M4V ", b"M4V ", b"mp42"),),
    "mkv": (_matroska(b"matroska"),),
    "rar": (b"Rar!\x1a\x07\0\xcf\x90\x73", b"Rar!\x1a\x07\x01\0"),
    "zip": (_archive("a.txt"), _archive(), _office("word/document.xml"), b"PK00PK\x03\x04" + b"\0" * 26),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\x04" + b"\0" * 24,),
    "gz": (gzip.compress(b"a,b\n"),),
    "gzip": (gzip.compress(b"a,b\n"),),
    "bz2": (bz2.compress(b"a,b\n"), bz2.compress(b"")),
}

FAMILIES = (
    {"doc", "xls", "ppt"},
    {"docx", "xlsx", "pptx", "numbers", "zip"},
    {"csv", "py", "c", "cpp", "java"},
    {"jpg", "jpeg", "jpg2"},
    {"mp4", "m4v", "mov", "m4a", "3gp", "3gpp", "heic", "heif"},
    {"wma", "wmv"},
    {"mp3", "aac", "flac"},
    {"webm", "mkv"},
    {"gz", "gzip"},
)
"""Extensions that content alone does not tell apart."""
