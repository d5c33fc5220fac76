"""From a request's one Authorization header to who is calling."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers

from broker.auth.api_keys import ApiKey, ApiKeys, looks_like_key
from broker.auth.scopes import FILES_UPLOAD
from broker.auth.upload_tokens import UploadToken, UploadTokens
from broker.errors import InvalidCredential, MissingCredential, OriginNotAllowed, WrongScope
from broker.observe import events

MAX_CREDENTIAL_LENGTH = 8192


@dataclass(frozen=True)
class Authenticator:
    """Tells API keys from tokens and lets neither pass for the other."""

    keys: ApiKeys
    tokens: UploadTokens

    async def api_key(self, headers: Headers, scope: str) -> ApiKey:
        """The API key of this request, which must have ``scope`` and be at home in the request's origin.

        Raises a refusal of the 401 or 403 family.
        """
        credential = bearer(headers)
        if not looks_like_key(credential):
            raise InvalidCredential(
                "This call needs an API key; what was sent is none.", log="not an API key"
            )
        key = await self.keys.authenticate(credential)
        _note_key(key)
        if scope not in key.scopes:
            raise WrongScope(f"This call needs the scope '{scope}', which the key lacks.")
        if not key.allows_origin(headers.get("origin")):
            raise OriginNotAllowed("This key can't be used from this origin. Add the origin to the key.")
        return key

    async def uploader(self, headers: Headers) -> ApiKey | UploadToken:
        """Who uploads through the broker: a server with its key, or a browser with its token."""
        credential = bearer(headers)
        if looks_like_key(credential):
            return await self.api_key(headers, FILES_UPLOAD)
        token = self.tokens.verify(credential)
        _note_token(token)
        origin = headers.get("origin")
        if token.origin is not None and origin != token.origin:
            raise OriginNotAllowed("This token was issued to a page of another origin.")
        return token


def bearer(headers: Headers) -> str:
    """The credential of the one Authorization header (RFC 6750 §2.1); queries and cookies don't count."""
    values = headers.getlist("authorization")
    if not values:
        raise MissingCredential
    scheme, _, credential = values[0].partition(" ")
    credential = credential.strip()
    if len(values) > 1 or scheme.lower() != "bearer" or not credential:
        raise InvalidCredential(MissingCredential.sentence, log="not exactly one bearer credential")
    if len(credential) > MAX_CREDENTIAL_LENGTH:
        raise InvalidCredential(log="credential too long")
    return credential


def _note_key(key: ApiKey) -> None:
    event = events.current()
    event.caller, event.key_id = f"{key.kind}_key", key.id


def _note_token(token: UploadToken) -> None:
    event = events.current()
    event.caller, event.key_id, event.token_id, event.subject = (
        "upload_token",
        token.key_id,
        token.jti,
        token.subject,
    )
