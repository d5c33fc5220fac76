"""/keys: make, list, show, change, rotate and revoke API keys. For servers, with the scope ``keys:admin``."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.api.administration import administered_keys, rules_told
from broker.api.bodies import has_body, read_json, read_query
from broker.api.rendering import NO_STORE
from broker.api.services import services
from broker.auth.api_keys import ApiKey, ApiKeys
from broker.auth.key_format import KeyKind
from broker.auth.rights import KeyLimits, Rights
from broker.errors import InvalidRequest, NotFound
from broker.settings.fields import MAX_GRACE_SECONDS

MAX_PAGE = 500
NO_SUCH_KEY = "There is no key with this id."
_STRICT = ConfigDict(extra="forbid", strict=True)


class LimitsBody(BaseModel):
    """How much in a window, and at once; null leaves it to the settings, 0 sets no bound."""

    model_config = _STRICT

    requests: int | None = None
    bytes: int | None = None
    window_seconds: int | None = None
    inflight_uploads: int | None = None


class RightsBody(BaseModel):
    """The bounds of a key; null, or an empty list, sets none."""

    model_config = _STRICT

    bots: tuple[str, ...] | None = None
    workflows: tuple[str, ...] | None = None
    content_types: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    max_bytes: int | None = None
    limits: LimitsBody | None = None

    def applied_to(self, rights: Rights) -> Rights:
        """The rights with what was said in place of what was (RFC 7396)."""
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set - {"limits"}}
        unbound = {name: () for name, value in given.items() if value is None and name != "max_bytes"}
        limits = rights.limits
        if "limits" in self.model_fields_set:
            limits = (
                replace(limits, **self.limits.model_dump(exclude_unset=True)) if self.limits else KeyLimits()
            )
        return replace(rights, **{**given, **unbound, "limits": limits})


class NewKey(BaseModel):
    """A key to be made."""

    model_config = _STRICT

    name: str
    kind: KeyKind = "secret"
    owner: str = ""
    scopes: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    expires_at: int = 0
    rights: RightsBody = RightsBody()


class KeyChange(BaseModel):
    """What is to be another of a key; what is left out stays as it is."""

    model_config = _STRICT

    name: str = ""
    owner: str = ""
    scopes: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    expires_at: int = 0
    rights: RightsBody = RightsBody()

    def applied_to(self, key: ApiKey) -> ApiKey:
        """The key with what was said in place of what was."""
        given: dict[str, Any] = {name: getattr(self, name) for name in self.model_fields_set - {"rights"}}
        return replace(key, **given, rights=self.rights.applied_to(key.rights))


class Rotation(BaseModel):
    """How long the old secret is to work on."""

    model_config = _STRICT

    grace_seconds: int | None = Field(default=None, ge=0, le=MAX_GRACE_SECONDS)


class ListQuery(BaseModel):
    """Which keys to list, and from where."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(default=None, max_length=200)
    owner: str | None = Field(default=None, max_length=200)
    kind: KeyKind | None = None
    active: Literal["true", "false"] = "false"


class Keys(HTTPEndpoint):
    """``/keys``."""

    async def get(self, request: Request) -> JSONResponse:
        """A page of the keys, masked, the oldest first."""
        store = await administered_keys(request)
        asked = read_query(request, ListQuery)
        with rules_told():
            page = await store.list(
                limit=asked.limit,
                cursor=asked.cursor,
                owner=asked.owner,
                kind=asked.kind,
                active_only=asked.active == "true",
            )
        return _answer({"keys": [_described(key) for key in page.keys], "next_cursor": page.next_cursor})

    async def post(self, request: Request) -> JSONResponse:
        """Make a key. Its secrets are in this answer and in no other."""
        store = await administered_keys(request)
        asked = await read_json(request, NewKey)
        plain = {name: getattr(asked, name) for name in NewKey.model_fields if name != "rights"}
        with rules_told():
            key, secret = await store.create(**plain, rights=asked.rights.applied_to(Rights()))
        return _answer(_with_secrets(store, key, secret), 201, Location=f"/keys/{key.id}")


class Key(HTTPEndpoint):
    """``/keys/{key_id}``."""

    async def get(self, request: Request) -> JSONResponse:
        """A key, masked."""
        store = await administered_keys(request)
        return _answer(_described(await _found(store, _id(request))))

    async def patch(self, request: Request) -> JSONResponse:
        """Change a key; it is checked as a whole."""
        store = await administered_keys(request)
        asked = await read_json(request, KeyChange)
        if not asked.model_fields_set:
            raise InvalidRequest(f"Say what to change: {', '.join(KeyChange.model_fields)}.")
        with rules_told():
            return _answer(_described(await store.update(_id(request), asked.applied_to)))

    async def delete(self, request: Request) -> JSONResponse:
        """Revoke a key, on every worker at once; the answer is the same if it was revoked before."""
        store = await administered_keys(request)
        await store.revoke(_id(request))
        return _answer(_described(await _found(store, _id(request))))


async def rotate(request: Request) -> JSONResponse:
    """Give a key a new secret, which is in this answer and in no other; the old one works on for a while."""
    store = await administered_keys(request)
    asked = await read_json(request, Rotation) if has_body(request) else Rotation()
    grace = asked.grace_seconds
    if grace is None:
        grace = services(request).settings.broker_rotation_grace_seconds
    with rules_told():
        key, secret = await store.rotate(_id(request), grace_seconds=grace)
    return _answer(_with_secrets(store, key, secret))


async def _found(store: ApiKeys, key_id: str) -> ApiKey:
    key = await store.find(key_id)
    if key is None:
        raise NotFound(NO_SUCH_KEY)
    return key


def _id(request: Request) -> str:
    return str(request.path_params["key_id"])


def _described(key: ApiKey) -> dict[str, Any]:
    return key.described(time.time())


def _with_secrets(store: ApiKeys, key: ApiKey, secret: str) -> dict[str, Any]:
    signing_secret = store.hashing.shown_signing_secret(secret)
    shown = {} if signing_secret is None else {"signing_secret": signing_secret}
    return {"id": key.id, "key": secret, **shown, **_described(key)}


def _answer(content: dict[str, Any], status: int = 200, **headers: str) -> JSONResponse:
    return JSONResponse(content, status, headers={**NO_STORE, **headers})
