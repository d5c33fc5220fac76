"""Requests that are signed with a key's signing secret, for servers that don't send the key itself.

HTTP Message Signatures (RFC 9421) with ``hmac-sha256``. The library reads the headers and builds what was
signed; what must be signed, by whom and when is decided here. The algorithm is ours, whatever ``alg`` says.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol
from urllib.parse import urlsplit

import http_sf
from http_message_signatures import HTTPMessageSignaturesException, HTTPMessageVerifier
from http_message_signatures.algorithms import HMAC_SHA256
from http_message_signatures.exceptions import InvalidSignature as NotProven
from http_message_signatures.resolvers import HTTPSignatureKeyResolver
from starlette.datastructures import Headers

from broker.auth.body_digests import sha256_of
from broker.errors import InvalidSignature, SignatureReplayed
from broker.state.claims import Claims

WINDOW_SECONDS = 30
"""How old a signature may be, and how far ahead of our clock."""
NONCE_TTL_SECONDS = 2 * WINDOW_SECONDS + 60
"""Longer than any signature is good for that may still come with the nonce."""
MAX_HEADER_LENGTH = 2048
INPUT, SIGNATURE, DIGEST = "signature-input", "signature", "content-digest"
_KEY_ID = re.compile(r"key_[0-9a-f]{1,64}")
_NONCE = re.compile(r"[!-~]{16,128}")
_NOBODY = (b"the secret of a key that does not exist",)
"""An unknown key is answered like a known one with a wrong signature, and takes as long."""


@dataclass(frozen=True)
class SignedRequest:
    """Whose request it is, and the SHA-256 that its body must have; None without a body."""

    key_id: str
    body_sha256: bytes | None
    secret: bytes = field(repr=False)
    """The one of the key's signing secrets that signed it."""


class SigningSecrets(Protocol):
    """Where the secrets are."""

    async def signing_secrets(self, key_id: str) -> list[bytes]:
        """Every secret that this key may sign with now.

        Empty for a key that is unknown, publishable, revoked or expired.
        """


@dataclass(frozen=True)
class _Given:
    """What the signature says of itself; nothing of it is proven."""

    key_id: str
    nonce: str
    created: int
    expires: int | None
    covered: frozenset[str]


@dataclass(frozen=True)
class Message:
    """A request as the library wants to see it."""

    method: str
    url: str
    headers: Headers


class SignedRequests:
    """Tells who signed a request, and lets no signature pass twice."""

    def __init__(
        self,
        keys: SigningSecrets,
        claims: Claims,
        public_url: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._claims = claims
        parts = urlsplit(public_url)
        self._origin, self._prefix = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        self._now = now

    async def verify(self, method: str, path: bytes, query: bytes, headers: Headers) -> SignedRequest:
        """Who signed the request. ``path`` and ``query`` as they were sent: ASGI's raw path, query string.

        Its body is not looked at: whoever reads it holds it against ``body_sha256``. ``@authority`` and
        ``@target-uri``, where they are signed, are those of the public URL: a ``Host`` proves nothing.
        Raises :class:`InvalidSignature`, or :class:`SignatureReplayed` for a nonce that came before.
        """
        given = _given(headers)
        body_sha256 = _body_sha256(headers)
        _check_covered(given.covered, has_body=body_sha256 is not None)
        self._check_time(given)
        messages = [Message(method, url, headers) for url in self._urls(path, query)]
        secrets = tuple(await self._keys.signing_secrets(given.key_id))
        proven = (signer_of(message, secrets or _NOBODY) for message in messages)
        secret = next((secret for secret in proven if secret is not None), None)
        if secret is None:
            _refuse("not signed by this key, or not as it came")
        await self._claim(given)
        return SignedRequest(given.key_id, body_sha256, secret)

    def _check_time(self, given: _Given) -> None:
        now = self._now()
        if abs(now - given.created) > WINDOW_SECONDS:
            _refuse(f"signed {now - given.created:.0f} seconds ago")
        if given.expires is not None and given.expires < now:
            _refuse("expired by its own word")

    def _urls(self, path: bytes, query: bytes) -> list[str]:
        """What the signer may have asked for: a proxy may have taken the public URL's path away."""
        asked = (path + b"?" + query if query else path).decode("latin-1")
        return list(dict.fromkeys((self._origin + asked, self._origin + self._prefix + asked)))

    async def _claim(self, given: _Given) -> None:
        """Fails closed: without the store no signature is known to be fresh."""
        nonce = hashlib.sha256(given.nonce.encode()).hexdigest()
        name = f"nonce:{given.key_id}:{nonce}"
        if not await self._claims.claim(name, ttl_seconds=NONCE_TTL_SECONDS):
            raise SignatureReplayed


def is_signed(headers: Headers) -> bool:
    """Whether the request wants to be known by a signature."""
    return INPUT in headers or SIGNATURE in headers


class _TheseSecrets(HTTPSignatureKeyResolver):
    """They were looked up before; the library's own look-up can't wait."""

    def __init__(self, secrets: tuple[bytes, ...]) -> None:
        self.secrets = secrets
        self.signer: bytes | None = None
        """The one that signed, once it is known."""

    def resolve_public_key(self, key_id: str) -> _TheseSecrets:  # noqa: ARG002 - the library's signature
        return self


class _AnySecret(HMAC_SHA256):
    """``hmac-sha256`` (RFC 9421 §3.3.3) with any of a key's secrets; all are tried, whichever fits."""

    def __init__(self, public_key: _TheseSecrets) -> None:
        self._key = public_key

    def verify(self, signature: bytes, message: bytes) -> None:
        proven = [
            secret
            for secret in self._key.secrets
            if hmac.compare_digest(hmac.digest(secret, message, "sha256"), signature)
        ]
        if not proven:
            raise NotProven
        self._key.signer = proven[0]


class _Verifier(HTTPMessageVerifier):
    """The library's, without its clock: times are judged by the one that we are given."""

    def validate_created_and_expires(self, sig_input: Any, max_age: Any = None) -> None:
        """Done already."""


def signer_of(message: Message, secrets: tuple[bytes, ...]) -> bytes | None:
    """Which of these secrets signed what the message's one signature covers, whatever that is."""
    key = _TheseSecrets(secrets)
    try:
        _Verifier(signature_algorithm=_AnySecret, key_resolver=key).verify(message, max_age=None)
    except HTTPMessageSignaturesException:
        return None
    return key.signer


def _given(headers: Headers) -> _Given:
    """The one signature's parameters and what it covers."""
    if "authorization" in headers:
        _refuse("an Authorization header beside the signature: which one is the caller?")
    _one(headers, SIGNATURE)
    try:
        signatures: Any = http_sf.parse(_one(headers, INPUT).encode(), tltype="dictionary")
        (components, parameters), *others = signatures.values()
        covered = frozenset(name for name, options in components if not options)
    except (ValueError, TypeError) as error:
        raise InvalidSignature(log=f"Signature-Input can't be read: {type(error).__name__}") from error
    if others:
        _refuse("more than one signature")
    expires = parameters.get("expires")
    return _Given(
        key_id=_text(parameters, "keyid", _KEY_ID),
        nonce=_text(parameters, "nonce", _NONCE),
        created=_whole_number(parameters.get("created")),
        expires=None if expires is None else _whole_number(expires),
        covered=covered,
    )


def _check_covered(covered: frozenset[str], *, has_body: bool) -> None:
    missing = {"@method"} | ({DIGEST} if has_body else set())
    if "@target-uri" not in covered:
        missing |= {"@path", "@query"}
    if missing - covered:
        _refuse(f"not signed: {', '.join(sorted(missing - covered))}")


def _body_sha256(headers: Headers) -> bytes | None:
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if not has_body and DIGEST not in headers:
        return None
    content_digest = ", ".join(headers.getlist(DIGEST))
    if len(content_digest) > MAX_HEADER_LENGTH:
        _refuse("Content-Digest is larger than is read")
    return sha256_of(content_digest)


def _one(headers: Headers, name: str) -> str:
    values = headers.getlist(name)
    if len(values) != 1 or len(values[0]) > MAX_HEADER_LENGTH:
        _refuse(f"not one {name} of a size that is read")
    return values[0]


def _text(parameters: dict[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = parameters.get(name)
    if not isinstance(value, str) or not form.fullmatch(value):
        _refuse(f"no {name}, or none that can be used")
    return value


def _whole_number(value: Any) -> int:
    if type(value) is not int:
        _refuse("a time that is no whole number")
    return value


def _refuse(log: str) -> NoReturn:
    raise InvalidSignature(log=log)
