"""Clients, good and bad, on sockets of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any, Literal

from tests.soak.bodies import MORE_BYTES, Leaves, body, head
from tests.soak.plan import Upload
from tests.support.broker_process import Broker

ANSWER_SECONDS = 30.0
"""Far beyond all that the broker waits for: who hears nothing for so long will hear nothing."""

Kind = Literal["stored", "refused", "failed"]


@dataclass(frozen=True)
class Answer:
    """What the broker said. ``body`` is empty when it was no JSON."""

    status: int
    request_id: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What an upload came to, as its client sees it; without an answer it failed."""

    upload: Upload
    answer: Answer | None
    minted: Answer | None = None

    @property
    def kind(self) -> Kind:
        if self.answer is None:
            return "failed"
        return "stored" if self.answer.status == 200 and self.file_id else "refused"

    @property
    def file_id(self) -> str | None:
        said = self.answer.body if self.answer else {}
        return said.get("file_id") or (said.get("data") or {}).get("id")


class Clients:
    """Everyone who uploads to one broker."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._spent = ""
        """A token that was used up; sound uploads leave theirs behind."""

    async def upload(self, upload: Upload) -> Result:
        """Get a credential, send the file in the upload's manner, hear what came of it."""
        if not upload.by_token:
            key = self._broker.secret_key
            return Result(
                upload, await self._send(upload, f"{key[:-4]}none" if upload.manner == "has no key" else key)
            )
        minted = await self._mint(upload)
        if minted is None or minted.status != 200:
            return Result(upload, minted, minted)
        token = self._spent if upload.manner == "comes again" else minted.body["access_token"]
        result = Result(upload, await self._send(upload, token), minted)
        if result.kind == "stored" and upload.manner == "sound":
            self._spent = token
        return result

    async def _mint(self, upload: Upload) -> Answer | None:
        size = max(upload.size, 1) + (MORE_BYTES if upload.manner == "promises more" else 0)
        asked: dict[str, Any] = {"size": size, "route": "proxy", "subject": upload.name}
        if upload.manner == "outgrows its token":
            asked["size"] = upload.size - 1
        if upload.manner == "announces another":
            asked["sha256"] = "0" * 64
        content = json.dumps(asked).encode()
        lines = (
            "POST /token HTTP/1.1",
            "Host: broker.test",
            f"Authorization: Bearer {self._broker.secret_key}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        )
        async with _connected(self._broker.url) as (reader, writer):
            writer.write("\r\n".join([*lines, "", ""]).encode() + content)
            return await _heard(reader)

    async def _send(self, upload: Upload, credential: str) -> Answer | None:
        async with _connected(self._broker.url) as (reader, writer):
            hearing = asyncio.create_task(_heard(reader))
            sending = asyncio.create_task(_said(upload, credential, writer))
            try:
                # Whoever is answered while it sends stops sending.
                both = (hearing, sending)
                await asyncio.wait(both, timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and not sending.result():
                    return None
                return await asyncio.wait_for(hearing, ANSWER_SECONDS)
            except TimeoutError:
                return None
            finally:
                for task in (hearing, sending):
                    task.cancel()
                await asyncio.gather(hearing, sending, return_exceptions=True)


async def _said(upload: Upload, credential: str, writer: asyncio.StreamWriter) -> bool:
    """Send it all. False when the client has left, and waits for no answer."""
    try:
        writer.write(head(upload, credential))
        async for piece in body(upload):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # a refusal must be read while the file is sent, not after it
    except Leaves as leaving:
        await _leave(writer, leaving.how)
        return False
    except ConnectionError:
        pass  # the broker takes no more; it may have said why
    return True


async def _leave(writer: asyncio.StreamWriter, how: str) -> None:
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        if how == "RST":
            linger = struct.pack("ii", 1, 0)  # closing with a linger time of zero is what sends RST
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        elif how == "half-close":
            writer.write_eof()


async def _heard(reader: asyncio.StreamReader) -> Answer | None:
    """One answer; None when the connection ends before it is over."""
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        said = json.loads(content) if content else {}
        return Answer(int(lines[0].split()[1]), headers.get("x-request-id", ""), said)
    except (OSError, asyncio.IncompleteReadError, ValueError):
        return None


@contextlib.asynccontextmanager
async def _connected(url: str) -> Any:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
