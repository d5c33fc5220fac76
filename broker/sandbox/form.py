"""A multipart form read as it arrives: counted and hashed, never held."""

import hashlib
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

HEAD_BYTES = 64 * 1024
MAX_PARTS = 32
MAX_FIELD_BYTES = 64 * 1024


class BrokenFormError(ValueError):
    """The body is no complete multipart form."""


class FileTooLargeError(ValueError):
    """The file grew past the limit; the rest was not read."""


@dataclass
class FilePart:
    """One uploaded file: its name, its size, its digest and its first bytes."""

    field_name: str
    file_name: str
    content_type: str | None
    size: int = 0
    head: bytearray = field(default_factory=bytearray)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def write(self, data: bytes | memoryview) -> None:
        self.size += len(data)
        self.digest.update(data)
        self.head += data[: HEAD_BYTES - len(self.head)]


class Form:
    """Feed it the body; afterwards `files` and `part_names` tell what was in it."""

    def __init__(self, content_type: str, *, max_file_bytes: int) -> None:
        self.files: list[FilePart] = []
        self.part_names: list[str] = []
        self.is_complete = False
        self._max_file_bytes = max_file_bytes
        self._field_bytes = 0
        self._headers: dict[bytes, bytes] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._file: FilePart | None = None
        self._parser = self._new_parser(content_type)

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise BrokenFormError(str(error)) from error

    def _new_parser(self, content_type: str) -> MultipartParser:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise BrokenFormError("the form has no boundary")
        try:
            return MultipartParser(
                boundary,
                {
                    "on_part_begin": self._headers.clear,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_part,
                    "on_part_data": self._on_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise BrokenFormError(str(error)) from error

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_part(self) -> None:
        if len(self.part_names) == MAX_PARTS:
            raise BrokenFormError("the form has too many parts")
        options = parse_options_header(self._headers.get(b"content-disposition"))[1]
        name = _text(options.get(b"name", b""))
        self.part_names.append(name)
        self._file = self._new_file(name, options[b"filename"]) if b"filename" in options else None

    def _new_file(self, name: str, file_name: bytes) -> FilePart:
        content_type = self._headers.get(b"content-type")
        file = FilePart(name, _unescaped(file_name), _text(content_type) if content_type else None)
        self.files.append(file)
        return file

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            self._count_field(end - start)
        elif self._file.size + end - start > self._max_file_bytes:
            raise FileTooLargeError
        else:
            self._file.write(memoryview(data)[start:end])

    def _count_field(self, size: int) -> None:
        self._field_bytes += size
        if self._field_bytes > MAX_FIELD_BYTES:
            raise BrokenFormError("the form's fields are too large")

    def _on_end(self) -> None:
        self.is_complete = True


def _text(value: bytes) -> str:
    return value.decode("utf-8", errors="replace")


def _unescaped(file_name: bytes) -> str:
    """Undo what browsers escape in a file name, and nothing else: `100%25.csv` keeps its `%25`."""
    for escape in (b"%22", b"%0D", b"%0A"):
        file_name = file_name.replace(escape, unquote_to_bytes(escape))
    return _text(file_name)
