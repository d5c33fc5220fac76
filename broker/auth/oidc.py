"""ID tokens of the operator's OpenID provider: an end user's word for who they are.

The rules are OpenID Connect Core 1.0 §3.1.3.7 and RFC 8725. The algorithm comes from the provider's key,
the key from the provider's key set; a token's header chooses among them by ``kid`` and nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt

from broker.auth.provider_keys import ALGORITHMS, ProviderKeys, make_client
from broker.errors import ExpiredCredential, InvalidCredential

LEEWAY_SECONDS = 30
MAX_TOKEN_LENGTH = 8192
MAX_SUBJECT_LENGTH = 255
LAST_SECOND = 253_402_300_799
"""The end of the year 9999: a later time is a mistake, or somebody trying numbers."""
_LOGOUT_EVENTS = "events"
_JWS = jwt.PyJWS(algorithms=sorted(ALGORITHMS))


@dataclass(frozen=True)
class IdToken:
    """What the provider says of a user. Times are Unix seconds."""

    subject: str
    issuer: str
    issued_at: int
    expires_at: int


class IdTokens:
    """Verifies ID tokens that ``issuer`` gave to the client ``audience``."""

    def __init__(
        self, keys: ProviderKeys, *, issuer: str, audience: str, now: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._now = now

    def claims_to_be_from(self, token: str) -> bool:
        """Whether the token names our provider as its issuer. Proves nothing: it tells who has to verify."""
        if len(token) > MAX_TOKEN_LENGTH:
            return False
        try:
            payload = _JWS.decode(token, options={"verify_signature": False})
            return _object(payload).get("iss") == self._issuer
        except (jwt.InvalidTokenError, ValueError):
            return False

    async def verify(self, token: str) -> IdToken:
        """What an ID token says.

        Raises :class:`InvalidCredential`, :class:`ExpiredCredential` when it only came too late, or
        :class:`~broker.errors.IdentityProviderUnavailable` when there are no keys to verify it with.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidCredential(log="ID token too long")
        try:
            claims = await self._claims(token)
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise InvalidCredential(log=f"ID token: {type(error).__name__}: {error}") from error
        self._check_kind(claims)
        self._check_audience(claims)
        issued_at, expires_at = self._times(claims)
        return IdToken(_subject(claims), self._issuer, issued_at, expires_at)

    async def aclose(self) -> None:
        """Close what asks the provider."""
        await self._keys.aclose()

    async def _claims(self, token: str) -> dict[str, Any]:
        """The claims of a token that one of the provider's keys signed."""
        header = _JWS.get_unverified_header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise InvalidCredential(log="ID token with an algorithm that is not allowed")
        # RFC 8725 §3.11: a token that says it is of another kind is none of ours. Most ID tokens say nothing.
        typ = header.get("typ", "JWT")
        if not isinstance(typ, str) or typ.upper() != "JWT":
            raise InvalidCredential(log="a token of another typ than an ID token's")
        key = await self._keys.find(kid, algorithm)
        if key is None:
            raise InvalidCredential(log="ID token signed by a key that is not in the provider's key set")
        return _object(_JWS.decode(token, key.public_key, algorithms=[algorithm]))

    def _check_kind(self, claims: dict[str, Any]) -> None:
        if claims.get("iss") != self._issuer:
            raise InvalidCredential(log="ID token from another issuer")
        # OpenID Connect Back-Channel Logout 1.0 §2.8: a logout token has events, and must not pass for more.
        if _LOGOUT_EVENTS in claims or str(claims.get("typ", "ID")).upper() not in ("ID", "JWT"):
            raise InvalidCredential(log="a token of the provider's that is no ID token")

    def _check_audience(self, claims: dict[str, Any]) -> None:
        """OpenID Connect Core §3.1.3.7, 3 to 5."""
        given = claims.get("aud")
        audiences = given if isinstance(given, list) else [given]
        if self._audience not in audiences or not all(isinstance(each, str) for each in audiences):
            raise InvalidCredential(log="ID token for another audience")
        if (len(audiences) > 1 or "azp" in claims) and claims.get("azp") != self._audience:
            raise InvalidCredential(log="ID token that was issued to another party")

    def _times(self, claims: dict[str, Any]) -> tuple[int, int]:
        """``iat`` and ``exp`` of a token that is good now."""
        now = self._now()
        issued_at, expires_at = _seconds(claims, "iat"), _seconds(claims, "exp")
        not_before = _seconds(claims, "nbf") if "nbf" in claims else issued_at
        if max(issued_at, not_before) > now + LEEWAY_SECONDS:
            raise InvalidCredential(log="ID token from the future")
        if expires_at <= now - LEEWAY_SECONDS:
            raise ExpiredCredential(log="ID token has expired")
        return int(issued_at), int(expires_at)


def make_id_tokens(issuer: str, audience: str) -> IdTokens:
    """The verifier for a provider; nothing is asked of it yet. Must be closed."""
    return IdTokens(ProviderKeys(make_client(), issuer), issuer=issuer, audience=audience)


def _subject(claims: dict[str, Any]) -> str:
    subject = claims.get("sub")
    if (
        not isinstance(subject, str)
        or not 0 < len(subject) <= MAX_SUBJECT_LENGTH
        or not subject.isprintable()
    ):
        raise InvalidCredential(log="ID token without a usable sub")
    return subject


def _seconds(claims: dict[str, Any], name: str) -> float:
    """A NumericDate (RFC 7519 §2): a number, whole or not; neither text nor true."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LAST_SECOND:
        raise InvalidCredential(log=f"ID token without a usable {name}")
    return value


def _object(payload: Any) -> dict[str, Any]:
    """The payload as a JSON object. Raises ``ValueError`` for anything else."""
    try:
        claims = json.loads(payload)
    except RecursionError:
        claims = None
    if not isinstance(claims, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - a bad value in a token
    return claims
