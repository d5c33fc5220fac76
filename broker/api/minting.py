"""What becomes of a request for a token: a route, by the policy, and the credential that it needs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from broker.api.services import Services
from broker.api.token_request import TokenRequest
from broker.auth.caller import Caller
from broker.auth.scopes import FILES_UPLOAD
from broker.errors import InvalidRequest, Refusal, TypeNotGranted, UpstreamDown
from broker.observe import events, logs
from broker.transfer import filenames
from broker.transfer.multipart import FILE_FIELD, media_type
from broker.transfer.policy import Route, too_large
from broker.upstream.coze import UPLOAD_PATH

PROXY_PATH = "/proxy/upload"
COMPLETE_PATH = "/uploads/{id}/complete"
DIRECT_TOKEN_SECONDS = 10.0
"""How long a page waits for a direct token before its file goes through the broker instead."""
DIRECT_RETRY_SECONDS = 2.0
"""How long of it may go into asking Coze again."""


@dataclass(frozen=True)
class Minting:
    """One request for a token, held against what its caller and the policy allow."""

    broker: Services
    caller: Caller
    asked: TokenRequest
    epoch: str

    async def answer(self) -> dict[str, Any]:
        """The token and all that goes with it. Raises a refusal for what is not granted.

        While Coze is down that is 503 with ``Retry-After``, for either route: whoever holds a token sends its
        file, and would learn only then, with the file half sent, that it can't get there.
        """
        policy = self.broker.policy
        check_rights(self.caller, self.asked)
        self._check_uses()
        is_sensitive = self._is_sensitive()
        ttl_seconds = policy.ttl_seconds(self.asked.ttl_seconds)
        route, reason = policy.route(
            size=self.asked.size,
            sensitive=is_sensitive,
            wish=self.asked.route,
            bound_to_types=bool(self.caller.rights.content_types),
        )
        self.broker.guard.check()
        if route == "direct":
            direct = await self._try_direct(ttl_seconds)
            if direct is not None:
                return {"route": route, "reason": reason, **direct}
            self.broker.guard.check()  # that may have been the failure that opened it
            reason = "direct_unavailable"
        return {"route": "proxy", "reason": reason, **self._proxy(ttl_seconds, is_sensitive=is_sensitive)}

    @property
    def subject(self) -> str:
        """Whom the token is for."""
        return self.caller.subject or self.caller.key_id

    def _check_uses(self) -> None:
        most = self.broker.settings.broker_token_max_uses
        if self.asked.uses > most:
            raise InvalidRequest(f"A token may be good for {most} uploads at most. Ask for that or less.")

    def _is_sensitive(self) -> bool:
        """By its caller's word, or by name or type. Raises a refusal for a name that can't be one."""
        asked, policy = self.asked, self.broker.policy
        name = None if asked.file_name is None else filenames.clean(asked.file_name)
        if name is not None:
            policy.file_types.check_name(name)
        is_sensitive = asked.sensitive or policy.sensitivity.marks(name, asked.content_type)
        events.current().sensitive = is_sensitive
        return is_sensitive

    async def _try_direct(self, ttl_seconds: int) -> dict[str, Any] | None:
        """None when Coze gives no token: the file can still go through the broker, unless Coze is down."""
        try:
            return await self._direct(ttl_seconds)
        except UpstreamDown:
            raise  # for the upload it is so, too
        except Refusal as trouble:
            why = f"{trouble.code}: {trouble.log}"
            events.current().log = f"no direct token: {why}"
            logs.warning("no direct token", detail=why)
            return None

    async def _direct(self, ttl_seconds: int) -> dict[str, Any]:
        broker = self.broker
        assert broker.browser_app is not None  # noqa: S101 - the policy sends nothing direct without one
        token = await broker.exchange.exchange(
            broker.browser_app,
            duration_seconds=ttl_seconds,
            budget=broker.guard.budget(DIRECT_RETRY_SECONDS),
            max_seconds=DIRECT_TOKEN_SECONDS,
        )
        expires_in = token.expires_at - int(time.time())
        upload_url = broker.settings.coze_api_base + UPLOAD_PATH
        granted = _answer(upload_url, token.value, token.expires_at, expires_in, self.asked.size)
        return {**granted, **self._completion(token.expires_at)}

    def _completion(self, expires_at: int) -> dict[str, Any]:
        """What a page needs to get a receipt for a file that went past the broker."""
        asked, broker = self.asked, self.broker
        text, token = broker.completions.mint(
            subject=self.subject,
            key_id=self.caller.key_id,
            expires_at=expires_at + broker.settings.broker_upload_max_seconds,
            size=asked.size,
            file_name=None if asked.file_name is None else filenames.clean(asked.file_name),
            origin=self.caller.origin,
        )
        self._note(token.upload_id)
        complete_url = broker.settings.public_url + COMPLETE_PATH.format(id=token.upload_id)
        return {"upload_id": token.upload_id, "complete_url": complete_url, "complete_token": text}

    def _proxy(self, ttl_seconds: int, *, is_sensitive: bool) -> dict[str, Any]:
        asked, broker = self.asked, self.broker
        text, token = broker.tokens.mint(
            subject=self.subject,
            key_id=self.caller.key_id,
            ttl_seconds=ttl_seconds,
            upload_max_seconds=broker.settings.broker_upload_max_seconds,
            max_bytes=asked.size,
            content_types=self._content_types(),
            origin=self.caller.origin,
            sha256=asked.sha256,
            sensitive=is_sensitive,
            uses=asked.uses,
            epoch=self.epoch,
        )
        self._note(token.jti)
        upload_url = broker.settings.public_url + PROXY_PATH
        return {
            **_answer(upload_url, text, token.expires_at, ttl_seconds, asked.size),
            "finish_by": token.finish_by,
            "uses": token.uses,
        }

    def _content_types(self) -> tuple[str, ...] | None:
        """The one that was asked for; else those that the key allows."""
        if self.asked.content_type:
            return (media_type(self.asked.content_type),)
        return self.caller.rights.content_types or None

    def _note(self, token_id: str) -> None:
        event = events.current()
        event.token_id, event.subject = token_id, self.subject


def check_rights(caller: Caller, asked: TokenRequest) -> None:
    """Raises a refusal for what the caller's key does not allow, whatever the policy says."""
    largest = caller.rights.max_bytes
    if largest is not None and asked.size > largest:
        raise too_large(largest)
    if asked.content_type and not caller.rights.allows_type(media_type(asked.content_type)):
        raise TypeNotGranted(f"This key is for {', '.join(caller.rights.content_types)}.")


def note_answer(answer: dict[str, Any], asked: TokenRequest) -> None:
    """Write into the request's record what was granted."""
    event = events.current()
    event.bytes_declared = asked.size
    route: Route = answer["route"]
    event.route, event.reason = route, answer["reason"]


def _answer(
    upload_url: str, access_token: str, expires_at: int, expires_in: int, max_bytes: int
) -> dict[str, Any]:
    return {
        "upload_url": upload_url,
        "access_token": access_token,
        "token_type": "Bearer",
        "expires_in": expires_in,
        "expires_at": expires_at,
        "scope": FILES_UPLOAD,
        "max_bytes": max_bytes,
        "field": FILE_FIELD,
    }
