"""From a request's one credential to who is calling.

The form of a credential chooses who judges it, and only that one does: an API key is never taken for a
token, nor one kind of token for another (RFC 8725 §3.11, §3.12).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request

from broker.auth.api_keys import ApiKeys
from broker.auth.caller import Call, Caller, CallerKind
from broker.auth.completion_tokens import CompletionTokens
from broker.auth.failures import Failures
from broker.auth.key_format import looks_like_key
from broker.auth.oidc import IdTokens
from broker.auth.scopes import FILES_UPLOAD, TOKEN_MINT
from broker.auth.signatures import SignedRequests, is_signed
from broker.auth.upload_tokens import UploadTokens
from broker.client_address import bucket_of
from broker.errors import (
    AddressNotAllowed,
    InvalidCredential,
    InvalidSignature,
    MissingCredential,
    OriginNotAllowed,
    WrongScope,
)
from broker.observe import events
from broker.settings import is_origin

MAX_CREDENTIAL_LENGTH = 8192

Find = Callable[[Request, Call], Awaitable[Caller]]


@dataclass(frozen=True)
class Authenticator:
    """Tells the kinds of credentials apart and lets none pass for another."""

    keys: ApiKeys
    tokens: UploadTokens
    completions: CompletionTokens
    signatures: SignedRequests
    id_tokens: IdTokens | None
    """None where no OpenID provider is set."""
    failures: Failures
    allowed_origins: frozenset[str]

    async def server(self, request: Request, scope: str | None) -> Caller:
        """Whoever calls with a secret API key, or with a request signed for one, that has ``scope``; None
        is for what a key with any scope may do.

        Raises a refusal of the 401, 403 or 429 family.
        """
        caller = await self._guarded(request, self._server, scope)
        if not caller.is_server:
            raise WrongScope("This call needs a secret key; a publishable one can only mint tokens.")
        return caller

    async def minter(self, request: Request) -> Caller:
        """Who may ask for a token: a key with the scope for it, or an end user with an ID token."""
        return await self._guarded(request, self._minter, TOKEN_MINT)

    async def uploader(self, request: Request) -> Caller:
        """Who uploads through the broker: a server, or a browser with its token."""
        return await self._guarded(request, self._uploader, FILES_UPLOAD)

    async def completer(self, request: Request) -> Caller:
        """Who uploaded past the broker: a browser with the token that it got for that."""
        return await self._guarded(request, self._completer, None)

    async def _guarded(self, request: Request, find: Find, scope: str | None) -> Caller:
        """Whoever guesses waits; whoever is known has the scope, and calls from where it may."""
        headers, address = request.headers, request.state.address
        call = Call(address, headers.get("origin"), needs=scope)
        sent, bucket = headers.get("authorization", ""), bucket_of(address)
        self.failures.check(bucket, _secret_of(sent))
        try:
            caller = await find(request, call)
        except (InvalidCredential, InvalidSignature):  # one that came too late was not guessed
            self.failures.note_bad(bucket, _secret_of(sent))
            raise
        if caller.key is not None and sent:
            self.failures.note_good(_secret_of(sent))
        _note(caller)
        self.check(caller)
        return caller

    def check(self, caller: Caller) -> None:
        """Hold a caller against what its key allows: raises a refusal of the 403 family."""
        needs = caller.call.needs
        if needs is not None and needs not in caller.scopes:
            raise WrongScope(f"This call needs the scope '{needs}', which the key lacks.")
        self._check_place(caller)

    async def _server(self, request: Request, call: Call) -> Caller:
        if is_signed(request.headers):
            return await self._signed(request, call)
        credential = bearer(request.headers)
        if not looks_like_key(credential):
            raise InvalidCredential(
                "This call needs an API key; what was sent is none.", log="not an API key"
            )
        key = await self.keys.authenticate(credential)
        kind: CallerKind = "secret_key" if key.kind == "secret" else "publishable_key"
        return Caller.with_key(key, kind, call)

    async def _signed(self, request: Request, call: Call) -> Caller:
        signed = await self.signatures.verify(
            request.method,
            request.scope["raw_path"],
            request.scope["query_string"],
            request.headers,
        )
        key = await self.keys.signer(signed.key_id, signed.secret)
        if key is None:
            raise InvalidCredential(log="signed with a key that is gone")
        self.keys.last_use.touch(key.id)
        request.state.body_sha256 = signed.body_sha256
        return Caller.with_key(key, "signed_request", call)

    async def _minter(self, request: Request, call: Call) -> Caller:
        if self.id_tokens is None or is_signed(request.headers):
            return await self._server(request, call)
        credential = bearer(request.headers)
        if not self.id_tokens.claims_to_be_from(credential):
            return await self._server(request, call)
        user = await self.id_tokens.verify(credential)
        return Caller.with_id_token(user.subject, call)

    async def _uploader(self, request: Request, call: Call) -> Caller:
        if is_signed(request.headers):
            return await self._signed(request, call)
        credential = bearer(request.headers)
        if looks_like_key(credential):
            return await self._server(request, call)
        token = self.tokens.verify(credential)
        return Caller.with_token(token, call)

    async def _completer(self, request: Request, call: Call) -> Caller:
        token = self.completions.verify(bearer(request.headers))
        return Caller.with_completion(token, call)

    def _check_place(self, caller: Caller) -> None:
        """From which page, and from which network address."""
        if caller.origin is not None and not is_origin(caller.origin):
            raise OriginNotAllowed("The Origin header is not an origin.")
        token = caller.token or caller.completion
        if token is not None:
            if token.origin not in (None, caller.origin):
                raise OriginNotAllowed("This token was issued to a page of another origin.")
        elif caller.key is None:
            if caller.origin is not None and caller.origin not in self.allowed_origins:
                raise OriginNotAllowed("Pages of this origin can't call the broker.")
        elif not caller.key.allows_origin(caller.origin):
            raise OriginNotAllowed("This key can't be used from this origin. Add the origin to the key.")
        if not caller.rights.allows_address(caller.address):
            raise AddressNotAllowed(log=f"{caller.address} is in none of the key's networks")


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


def _secret_of(authorization: str) -> str:
    return authorization.partition(" ")[2].strip()


def _note(caller: Caller) -> None:
    event = events.current()
    event.caller, event.key_id, event.key_hint = caller.kind, caller.key_id, caller.key_hint
    event.subject = caller.subject
    if caller.issued is not None:
        event.token_id = caller.issued.jti
