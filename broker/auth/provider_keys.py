"""The public keys of the operator's OpenID provider: found, kept for a while, asked for again.

Discovery is OpenID Connect Discovery 1.0 §4, the key set RFC 7517. What a provider can do wrong, or
somebody in its place, is bounded: time, size, redirects, and how often it is asked at all.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
from cryptography.exceptions import UnsupportedAlgorithm

from broker import __version__
from broker.errors import IdentityProviderUnavailable
from broker.observe import logs
from broker.settings import is_loopback

DISCOVERY_PATH = "/.well-known/openid-configuration"
MAX_ANSWER_BYTES = 262_144
CALL_TIMEOUT = httpx.Timeout(5.0)
FETCH_SECONDS = 10.0
"""How long asking the provider may take in all."""
WAIT_SECONDS = 2.0
"""How long a caller waits for new keys while old ones are there."""
MIN_FRESH_SECONDS, DEFAULT_FRESH_SECONDS, MAX_FRESH_SECONDS = 300, 3600, 86_400
MAX_STALE_SECONDS = 86_400
"""How long keys outlive their freshness while the provider is away."""
REFRESH_SECONDS = 30.0
"""The provider is asked no more often than this because of a key that is not known, or after it failed."""
RETRY_SECONDS = 5.0
"""The same while there are no keys at all."""
MIN_RSA_BITS = 2048

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_OF_KIND: dict[tuple[Any, Any], tuple[str, ...]] = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""What a key of each type and curve may sign with (RFC 7518 §3.1, RFC 8037 §3.1)."""
ALGORITHMS = frozenset(name for names in _OF_KIND.values() for name in names)
_PUBLIC_MEMBERS = ("kty", "crv", "n", "e", "x", "y")
_MAX_AGE = re.compile(r"\bmax-age=\"?(\d{1,9})\b")
_NOT_KEPT = re.compile(r"\b(no-store|no-cache)\b")


@dataclass(frozen=True)
class ProviderKey:
    """A key of the provider's, and the algorithms that its own entry allows."""

    kid: str | None
    algorithms: tuple[str, ...]
    public_key: Any = field(repr=False)


class BadProviderAnswerError(Exception):
    """The provider's answer can't be used; the message is for the operator."""


def make_client() -> httpx.AsyncClient:
    """A client for the provider: no redirect, no cookie, nothing from the environment."""
    return httpx.AsyncClient(
        timeout=CALL_TIMEOUT,
        headers={
            "User-Agent": f"coze-upload-broker/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        },
        follow_redirects=False,
        trust_env=False,
    )


class ProviderKeys:
    """The keys of the provider at ``issuer``, one question to it at a time."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        issuer: str,
        *,
        fetch_seconds: float = FETCH_SECONDS,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._issuer = issuer
        self._fetch_seconds = fetch_seconds
        self._ticks = ticks
        self._keys: tuple[ProviderKey, ...] | None = None
        self._fresh_until = self._asked_at = -math.inf
        self._asking: asyncio.Task[None] | None = None
        self._trouble: str | None = None

    async def find(self, kid: str | None, algorithm: str) -> ProviderKey | None:
        """The one key with this name that signs with ``algorithm``; without a name, the only such key.

        Raises :class:`IdentityProviderUnavailable` when there are no keys to look in.
        """
        if self._ticks() >= self._fresh_until:
            await self._ask(RETRY_SECONDS if self._keys is None else REFRESH_SECONDS)
        key = self._known(kid, algorithm)
        if key is None and await self._ask(REFRESH_SECONDS):
            key = self._known(kid, algorithm)
        return key

    async def aclose(self) -> None:
        """Stop asking, and close the client."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self._client.aclose()

    def _known(self, kid: str | None, algorithm: str) -> ProviderKey | None:
        if self._keys is None or self._ticks() >= self._fresh_until + MAX_STALE_SECONDS:
            wait = math.ceil(max(1.0, self._asked_at + RETRY_SECONDS - self._ticks()))
            raise IdentityProviderUnavailable(log=self._trouble, retry_after_seconds=wait)
        fitting = [
            key for key in self._keys if algorithm in key.algorithms and (kid is None or key.kid == kid)
        ]
        return fitting[0] if len(fitting) == 1 else None

    async def _ask(self, pause_seconds: float) -> bool:
        """Ask the provider, unless it was asked a moment ago: False then. Others who come meanwhile wait."""
        if self._asking is None:
            if self._ticks() < self._asked_at + pause_seconds:
                return False
            self._asked_at = self._ticks()
            self._asking = asyncio.create_task(self._renew())
        await asyncio.wait([self._asking], timeout=None if self._keys is None else WAIT_SECONDS)
        return True

    async def _renew(self) -> None:
        """Get the keys; when that fails the old ones stay, and the log says so once."""
        try:
            async with asyncio.timeout(self._fetch_seconds):
                keys, fresh_seconds = await _fetch(self._client, self._issuer)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, BadProviderAnswerError) as error:
            self._note(f"{type(error).__name__}: {error}")
        else:
            self._keys, self._fresh_until = keys, self._ticks() + fresh_seconds
            self._note(None)
        finally:
            self._asking = None

    def _note(self, trouble: str | None) -> None:
        if trouble is not None and self._trouble is None:
            logs.warning("the identity provider's keys can't be had", detail=trouble)
        elif trouble is None and self._trouble is not None:
            logs.info("the identity provider's keys can be had again")
        self._trouble = trouble


async def _fetch(client: httpx.AsyncClient, issuer: str) -> tuple[tuple[ProviderKey, ...], int]:
    """The provider's keys, and for how many seconds they are fresh."""
    about, _ = await _get(client, issuer.rstrip("/") + DISCOVERY_PATH)
    if about.get("issuer") != issuer:  # Discovery §4.3: exactly
        raise BadProviderAnswerError(
            f"the provider calls itself {str(about.get('issuer'))[:200]!r}, not {issuer!r}"
        )
    address = about.get("jwks_uri")
    if not isinstance(address, str) or not _is_safe(address):
        raise BadProviderAnswerError("the provider's jwks_uri is no https address")
    answer, headers = await _get(client, address)
    entries = answer.get("keys")
    keys = tuple(filter(None, map(_key, entries if isinstance(entries, list) else ())))
    if not keys:
        raise BadProviderAnswerError("the provider's key set has no key to verify with")
    return keys, _fresh_seconds(headers)


async def _get(client: httpx.AsyncClient, url: str) -> tuple[dict[str, Any], httpx.Headers]:
    content = bytearray()
    async with client.stream("GET", url) as response:
        if response.status_code != 200:  # noqa: PLR2004 - HTTP's own; a redirect is none, either
            raise BadProviderAnswerError(f"{url} answered {response.status_code}")
        async for part in response.aiter_raw():
            content += part
            if len(content) > MAX_ANSWER_BYTES:
                raise BadProviderAnswerError(f"{url} answered more than {MAX_ANSWER_BYTES} bytes")
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise BadProviderAnswerError(f"{url} answered no JSON object")
    return answer, response.headers


def _is_safe(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    if "@" in parts.netloc or not parts.hostname:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname))


def _key(entry: Any) -> ProviderKey | None:
    """A key set's entry as a key to verify with; None for one that is not, or that we don't know."""
    if not isinstance(entry, dict) or not _is_for_signatures(entry):
        return None
    algorithms = _algorithms_of(entry)
    kid = entry.get("kid")
    if not algorithms or not (kid is None or isinstance(kid, str)):
        return None
    public = {name: entry[name] for name in _PUBLIC_MEMBERS if name in entry}
    try:
        public_key = jwt.PyJWK(public, algorithms[0]).key
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
        return None
    if entry["kty"] == "RSA" and public_key.key_size < MIN_RSA_BITS:
        return None
    return ProviderKey(kid, algorithms, public_key)


def _is_for_signatures(entry: Mapping[str, Any]) -> bool:
    """RFC 7517 §4.2, §4.3."""
    operations = entry.get("key_ops", ["verify"])
    return entry.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations


def _algorithms_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    kty, crv = entry.get("kty"), entry.get("crv")
    if not isinstance(kty, str) or not isinstance(crv, str | None):
        return ()
    possible = _OF_KIND.get((kty, None if kty == "RSA" else crv), ())
    return tuple(name for name in possible if entry.get("alg", name) == name)


def _fresh_seconds(headers: httpx.Headers) -> int:
    """RFC 9111 §5.2.2, within bounds of our own."""
    said = headers.get("cache-control", "").lower()
    if _NOT_KEPT.search(said):
        return MIN_FRESH_SECONDS
    match = _MAX_AGE.search(said)
    seconds = int(match[1]) if match else DEFAULT_FRESH_SECONDS
    return min(max(seconds, MIN_FRESH_SECONDS), MAX_FRESH_SECONDS)
