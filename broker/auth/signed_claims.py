"""What all tokens of ours have in common: who signed them and for what, and how their times are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from broker.auth.signing_keys import KeyRing
from broker.errors import ExpiredCredential, InvalidCredential

LEEWAY_SECONDS = 5
"""How far the clocks of two hosts may differ."""
BEGINS = ("iat", "nbf")


class SignedClaims:
    """The claims of one kind of token, on their way into a text and back.

    Each token has the issuer and the claims that are ``fixed``. ``times`` are the claims that must be whole
    numbers, in Unix seconds, ``exp`` among them. ``kind`` is what the log calls such a token.
    """

    def __init__(
        self,
        ring: KeyRing,
        issuer: str,
        now: Callable[[], float],
        *,
        kind: str,
        typ: str,
        fixed: Mapping[str, str],
        times: tuple[str, ...],
    ) -> None:
        self._ring = ring
        self._now = now
        self._kind = kind
        self._typ = typ
        self._fixed = {"iss": issuer, **fixed}
        self._times = times
        self._begins = [name for name in times if name in BEGINS]

    def sign(self, claims: Mapping[str, Any]) -> str:
        """A token that says ``claims``, without those that are None."""
        given = {name: value for name, value in claims.items() if value is not None}
        return self._ring.sign({**self._fixed, **given}, typ=self._typ)

    def read(self, text: str) -> dict[str, Any]:
        """What a token says.

        Raises :class:`InvalidCredential`, or :class:`ExpiredCredential` when it only came too late.
        """
        claims = self._ring.claims_of(text, typ=self._typ)
        for name, value in self._fixed.items():
            if claims.get(name) != value:
                raise InvalidCredential(log=f"{self._kind} with another {name}")
        self._check_times(claims)
        return claims

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self._now()
        for name in self._times:
            if type(claims.get(name)) is not int:
                raise InvalidCredential(log=f"{self._kind} without a whole number for {name}")
        if max(claims[name] for name in self._begins) > now + LEEWAY_SECONDS:
            raise InvalidCredential(log=f"{self._kind} from the future")
        if claims["exp"] <= now - LEEWAY_SECONDS:
            raise ExpiredCredential(log=f"{self._kind} has expired")
