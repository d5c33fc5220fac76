"""POST /token: a short-lived, narrow credential for one upload, and the way it is to go."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.api.bodies import read_json
from broker.api.rendering import NO_STORE
from broker.api.services import Services, services
from broker.auth.api_keys import ApiKey
from broker.auth.scopes import FILES_UPLOAD, TOKEN_MINT
from broker.errors import OriginNotAllowed, Refusal, SubjectNotAllowed
from broker.observe import events, logs
from broker.settings import is_origin
from broker.transfer import filenames
from broker.transfer.multipart import FILE_FIELD, media_type
from broker.transfer.policy import RouteWish
from broker.upstream.coze import UPLOAD_PATH

PROXY_PATH = "/proxy/upload"
DIRECT_TOKEN_SECONDS = 10.0
"""How long a page waits for a direct token before its file goes through the broker instead."""
# RFC 6838 §4.2: a type and a subtype, each of restricted characters; parameters may follow.
MEDIA_TYPE = r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}(\s*;.{0,200})?$"


class TokenRequest(BaseModel):
    """What a caller says of the upload that it needs a token for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    size: int = Field(ge=0)
    file_name: str | None = Field(default=None, min_length=1, max_length=10_000)
    content_type: Annotated[str, StringConstraints(pattern=MEDIA_TYPE)] | None = None
    sensitive: bool = False
    subject: str | None = Field(default=None, min_length=1, max_length=200)
    route: RouteWish = "auto"
    ttl_seconds: int | None = Field(default=None, ge=1)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


async def mint(request: Request) -> JSONResponse:
    """Authenticate, let the policy choose the route, mint the token that the route needs."""
    broker = services(request)
    key = await broker.authenticator.api_key(request.headers, TOKEN_MINT)
    asked = await read_json(request, TokenRequest)
    answer = await _mint(broker, key, asked, _origin(request))
    event = events.current()
    event.route, event.reason, event.bytes_declared = answer["route"], answer["reason"], asked.size
    return JSONResponse(answer, headers=NO_STORE)


def _origin(request: Request) -> str | None:
    """The page that asks, if it is one; its token will be good for that origin alone."""
    origin = request.headers.get("origin")
    if origin is not None and not is_origin(origin):
        raise OriginNotAllowed("The Origin header is not an origin that a token could be bound to.")
    return origin


async def _mint(broker: Services, key: ApiKey, asked: TokenRequest, origin: str | None) -> dict[str, Any]:
    if key.kind == "publishable" and asked.subject is not None:
        raise SubjectNotAllowed
    asked = _marked(broker, asked)
    ttl_seconds = broker.policy.ttl_seconds(asked.ttl_seconds)
    route, reason = broker.policy.route(size=asked.size, sensitive=asked.sensitive, wish=asked.route)
    if route == "direct":
        try:
            async with asyncio.timeout(DIRECT_TOKEN_SECONDS):
                return {"route": route, "reason": reason, **await _direct(broker, asked, ttl_seconds)}
        except (Refusal, TimeoutError) as trouble:
            # The file can still go through the broker, and the answer says why it does.
            _note_no_direct_token(trouble)
    reason = "direct_unavailable" if route == "direct" else reason
    return {"route": "proxy", "reason": reason, **_proxy(broker, key, asked, ttl_seconds, origin)}


def _marked(broker: Services, asked: TokenRequest) -> TokenRequest:
    """The request, sensitive also where the policy says so. Raises a refusal for a name that can't be one."""
    name = None if asked.file_name is None else filenames.clean(asked.file_name)
    if name is not None:
        broker.policy.file_types.check_name(name)
    sensitive = asked.sensitive or broker.policy.sensitivity.marks(name, asked.content_type)
    events.current().sensitive = sensitive
    return asked.model_copy(update={"sensitive": sensitive})


def _note_no_direct_token(trouble: Refusal | TimeoutError) -> None:
    why = f"{trouble.code}: {trouble.log}" if isinstance(trouble, Refusal) else "Coze took too long"
    events.current().log = f"no direct token: {why}"
    logs.warning("no direct token", detail=why)


async def _direct(broker: Services, asked: TokenRequest, ttl_seconds: int) -> dict[str, Any]:
    assert broker.browser_app is not None  # noqa: S101 - the policy sends nothing direct without one
    token = await broker.exchange.exchange(broker.browser_app, duration_seconds=ttl_seconds)
    upload_url = broker.settings.coze_api_base + UPLOAD_PATH
    return _answer(upload_url, token.value, token.expires_at, token.expires_at - int(time.time()), asked.size)


def _proxy(
    broker: Services, key: ApiKey, asked: TokenRequest, ttl_seconds: int, origin: str | None
) -> dict[str, Any]:
    text, token = broker.tokens.mint(
        subject=asked.subject or key.id,
        key_id=key.id,
        ttl_seconds=ttl_seconds,
        upload_max_seconds=broker.settings.broker_upload_max_seconds,
        max_bytes=asked.size,
        content_types=(media_type(asked.content_type),) if asked.content_type else None,
        origin=origin,
        sha256=asked.sha256,
        sensitive=asked.sensitive,
    )
    event = events.current()
    event.token_id, event.subject = token.jti, token.subject
    return _answer(broker.settings.public_url + PROXY_PATH, text, token.expires_at, ttl_seconds, asked.size)


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
