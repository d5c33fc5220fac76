"""A small client of the broker, for the command line and the demo."""

from __future__ import annotations

import mimetypes
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from broker.signing import SignedAuth, file_digest

CHUNK_BYTES = 262_144
TIMEOUT = httpx.Timeout(60.0, read=600.0)

OnProgress = Callable[[int, int], None]
"""Hears how many bytes went out so far, and of how many."""

_KEY = re.compile(r"[!-~]+")
_CREDENTIALS = re.compile("//[^/?#]*@")
_NEVER_BEGAN = (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL)


class UploadFailedError(Exception):
    """An upload that did not end in a ``file_id``; the message is for a person."""


@dataclass(frozen=True)
class BrokerClient:
    """Talks to the broker at ``url`` with an API key, or with requests that are signed instead."""

    url: str
    api_key: str = ""
    origin: str | None = None
    signer: SignedAuth | None = None

    def __repr__(self) -> str:
        return f"BrokerClient({self.url!r})"

    def upload(self, path: Path, on_progress: OnProgress = lambda *_: None) -> dict[str, Any]:
        """Send a file through the broker. Raises :class:`UploadFailedError`."""
        headers = self._headers() | {
            "Content-Type": mimetypes.guess_type(path.name)[0] or "application/octet-stream",
            "Content-Disposition": f"attachment; filename*=UTF-8''{_quoted(path.name)}",
        }
        with _opened(path) as file:
            headers["Content-Length"] = str(os.fstat(file.fileno()).st_size)
            if self.signer:
                headers["Content-Digest"] = _digest(file)
            body = _unchanging(file, on_progress)
            url = self._address("/proxy/upload")
            return _post(url, "file_id", content=body, headers=headers, auth=self.signer)

    def mint(self, **asked: Any) -> dict[str, Any]:
        """A token, as ``POST /token`` answers it. Raises :class:`UploadFailedError`."""
        url = self._address("/token")
        return _post(url, "access_token", json=asked, headers=self._headers(), auth=self.signer)

    def upload_by_token(self, path: Path, **asked: Any) -> dict[str, Any]:
        """What a browser does: mint a token, and go the way that its answer names."""
        token = self.mint(size=path.stat().st_size, file_name=path.name, **asked)
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        if self.origin:
            headers["Origin"] = self.origin
        is_direct = token["route"] == "direct"
        with _opened(path) as file:
            form = {token["field"]: (path.name, file)}
            answer = _post(
                token["upload_url"], "data" if is_direct else "file_id", files=form, headers=headers
            )
        file_id = answer["data"]["id"] if is_direct else answer["file_id"]
        return {"file_id": file_id, "route": token["route"], "reason": token["reason"]}

    def _address(self, path: str) -> str:
        if _CREDENTIALS.search(self.url):  # which httpx would send in the key's place
            raise UploadFailedError("The broker's address has a password or a name in it. Leave that out.")
        return self.url.rstrip("/") + path

    def _headers(self) -> dict[str, str]:
        origin = {"Origin": self.origin} if self.origin else {}
        if self.signer:
            if not self.signer.is_well_formed:
                raise UploadFailedError("The key's id or its signing secret has characters that none has.")
            return origin
        key = self.api_key.strip()
        if not _KEY.fullmatch(key):
            raise UploadFailedError("The API key has characters that no key has. Copy it again, whole.")
        return {"Authorization": f"Bearer {key}", **origin}


def _quoted(name: str) -> str:
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        raise UploadFailedError("The file's name is not UTF-8. Rename the file.") from None


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        # Asked before it is opened: opening a pipe would wait for whoever writes to it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UploadFailedError("This is not a file with a size of its own.")
        file = path.open("rb")
    except OSError as error:
        raise UploadFailedError(f"The file can't be read ({error.strerror}).") from error
    with file:
        yield file


def _unchanging(file: BufferedReader, on_progress: OnProgress) -> Iterator[bytes]:
    """The file's bytes; the last of them only when it is still the file that it was at first.

    Whoever still writes to it would else have half of it stored and be told that all is well.
    """
    before, sent = _state(file), 0
    size = before[0]
    while sent < size:
        chunk = _read(file, min(CHUNK_BYTES, size - sent))
        sent += len(chunk)
        if not chunk or (sent == size and _state(file) != before):
            raise UploadFailedError(
                "The file changed while it was read, so nothing was stored. Send it again once it is at rest."
            )
        yield chunk
        on_progress(sent, size)


def _digest(file: BufferedReader) -> str:
    try:
        return file_digest(file)
    except OSError as error:
        raise UploadFailedError(f"The file can't be read ({error.strerror}).") from error


def _state(file: BufferedReader) -> tuple[int, int]:
    now = os.fstat(file.fileno())
    return now.st_size, now.st_mtime_ns


def _read(file: BufferedReader, size: int) -> bytes:
    try:
        return file.read(size)
    except OSError as error:
        raise UploadFailedError(f"The file can't be read ({error.strerror}).") from error


def _post(url: str, expected: str, **request: Any) -> dict[str, Any]:
    """The answer to a POST, which must be a success and have ``expected`` in it."""
    try:
        with httpx.Client(timeout=TIMEOUT, trust_env=False) as client:
            response = client.post(url, **request)
    except _NEVER_BEGAN as error:
        raise UploadFailedError(f"{url} can't be reached: {error}") from error
    except httpx.HTTPError as error:
        raise UploadFailedError(f"The connection to {url} broke before an answer came: {error}") from error
    return _checked(response, expected)


def _checked(response: httpx.Response, expected: str) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise UploadFailedError(
            f"{response.url} answered {response.status_code} without JSON. Is it a broker's address?"
        )
    if response.status_code != 200 or answer.get("code", 0) != 0:  # noqa: PLR2004 - HTTP's own
        raise UploadFailedError(_sentence(response, answer))
    if expected not in answer:
        raise UploadFailedError(f"{response.url} answered without a {expected}. Is it a broker's address?")
    return answer


def _sentence(response: httpx.Response, answer: dict[str, Any]) -> str:
    """The broker's ``detail``, or Coze's ``msg``: Coze's own ``detail`` is an object."""
    said = next((answer[name] for name in ("detail", "msg") if isinstance(answer.get(name), str)), "")
    request_id = response.headers.get("x-request-id") or response.headers.get("x-tt-logid") or "-"
    return (
        f"{said or 'No reason was given.'} "
        f"({answer.get('code')}, status {response.status_code}, request {request_id})"
    )
