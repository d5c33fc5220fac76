"""Who is calling, whichever way they proved it, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from broker.auth.api_keys import ApiKey
from broker.auth.completion_tokens import CompletionToken
from broker.auth.rights import Rights
from broker.auth.scopes import FILES_UPLOAD, TOKEN_MINT
from broker.auth.upload_tokens import UploadToken
from broker.errors import SubjectNotAllowed

CallerKind = Literal[
    "secret_key", "signed_request", "publishable_key", "user", "upload_token", "completion_token"
]
"""A server with its key, or with a signature; a page with its key; an end user with an ID token; a browser
with a token of ours, before its upload or after it.
"""
UNBOUND = Rights()
USERS_KEY_ID = "oidc"
"""What stands where a key's id would for end users of the OpenID provider. No key has this id."""


class Call(NamedTuple):
    """What a request says of itself, whoever sends it: where it comes from, and what it is for."""

    address: str | None = None
    origin: str | None = None
    needs: str | None = None
    """The scope that the call asks for."""


class Issued(NamedTuple):
    """What every token of ours says of its origin, by which it can be taken back."""

    jti: str
    subject: str
    key_id: str
    issued_at: int


@dataclass(frozen=True)
class Caller:
    """One caller, for one request."""

    kind: CallerKind
    key_id: str
    scopes: tuple[str, ...]
    call: Call
    rights: Rights = UNBOUND
    subject: str | None = None
    """Whom the caller acts for, where that is known."""
    key_hint: str | None = None
    key: ApiKey | None = None
    issued: Issued | None = None
    token: UploadToken | None = None
    completion: CompletionToken | None = None

    @classmethod
    def with_key(cls, key: ApiKey, kind: CallerKind, call: Call) -> Caller:
        """Whoever holds an API key."""
        return cls(
            kind=kind,
            key_id=key.id,
            scopes=key.scopes,
            rights=key.rights,
            call=call,
            key_hint=key.hint,
            key=key,
        )

    @classmethod
    def with_id_token(cls, subject: str, call: Call) -> Caller:
        """A user of the operator's OpenID provider, who may get tokens for uploads of their own."""
        return cls(
            kind="user",
            key_id=USERS_KEY_ID,
            scopes=(TOKEN_MINT,),
            subject=subject,
            call=call,
        )

    @classmethod
    def with_token(cls, token: UploadToken, call: Call) -> Caller:
        """A browser; its token holds all that its key might have allowed."""
        return cls(
            kind="upload_token",
            key_id=token.key_id,
            scopes=(FILES_UPLOAD,),
            subject=token.subject,
            call=call,
            issued=Issued(token.jti, token.subject, token.key_id, token.issued_at),
            token=token,
        )

    @classmethod
    def with_completion(cls, token: CompletionToken, call: Call) -> Caller:
        """A browser whose file went past the broker, and that wants a receipt for it."""
        return cls(
            kind="completion_token",
            key_id=token.key_id,
            scopes=(),
            subject=token.subject,
            call=call,
            issued=Issued(token.upload_id, token.subject, token.key_id, token.issued_at),
            completion=token,
        )

    @property
    def address(self) -> str | None:
        """The IP address that the request came from."""
        return self.call.address

    @property
    def origin(self) -> str | None:
        """The page that it came from, if it did."""
        return self.call.origin

    @property
    def is_server(self) -> bool:
        """Whether the caller is the operator's own, so that many users may come from its one address."""
        return self.kind in ("secret_key", "signed_request")

    @property
    def is_of_a_page(self) -> bool:
        """Whether a page asked, for itself or for the token that is shown now: servers name no origin."""
        return not self.is_server and (self.token is None or self.token.origin is not None)

    def acting_for(self, subject: str | None) -> Caller:
        """The same caller, for the subject that it names. A server may name anyone, others themselves.

        Raises :class:`SubjectNotAllowed`.
        """
        if subject in (None, self.subject):
            return self
        if not self.is_server:
            raise SubjectNotAllowed
        return replace(self, subject=subject)

    def renewed(self, key: ApiKey) -> Caller:
        """The same caller, with what its key may do now. A token holds what it may do, but not how much: that
        is its key's.
        """
        if self.issued is not None:
            return replace(self, rights=replace(self.rights, limits=key.rights.limits))
        return replace(self, scopes=key.scopes, rights=key.rights, key=key)
