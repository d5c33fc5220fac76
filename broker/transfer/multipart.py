"""Forms (RFC 7578): the one file out of a form that comes in, and the form that goes out around it.

Opens nothing and holds nothing of the file but a boundary's worth of bytes.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from broker.errors import MalformedMultipart, MissingFile, SeveralFiles
from broker.transfer import filenames
from broker.transfer.sniffing import declared_type

FILE_FIELD = "file"
MAX_HEADERS = 8
MAX_HEADER_BYTES = 16_384
MAX_OTHER_BYTES = 65_536
"""All that may stand around the file: preamble, fields, part headers, epilogue."""
MAX_PARTS = 32

# A quote that is never closed is taken to the end: looking for each one's end anew would be quadratic.
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*+\\?(?:"|\Z)', re.DOTALL)
_EXTENDED_NAME = re.compile(r"""filename\*\s*=\s*([^\s;]+)""", re.IGNORECASE)


@dataclass(frozen=True)
class FilePart:
    """What a form says of its file."""

    file_name: str
    content_type: str


@dataclass
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    is_file: bool = False


class FormReader:
    """Finds the one file of a form. Feed it the body; it gives back the file's bytes.

    ``file`` is set once the file's own header was read, ``head_bytes`` (how much of the body stood
    before the file's first byte) once that byte was seen.
    """

    def __init__(self, boundary: bytes) -> None:
        self.boundary = boundary
        self.file: FilePart | None = None
        self.head_bytes: int | None = None
        self.ended = False
        self._fed = 0
        self._file_bytes = 0
        self._chunk = b""
        self._has_begun = False
        self._parts = 0
        self._part = _Part()
        self._name = b""
        self._value = b""
        self._pieces: list[bytes] = []
        self._parser = _parser(boundary, self)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The file's bytes in this chunk; no copy is made when the chunk is nothing else.

        Raises a refusal of the 400 family.
        """
        self._pieces = []
        try:
            self._parser.write(self._from_first_line(chunk))
        except FormParserError as error:
            raise MalformedMultipart(log=str(error)) from error
        self._fed += len(self._chunk)
        self.check_other_bytes(self._fed)
        return self._pieces

    def check_other_bytes(self, body_bytes: int) -> None:
        """Raises when a body of this length has too much around the file, be it read or still to come."""
        if body_bytes - self._file_bytes > MAX_OTHER_BYTES:
            raise MalformedMultipart(f"The form has more than {MAX_OTHER_BYTES:,} bytes besides the file.")

    def close(self) -> None:
        """Say that the body is over. Raises when the form was not, or had no file."""
        if not self.ended:
            raise MalformedMultipart(log="the form's last boundary is missing")
        if self.file is None:
            raise MissingFile

    def _from_first_line(self, chunk: bytes) -> bytes:
        """The chunk without the line ends before the form.

        The parser would skip more after them or less, depending on how the body is cut.
        """
        if not self._has_begun:
            rest = chunk.lstrip(b"\r\n")
            self._fed += len(chunk) - len(rest)
            self._has_begun = bool(rest)
            chunk = rest
        self._chunk = chunk
        return chunk

    @property
    def closing_bytes(self) -> int:
        """The least that must follow the file: ``CR LF -- boundary --``."""
        return len(self.boundary) + 6

    # The parser's callbacks.

    def on_part_begin(self) -> None:
        self._part = _Part()
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise MalformedMultipart(f"The form has more than {MAX_PARTS} parts.")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._part.headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._name = self._value = b""

    def on_headers_finished(self) -> None:
        disposition = self._part.headers.get("content-disposition", "")
        kind, parameters = options(disposition)
        if kind != b"form-data" or b"name" not in parameters:
            raise MalformedMultipart(
                "A part of the form has no 'Content-Disposition: form-data' with a name."
            )
        if b"filename" in parameters or b"filename*" in parameters:
            self._begin_file(parameters)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._part.is_file:
            return
        if self.head_bytes is None:
            # What the parser held back, as it might have been a boundary, it gives from a buffer of its own.
            self.head_bytes = self._fed + (start if data is self._chunk else start - end)
        self._file_bytes += end - start
        self._pieces.append(data if end - start == len(data) else data[start:end])

    def on_end(self) -> None:
        self.ended = True

    def _begin_file(self, parameters: dict[bytes, bytes]) -> None:
        if self.file is not None:
            raise SeveralFiles
        if not parameters.get(b"filename", b"x") and b"filename*" not in parameters:
            raise MissingFile("No file was chosen: the form's file part has an empty name.")
        if parameters[b"name"] != FILE_FIELD.encode():
            raise MissingFile(f"The file stands in another part. Name its part '{FILE_FIELD}'.")
        self._part.is_file = True
        content_type = declared_type(self._part.headers.get("content-type", ""), MalformedMultipart)
        self.file = FilePart(filenames.from_parameters(parameters) or "", content_type)


@dataclass(frozen=True)
class Envelope:
    """The form that carries one file to Coze."""

    head: bytes
    closing: bytes
    content_type: str

    @classmethod
    def around(cls, file_name: str, content_type: str) -> Envelope:
        """A form with one part named ``file``; its boundary is random, so that no file can hold it."""
        boundary = b"broker-" + secrets.token_hex(16).encode()
        head = (
            b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\nContent-Type: %b\r\n\r\n'
            % (
                boundary,
                FILE_FIELD.encode(),
                filenames.quoted(file_name),
                content_type.encode("ascii"),
            )
        )
        return cls(head, b"\r\n--%b--" % boundary, f"multipart/form-data; boundary={boundary.decode()}")

    def end(self, padding_bytes: int) -> bytes:
        """The last boundary, and an epilogue (RFC 2046 §5.1.1: to be ignored) of so many bytes."""
        return self.closing + (
            b"\r\n" + b" " * (padding_bytes - 2) if padding_bytes > 1 else b" " * padding_bytes
        )


def options(value: str) -> tuple[bytes, dict[bytes, bytes]]:
    """A header's value and its parameters, with the ``filename*`` that python-multipart leaves out."""
    kind, parameters = parse_options_header(value)
    extended = _EXTENDED_NAME.search(_QUOTED.sub('""', value))
    if extended:
        parameters[b"filename*"] = extended[1].encode("latin-1")
    return kind, parameters


def media_type(value: str) -> str:
    """A content type without its parameters, in lower case."""
    return value.partition(";")[0].strip().lower()


def boundary_of(content_type: str) -> bytes:
    """The boundary in a request's Content-Type. Raises :class:`MalformedMultipart` when it has none."""
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    if not boundary:
        raise MalformedMultipart("The Content-Type has no boundary. Let the HTTP library write this header.")
    return boundary


def _parser(boundary: bytes, reader: FormReader) -> MultipartParser:
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": reader.on_part_begin,
                "on_header_field": reader.on_header_field,
                "on_header_value": reader.on_header_value,
                "on_header_end": reader.on_header_end,
                "on_headers_finished": reader.on_headers_finished,
                "on_part_data": reader.on_part_data,
                "on_end": reader.on_end,
            },
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )
    except FormParserError as error:
        raise MalformedMultipart("The form's boundary is too long.", log=str(error)) from error
