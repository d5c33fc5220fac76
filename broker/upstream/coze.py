"""Coze's files: store one, look one up."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx

from broker.errors import (
    OutcomeUnknown,
    UpstreamBadAnswer,
    UpstreamCredentialRefused,
    UpstreamCredentialReplaced,
    UpstreamFailed,
)
from broker.transfer.multipart import Envelope
from broker.transfer.outgoing import OutgoingBody
from broker.upstream.answers import SAID_YES, Answer, Call, is_of_credential, judge
from broker.upstream.client import CLIENT_ERRORS, Answered, call, refusal_for, timed_call
from broker.upstream.guard import Budget, Guard
from broker.upstream.oauth import Credential

UPLOAD_PATH = "/v1/files/upload"
RETRIEVE_PATH = "/v1/files/retrieve"


@dataclass(frozen=True)
class StoredFile:
    """What Coze says of a file that it has. ``created_at`` in Unix seconds."""

    file_id: str
    file_name: str
    size: int
    created_at: int
    logid: str | None


class CozeFiles:
    """The files of the account that the broker's credential belongs to."""

    def __init__(self, client: httpx.AsyncClient, credential: Credential, guard: Guard) -> None:
        self._client = client
        self._credential = credential
        self._guard = guard

    @property
    def has_credential(self) -> bool:
        """Whether ``authorization`` needs nothing of Coze's."""
        return self._credential.is_here

    async def authorization(self, budget: Budget) -> str:
        """The credential, fetched before a byte of a file is asked for."""
        return await self._credential.get(budget)

    async def upload(self, body: OutgoingBody, envelope: Envelope, authorization: str) -> StoredFile:
        """Send a file and return what Coze says of it.

        Succeeds only when Coze confirms as many bytes as were sent. Raises the refusal that fits.
        """
        headers = {**_bearer(authorization), "Content-Type": envelope.content_type}
        if body.content_length is not None:
            headers["Content-Length"] = str(body.content_length)
        answer = await self._upload(body, headers, authorization)
        stored = _stored_file(answer)
        if body.sent != "all" or stored.size != body.file_bytes:
            log = f"Coze confirmed {stored.size} bytes of {body.file_bytes}, sent: {body.sent}"
            raise UpstreamBadAnswer(log=log, logid=answer.logid, reply=SAID_YES)
        return stored

    async def retrieve(self, file_id: str) -> StoredFile:
        """What Coze knows of a file. Asked again where that may help, once with another access token.

        Raises :class:`~broker.errors.NotFound` when it knows nothing.
        """
        budget = self._guard.budget()
        try:
            return await self._retrieve(file_id, budget)
        except UpstreamCredentialRefused as refusal:
            if not refusal.is_replaced:
                raise
            if budget.is_over:
                raise UpstreamCredentialReplaced(
                    "Coze refused the broker's access token, and it was replaced. Ask again.",
                    log=refusal.log,
                    logid=refusal.logid,
                    reply=refusal.reply,
                ) from refusal
        return await self._retrieve(file_id, budget)

    async def _retrieve(self, file_id: str, budget: Budget) -> StoredFile:
        authorization = await self._credential.get(budget)

        async def once() -> StoredFile:
            return await self._look_up(file_id, authorization)

        return await self._guard.repeated_call(once, budget)

    async def _look_up(self, file_id: str, authorization: str) -> StoredFile:
        try:
            answered = await timed_call(
                self._client,
                "GET",
                RETRIEVE_PATH,
                params={"file_id": file_id},
                headers=_bearer(authorization),
            )
        except CLIENT_ERRORS as error:
            raise refusal_for(error) from error
        return _stored_file(self._judge("lookup", answered, authorization))

    async def _upload(self, body: OutgoingBody, headers: dict[str, str], authorization: str) -> Answer:
        try:
            answered = await call(
                self._client,
                "POST",
                UPLOAD_PATH,
                content=body,
                headers=headers,
                timeout=_paced(self._client.timeout),
            )
        except CLIENT_ERRORS as error:
            raise _real_cause(body, error) from error
        try:
            return self._judge("upload", answered, authorization)
        except OutcomeUnknown as unknown:
            if body.sent == "all":
                raise
            raise UpstreamFailed(log=unknown.log, logid=unknown.logid, reply=unknown.reply) from unknown

    def _judge(self, asked: Call, answered: Answered, authorization: str) -> Answer:
        try:
            answer = judge(asked, answered.status, answered.headers, answered.content)
        except UpstreamCredentialRefused as refusal:
            # A token that Coze knows, and finds a permission missing in, would come back the same.
            refusal.is_replaced = is_of_credential(refusal) and self._credential.forget(authorization)
            raise
        self._credential.taken(authorization)
        return answer


def _bearer(authorization: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {authorization}"}


def _paced(timeout: httpx.Timeout) -> httpx.Timeout:
    """An upload's waiting is timed step by step by its own pace, all but the connecting."""
    return httpx.Timeout(None, connect=timeout.connect)


def _real_cause(body: OutgoingBody, error: Exception) -> BaseException:
    """The transport shows an error of the body's as one of its own."""
    if isinstance(body.failure, Exception):
        return body.failure
    return refusal_for(error, body.sent)


def _stored_file(answer: Answer) -> StoredFile:
    data = answer.body.get("data")
    try:
        return StoredFile(logid=answer.logid, **_fields(data if isinstance(data, dict) else {}))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UpstreamBadAnswer(log=f"no file in the answer: {error!r}", logid=answer.logid) from error


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    """Coze Studio writes ``CreatedAt`` where Coze writes ``created_at``."""
    created_at = data.get("created_at", data.get("CreatedAt"))
    if not isinstance(data["id"], str) or not data["id"]:
        raise ValueError("id")
    return {
        "file_id": data["id"],
        "file_name": str(data.get("file_name", "")),
        "size": int(data["bytes"]),
        "created_at": int(created_at or time.time()),
    }
