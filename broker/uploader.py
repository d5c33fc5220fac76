"""A small client of the broker, for the command line and the demo."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

CHUNK_BYTES = 262_144
TIMEOUT = httpx.Timeout(60.0, read=600.0)

OnProgress = Callable[[int], None]


class UploadFailedError(Exception):
    """An upload that did not end in a ``file_id``; the message is for a person."""


@dataclass(frozen=True)
class BrokerClient:
    """Talks to the broker at ``url`` with an API key."""

    url: str
    api_key: str
    origin: str | None = None

    def upload(self, path: Path, on_progress: OnProgress = lambda _: None) -> dict[str, Any]:
        """Send a file through the broker; ``on_progress`` hears how many bytes went out so far.

        Raises :class:`UploadFailedError`, or ``OSError`` when the file can't be read.
        """
        with path.open("rb") as file, httpx.Client(timeout=TIMEOUT, trust_env=False) as client:
            headers = {
                **self._headers(),
                "Content-Type": mimetypes.guess_type(path.name)[0] or "application/octet-stream",
                "Content-Length": str(path.stat().st_size),
                "Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.name, safe='')}",
            }
            body = _read(file.read, on_progress)
            return _answer(lambda: client.post(f"{self.url}/proxy/upload", content=body, headers=headers))

    def mint(self, **asked: Any) -> dict[str, Any]:
        """A token, as ``POST /token`` answers it. Raises :class:`UploadFailedError`."""
        with httpx.Client(timeout=TIMEOUT, trust_env=False) as client:
            return _answer(lambda: client.post(f"{self.url}/token", json=asked, headers=self._headers()))

    def upload_by_token(self, path: Path, **asked: Any) -> dict[str, Any]:
        """What a browser does: mint a token, and go the way that its answer names."""
        token = self.mint(size=path.stat().st_size, file_name=path.name, **asked)
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        if self.origin:
            headers["Origin"] = self.origin
        with path.open("rb") as file, httpx.Client(timeout=TIMEOUT, trust_env=False) as client:
            form = {token["field"]: (path.name, file)}
            answer = _answer(lambda: client.post(token["upload_url"], files=form, headers=headers))
        file_id = answer["data"]["id"] if token["route"] == "direct" else answer["file_id"]
        return {"file_id": file_id, "route": token["route"], "reason": token["reason"]}

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}", **({"Origin": self.origin} if self.origin else {})}


def _read(read: Callable[[int], bytes], on_progress: OnProgress) -> Iterator[bytes]:
    sent = 0
    while chunk := read(CHUNK_BYTES):
        yield chunk
        sent += len(chunk)
        on_progress(sent)


def _answer(call: Callable[[], httpx.Response]) -> dict[str, Any]:
    try:
        response = call()
        answer = response.json()
    except httpx.HTTPError as error:
        raise UploadFailedError(f"The server can't be reached: {error}") from error
    except ValueError as error:
        raise UploadFailedError(f"The server answered {response.status_code} with no JSON.") from error
    if response.status_code != 200 or answer.get("code", 0) != 0:  # noqa: PLR2004
        raise UploadFailedError(_sentence(response, answer))
    return dict(answer)


def _sentence(response: httpx.Response, answer: dict[str, Any]) -> str:
    said = answer.get("detail") or answer.get("msg") or "no reason given"
    return f"{said} ({answer.get('code')}, status {response.status_code}, request {answer.get('request_id', '-')})"
