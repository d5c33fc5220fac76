"""API keys on the paths where Coze Studio's console manages personal access tokens.

The same keys as at ``/keys``, in Coze's words and envelope. Studio knows its user by a session cookie; here
the caller is an API key with the scope ``keys:admin``, as everywhere else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.api.administration import administered_keys, rules_told
from broker.api.bodies import read_json, read_query
from broker.api.rendering import NO_STORE
from broker.auth import coze_permissions
from broker.auth.api_keys import ApiKey
from broker.auth.key_rules import MAX_EXPIRES_AT
from broker.errors import InvalidRequest, NotFound

DAY_SECONDS = 86_400
MAX_DAYS = 36_500
DEFAULT_PAGE, MAX_PAGE, MAX_PAGES = 100, 500, 1_000_000
NEVER = -1
"""How Coze writes a time that there is none of: no expiry, no use yet."""
NO_SUCH_TOKEN = "There is no token with this id."  # noqa: S105 - a sentence
ALL_WORKSPACES = 2
INT64_DIGITS = 19


def _whole_number(value: Any) -> Any:
    """Coze's clients send 64-bit numbers as strings, too: JavaScript would round them."""
    if not isinstance(value, str) or len(value) > INT64_DIGITS:
        return value
    return int(value) if value.isascii() and value.removeprefix("-").isdecimal() else value


Time = Annotated[int, BeforeValidator(_whole_number), Field(ge=NEVER, le=MAX_EXPIRES_AT)]
# What other versions of the console send along is passed over, as Studio does.
_OPEN = ConfigDict(extra="ignore", strict=True)


class ResourceActions(BaseModel):
    """Permissions as the older consoles name them."""

    model_config = _OPEN

    resource_type: str = ""
    actions: tuple[str, ...]


class AccountPermission(BaseModel):
    """What a token may do in the account."""

    model_config = _OPEN

    permission_list: tuple[str, ...]


class WorkspacePermission(BaseModel):
    """What a token may do in workspaces: in those of the list (option 1), or in all (option 2)."""

    model_config = _OPEN

    option: Literal[1, 2]
    workspace_id_list: tuple[str, ...] | None = None
    permission_list: tuple[str | ResourceActions, ...]


class Permissions(BaseModel):
    """The ways in which Coze's consoles name what a token may do; Studio's names nothing."""

    model_config = _OPEN

    account_permission: AccountPermission | None = None
    workspace_permission: WorkspacePermission | None = None
    workspace_permission_v2: WorkspacePermission | None = None

    def scopes(self) -> tuple[str, ...] | None:
        """The scopes that were asked for; None when nothing was. Raises :class:`InvalidRequest`."""
        in_workspaces = [each for each in (self.workspace_permission, self.workspace_permission_v2) if each]
        if self.account_permission is None and not in_workspaces:
            return None
        if any(each.option != ALL_WORKSPACES for each in in_workspaces):
            raise InvalidRequest(
                "A token of the broker's can't be bound to workspaces. Choose all of them (option 2), "
                "or make a key that is bound to agents at /keys."
            )
        found = coze_permissions.scopes_for(self._names(in_workspaces))
        if not found:
            known = [*coze_permissions.ACCOUNT, *coze_permissions.WORKSPACE]
            raise InvalidRequest(f"None of these permissions means anything here. Known: {', '.join(known)}.")
        return found

    def _names(self, in_workspaces: list[WorkspacePermission]) -> Iterator[str]:
        yield from self.account_permission.permission_list if self.account_permission else ()
        for each in in_workspaces:
            for named in each.permission_list:
                yield from (named,) if isinstance(named, str) else named.actions


class NewToken(Permissions):
    """A token to be made."""

    name: str
    expire_at: Time = 0
    duration_day: str = ""

    def expires_at(self, now: float) -> int:
        """Unix seconds, 0 for never. Raises :class:`InvalidRequest` when nobody said when."""
        if self.duration_day == "permanent":
            return 0
        if self.duration_day in ("", "customize") and self.expire_at:
            return 0 if self.expire_at == NEVER else self.expire_at
        days = self.duration_day if len(self.duration_day) <= len(str(MAX_DAYS)) else ""
        if days.isascii() and days.isdecimal() and 0 < int(days) <= MAX_DAYS:
            return int(now) + int(days) * DAY_SECONDS
        raise InvalidRequest(
            "Say when the token expires: duration_day is a number of days or 'permanent', "
            "or 'customize' with expire_at in Unix seconds."
        )


class ChangedToken(Permissions):
    """What is to be another of a token."""

    id: str
    name: str | None = None

    def applied_to(self, key: ApiKey) -> ApiKey:
        """The key with its new name and scopes; those that Coze has no name for are kept."""
        scopes = self.scopes()
        if scopes is None:
            scopes = key.scopes
        else:
            scopes += coze_permissions.without_name(key.scopes)
        return replace(key, name=key.name if self.name is None else self.name, scopes=scopes)


class TokenId(BaseModel):
    """Which token."""

    model_config = _OPEN

    id: str


class ListQuery(BaseModel):
    """Which page; 0 and 1 are the first, as in Studio."""

    model_config = ConfigDict(extra="ignore")

    page: int = Field(default=1, ge=0, le=MAX_PAGES)
    size: int = Field(default=DEFAULT_PAGE, ge=0, le=MAX_PAGE)


async def create(request: Request) -> JSONResponse:
    """Make a token. It is in this answer and in no other."""
    store = await administered_keys(request)
    asked = await read_json(request, NewToken)
    scopes = asked.scopes() or coze_permissions.DEFAULT_SCOPES
    with rules_told():
        key, secret = await store.create(
            name=asked.name, scopes=scopes, expires_at=asked.expires_at(time.time())
        )
    return _answer({"personal_access_token": _token(key), "token": secret})


async def list_(request: Request) -> JSONResponse:
    """The tokens that are not deleted, the newest first."""
    store = await administered_keys(request)
    asked = read_query(request, ListQuery)
    size, before = asked.size or DEFAULT_PAGE, max(asked.page - 1, 0)
    page = await store.newest(limit=size, offset=before * size)
    tokens = [{**_token(key), **_creator(key)} for key in page.keys]
    return _answer({"personal_access_tokens": tokens, "has_more": page.next_cursor is not None})


async def get(request: Request) -> JSONResponse:
    """A token, and what it may do."""
    store = await administered_keys(request)
    key = await store.find(read_query(request, TokenId).id)
    if key is None or key.revoked_at is not None:
        raise NotFound(NO_SUCH_TOKEN)
    account = coze_permissions.names_for(key.scopes, coze_permissions.ACCOUNT)
    workspace = coze_permissions.names_for(key.scopes, coze_permissions.WORKSPACE)
    return _answer(
        {
            "personal_access_token": _token(key),
            "account_permission": {"permission_list": account},
            "workspace_permission_v2": {
                "option": ALL_WORKSPACES,
                "workspace_id_list": [],
                "permission_list": workspace,
            },
        }
    )


async def update(request: Request) -> JSONResponse:
    """Change a token's name, and what it may do where that is said."""
    store = await administered_keys(request)
    asked = await read_json(request, ChangedToken)
    with rules_told():
        await store.update(asked.id, asked.applied_to)
    return _answer(None)


async def delete(request: Request) -> JSONResponse:
    """Revoke a token; it is in no list here from now on."""
    store = await administered_keys(request)
    asked = await read_json(request, TokenId)
    if not await store.revoke(asked.id):
        raise NotFound(NO_SUCH_TOKEN)
    return _answer(None)


def _token(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "created_at": key.created_at,
        "updated_at": key.updated_at,
        "last_used_at": key.last_used_at or NEVER,
        "expire_at": key.expires_at or NEVER,
    }


def _creator(key: ApiKey) -> dict[str, Any]:
    return {
        "creator_name": key.owner,
        "creator_unique_name": key.owner,
        "creator_avatar_url": "",
        "creator_icon_url": "",
        "locked": False,
        "creator_status": "active",
    }


def _answer(data: dict[str, Any] | None) -> JSONResponse:
    content: dict[str, Any] = {"code": 0, "msg": ""}
    return JSONResponse(content if data is None else {**content, "data": data}, headers=NO_STORE)
