"""What may be done to a ring of signing keys, and in which order. Touches no file; gets the clock.

A key verifies before it signs and after it has signed, so nothing that is under way is ever refused:
``added``, then ``rotated`` to it, then ``removed`` once nothing lives that the old one signed. One file that
all workers read needs no first step: whoever meets a key that it does not know looks at the file again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from broker.auth.signing_keys import fresh_key, kid_of
from broker.settings.ed25519_keys import Ed25519Key


class RotationError(Exception):
    """What was asked for would leave tokens without their key; the message says why."""


SLACK_SECONDS = 60
"""Beyond a token's life: for clocks that differ, and for workers that have yet to see the new key."""


def added(ring: Sequence[Ed25519Key]) -> list[Ed25519Key]:
    """With a new key, which does not sign yet; the first of an empty ring does."""
    return [*ring, fresh_key()]


def rotated(ring: Sequence[Ed25519Key], kid: str | None, now: int) -> list[Ed25519Key]:
    """With the key ``kid``, or a new one, to sign from ``now`` on (Unix seconds)."""
    key = fresh_key() if kid is None else _found(ring, kid)
    if key.private is None:
        raise RotationError(f"{kid} is only a public key here: it can't sign.")
    rest = [other for other in ring if other is not key]
    if kid is not None and key is signer(ring):
        raise RotationError(f"{kid} signs already.")
    return [replace(key, signs_since=now), *rest]


def retired(ring: Sequence[Ed25519Key], kid: str) -> list[Ed25519Key]:
    """With the public half alone of a key: what it signed still verifies, nobody can sign with it again."""
    key = _not_the_signer(ring, kid)
    return [replace(other, private=None) if other is key else other for other in ring]


def removed(ring: Sequence[Ed25519Key], kid: str, now: int, *, life_seconds: int) -> list[Ed25519Key]:
    """Without a key that stopped to sign at least ``life_seconds`` ago, as long as a token may live."""
    key = _not_the_signer(ring, kid)
    stopped = stopped_signing_at(ring, key)
    if stopped is not None and now < stopped + life_seconds:
        raise RotationError(
            f"{kid} may have signed until {max(0, now - stopped)} seconds ago, and tokens live for up to "
            f"{life_seconds}. Wait, or remove it with --now and have them refused."
        )
    return [other for other in ring if other is not key]


def signer(ring: Sequence[Ed25519Key]) -> Ed25519Key | None:
    """The key that signs: the first private one."""
    return next((key for key in ring if key.private is not None), None)


def stopped_signing_at(ring: Sequence[Ed25519Key], key: Ed25519Key) -> int | None:
    """When the key before it took over, in Unix seconds; None where nobody wrote that down."""
    before = [other for other in ring[: ring.index(key)] if other.signs_since is not None]
    return before[-1].signs_since if before else None


def described(ring: Sequence[Ed25519Key]) -> list[dict[str, str | int | None]]:
    """What may be shown of each key: ``use`` is ``signs``, ``verifies`` or ``public``, which verifies too."""
    return [{"kid": kid_of(key), "use": _use(ring, key), "signs_since": key.signs_since} for key in ring]


def _use(ring: Sequence[Ed25519Key], key: Ed25519Key) -> str:
    if key.private is None:
        return "public"
    return "signs" if key is signer(ring) else "verifies"


def _not_the_signer(ring: Sequence[Ed25519Key], kid: str) -> Ed25519Key:
    key = _found(ring, kid)
    if key is signer(ring):
        raise RotationError(f"{kid} is the key that signs. Rotate to another first.")
    return key


def _found(ring: Sequence[Ed25519Key], kid: str) -> Ed25519Key:
    for key in ring:
        if kid_of(key) == kid:
            return key
    raise RotationError(f"There is no key {kid} in the ring.")
