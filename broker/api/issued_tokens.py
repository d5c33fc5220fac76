"""Tokens that were minted: is one still good (RFC 7662), and taking them back (RFC 7009).

A caller learns of, and takes back, what was minted with its own key; with the scope ``keys:admin`` whatever
was minted with any.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.api import auditing, gate
from broker.api.bodies import read_small
from broker.api.rendering import NO_STORE
from broker.api.services import Services, services
from broker.auth.caller import Call, Caller
from broker.auth.scopes import FILES_UPLOAD, KEYS_ADMIN, TOKEN_MINT
from broker.auth.upload_tokens import AUDIENCE, UploadToken
from broker.errors import InvalidRequest, Refusal, UnsupportedMediaType, WrongScope
from broker.observe import events
from broker.state.audit.row import token_hash
from broker.state.generation import announce
from broker.transfer.multipart import media_type

FORM = "application/x-www-form-urlencoded"
MAX_SUBJECT_LENGTH = 255


async def introspect(request: Request) -> JSONResponse:
    """POST /token/introspect with ``token=…``: what a token grants, or only that it grants nothing."""
    broker = services(request)
    caller = await broker.authenticator.server(request, TOKEN_MINT)
    form = await _form(request)
    caller, _ = await gate.enter(broker, caller)
    token = await _live(broker, caller, _one(form, "token"))
    return JSONResponse({"active": False} if token is None else _described(broker, token), headers=NO_STORE)


async def revoke(request: Request) -> Response:
    """POST /token/revoke with ``token``, ``jti``, ``subject`` or ``key_id``; 200 also where there is none."""
    broker = services(request)
    events.current().action = "token.revoke"
    caller = await broker.authenticator.server(request, TOKEN_MINT)
    form = await _form(request)
    caller, _ = await gate.enter(broker, caller)
    await broker.audit.ping()
    kind, *names = _wanted(broker, caller, form)
    if kind is not None:
        target = token_hash(names[-1]) if kind == "token" else names[-1]
        witness = auditing.within(broker, revoked=kind, target=target)
        await broker.revocations.revoke(kind, *names, witness=witness)
        events.current().audited = True
        await announce(broker.generation)
    return Response(headers=NO_STORE)


def _wanted(broker: Services, caller: Caller, form: dict[str, str]) -> tuple[Any, ...]:
    """Which kind of revocation, and of what; ``None`` for a token that is not the caller's business."""
    is_admin, event = KEYS_ADMIN in caller.scopes, events.current()
    if "subject" in form:
        subject = event.subject = form["subject"]
        if len(subject) > MAX_SUBJECT_LENGTH:
            raise InvalidRequest(f"subject: no subject has more than {MAX_SUBJECT_LENGTH} characters.")
        return ("subject", subject) if is_admin else ("key_subject", caller.key_id, subject)
    if "key_id" in form:
        if form["key_id"] != caller.key_id and not is_admin:
            raise WrongScope(f"To revoke another key's tokens, a key needs the scope '{KEYS_ADMIN}'.")
        return "key", form["key_id"]
    if "jti" in form:
        if not is_admin:
            raise WrongScope(f"To revoke a token by its jti alone, a key needs the scope '{KEYS_ADMIN}'.")
        event.token_id = form["jti"]
        return "token", form["jti"]
    jti = event.token_id = _jti_of(broker, caller, _one(form, "token"))
    return (None,) if jti is None else ("token", jti)


def _jti_of(broker: Services, caller: Caller, text: str) -> str | None:
    """Of a token for an upload, or for the receipt of one."""
    token = _of_caller(broker, caller, text)
    if token is not None:
        return token.jti
    try:
        completion = broker.completions.verify(text)
    except Refusal:
        return None
    return completion.upload_id if completion.key_id == caller.key_id or KEYS_ADMIN in caller.scopes else None


async def _live(broker: Services, caller: Caller, text: str) -> UploadToken | None:
    token = _of_caller(broker, caller, text)
    if token is None:
        return None
    holder = Caller.with_token(token, Call(origin=token.origin))
    try:
        await broker.standing.check(holder, broker.generation.current())
    except Refusal as refusal:
        if refusal.status != 401:  # noqa: PLR2004 - a store that can't be asked is no answer
            raise
        return None
    if token.epoch != await broker.claims.epoch():
        return None  # nobody knows any more how often it was used
    return token if await broker.claims.used(f"upload:{token.jti}") < token.uses else None


def _of_caller(broker: Services, caller: Caller, text: str) -> UploadToken | None:
    """The token, if it is one of ours and the caller's business."""
    try:
        token = broker.tokens.verify(text)
    except Refusal:
        return None
    return token if token.key_id == caller.key_id or KEYS_ADMIN in caller.scopes else None


def _described(broker: Services, token: UploadToken) -> dict[str, Any]:
    """RFC 7662 §2.2, and what is ours."""
    claims = {
        "active": True,
        "scope": FILES_UPLOAD,
        "client_id": token.key_id,
        "token_type": "Bearer",
        "sub": token.subject,
        "aud": AUDIENCE,
        "iss": broker.settings.public_url,
        "jti": token.jti,
        "iat": token.issued_at,
        "nbf": token.issued_at,
        "exp": token.expires_at,
        "finish_by": token.finish_by,
        "max_bytes": token.max_bytes,
        "content_types": token.content_types and list(token.content_types),
        "origin": token.origin,
        "sha256": token.sha256,
        "uses": token.uses,
    }
    return {name: value for name, value in claims.items() if value is not None}


async def _form(request: Request) -> dict[str, str]:
    if media_type(request.headers.get("content-type", "")) != FORM:
        raise UnsupportedMediaType(f"Send a form, with 'Content-Type: {FORM}'.")
    try:
        fields = parse_qs((await read_small(request)).decode(), max_num_fields=10, strict_parsing=True)
    except ValueError:
        raise InvalidRequest("The form can't be read.") from None
    if any(len(values) > 1 for values in fields.values()):
        raise InvalidRequest("A field of the form stands there more than once.")
    return {name: values[0] for name, values in fields.items()}


def _one(form: dict[str, str], name: str) -> str:
    if name not in form:
        raise InvalidRequest(f"The form has no field '{name}'.")
    return form[name]
