"""Content and extension: cases as data."""

import io
import zipfile

import pytest

from broker.sandbox.file_types import SUPPORTED, content_matches, is_supported


def office(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr(name, "<document/>")
    return buffer.getvalue()


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1"
EXIF = b"\xff\xd8\xff\xe1\0\x10Exif\0\0"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 504
GZIP = b"\x1f\x8b\x08\0\0\0\0\0\0\3"
WAV = b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0"
WEBP = b"RIFF\x24\0\0\0WEBPVP8 "
AVI = b"RIFF\x24\0\0\0AVI LIST"
MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2"
MOV = b"\0\0\0\x14ftypqt  \0\0\0\0qt  "
M4A = b"\0\0\0\x20ftypM4A \0\0\0\0"
THREE_GP = b"\0\0\0\x18ftyp3gp4\0\0\0\0"
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
EXE = b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff\0\0"
PDF = b"%PDF-1.7\n1 0 obj"


@pytest.mark.parametrize(
    ("file_name", "head"),
    [
        ("a.png", PNG),
        ("A.PNG", PNG),
        ("a.jpg", JPEG),
        ("a.jpeg", JPEG),
        ("a.jpg", EXIF),
        ("a.pdf", PDF),
        ("a.gif", b"GIF89a\1\0\1\0"),
        ("a.bmp", b"BM\x46\0\0\0\0\0\0\0"),
        ("a.tiff", b"II*\0\x08\0\0\0"),
        ("a.tiff", b"MM\0*\0\0\0\x08"),
        ("a.webp", WEBP),
        ("a.docx", office("word/document.xml")),
        ("a.xlsx", office("xl/workbook.xml")),
        ("a.pptx", office("ppt/presentation.xml")),
        ("a.zip", office("anything")),
        ("a.numbers", office("Index/Document.iwa")),
        ("a.doc", OLE),
        ("a.xls", OLE),
        ("a.ppt", OLE),
        ("a.gz", GZIP),
        ("a.tar.gzip", GZIP),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0\4"),
        ("a.rar", b"Rar!\x1a\7\0"),
        ("a.rar", b"Rar!\x1a\7\1\0"),
        ("a.bz2", b"BZh91AY&SY"),
        ("a.wav", WAV),
        ("a.avi", AVI),
        ("a.mp3", b"ID3\4\0\0\0\0\0\0"),
        ("a.mp3", b"\xff\xfb\x90\x44\0\0"),
        ("a.flac", b"fLaC\0\0\0\x22"),
        ("a.ogg", b"OggS\0\2\0\0"),
        ("a.midi", b"MThd\0\0\0\6\0\1"),
        ("a.mp4", MP4),
        ("a.mov", MP4),
        ("a.mov", MOV),
        ("a.m4a", M4A),
        ("a.m4v", MP4),
        ("a.3gp", THREE_GP),
        ("a.heic", HEIC),
        ("a.mkv", b"\x1aE\xdf\xa3\x93B\x82\x88matroska"),
        ("a.webm", b"\x1aE\xdf\xa3\x93B\x82\x84webm"),
        ("a.flv", b"FLV\1\5\0\0\0\x09"),
        ("a.wmv", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c"),
        ("a.rmvb", b".RMF\0\0\0\x12\0"),
        ("a.csv", b"BMW,1\n"),
        ("a.csv", "标题,值\n".encode("gbk")),
        ("a.csv", b"x"),
        ("a.py", b"import os\n"),
        ("a.py", b"#!/usr/bin/env python\n"),
        ("a.c", b"#include <stdio.h>\n"),
        ("a.cpp", b"// MZ\n"),
        ("a.java", b"package a;\n"),
    ],
)
def test_honest_extensions_pass(file_name: str, head: bytes) -> None:
    assert content_matches(file_name, head)


@pytest.mark.parametrize(
    ("file_name", "head"),
    [
        ("a.png", JPEG),
        ("a.jpg", PNG),
        ("a.pdf", PNG),
        ("a.docx", PDF),
        ("a.docx", OLE),
        ("a.doc", office("word/document.xml")),
        ("a.wav", WEBP),
        ("a.webp", WAV),
        ("a.mp4", PNG),
        ("a.mp3", PNG),
        ("a.gz", office("a")),
        ("a.csv", PNG),
        ("a.csv", PDF),
        ("a.py", EXE),
        ("a.jpg", EXE),
        ("a.png", b"plain words"),
        ("a.pdf", b"\0" * 100),
    ],
)
def test_other_content_is_noticed(file_name: str, head: bytes) -> None:
    assert not content_matches(file_name, head)


def test_the_list_of_types_is_cozes() -> None:
    assert len(SUPPORTED) == 49
    assert is_supported("a.b.PDF")
    for file_name in ("a.txt", "a.md", "a.json", "a", ".png", "pdf"):
        assert not is_supported(file_name)
