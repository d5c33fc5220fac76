"""What a key may be: checked as a whole, whoever makes or changes it. Opens no socket; gets the clock."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterator

from broker.auth import scopes as known_scopes
from broker.auth.api_key import ApiKey
from broker.auth.key_format import KeyKind
from broker.auth.rights import Rights
from broker.settings import is_origin, not_an_origin
from broker.settings.fields import MAX_GRACE_SECONDS

MAX_NAME_LENGTH = 200
MAX_ENTRIES = 100
"""The most scopes, origins, agents, … that a key may name of each."""
MAX_NUMBER = 2**53 - 1
"""The largest whole number that JSON has everywhere (RFC 8259 §6)."""
MAX_EXPIRES_AT = 253_402_300_799
"""The end of the year 9999: a later time is one in milliseconds."""
MAX_WINDOW_SECONDS = 31 * 86_400

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TYPE_GLOB = re.compile(r"[a-z0-9!#$&^_.+*-]{1,127}/[a-z0-9!#$&^_.+*-]{1,127}")


class KeyRulesError(ValueError):
    """A key can't be made or changed as it was asked for; the message says why, in whole sentences."""


def checked(key: ApiKey) -> ApiKey:
    """The key with its lists in order: nothing twice, media types and networks as they are compared.

    Raises :class:`KeyRulesError` that names every rule that is not met.
    """
    tidy = dataclasses.replace(
        key,
        scopes=tuple(dict.fromkeys(key.scopes)),
        origins=tuple(dict.fromkeys(key.origins)),
        rights=_tidy(key.rights),
    )
    problems = [*_problems(tidy), *_rights_problems(tidy.rights)]
    if problems:
        raise KeyRulesError(" ".join(problems))
    return tidy


def check_expiry(expires_at: int, now: float) -> None:
    """Raises :class:`KeyRulesError` for an end (Unix seconds, 0 for none) that is not to come."""
    if expires_at != 0 and not now < expires_at <= MAX_EXPIRES_AT:
        raise KeyRulesError("expires_at is a time to come, in Unix seconds, or 0 for never.")


def check_grace(grace_seconds: int) -> None:
    """Raises :class:`KeyRulesError` for a grace that is none."""
    if not 0 <= grace_seconds <= MAX_GRACE_SECONDS:
        raise KeyRulesError(f"grace_seconds is 0 to {MAX_GRACE_SECONDS}.")


def default_scopes(kind: KeyKind) -> tuple[str, ...]:
    """What a key has when nobody says: a publishable one can only have the one."""
    return known_scopes.PUBLISHABLE if kind == "publishable" else ()


def _problems(key: ApiKey) -> Iterator[str]:
    may_have = known_scopes.PUBLISHABLE if key.kind == "publishable" else known_scopes.ALL
    refused = [scope[:40] for scope in key.scopes if scope not in may_have]
    if not 0 < len(key.name) <= MAX_NAME_LENGTH or not key.name.isprintable():
        yield f"A name has 1 to {MAX_NAME_LENGTH} characters that can be shown."
    if len(key.owner) > MAX_NAME_LENGTH or not key.owner.isprintable():
        yield f"An owner has at most {MAX_NAME_LENGTH} characters that can be shown."
    if refused:
        yield f"A {key.kind} key can't have {_listed(refused)}. It may have: {', '.join(may_have)}."
    if not key.scopes:
        yield f"A key without a scope can do nothing. Choose from: {', '.join(may_have)}."
    if key.kind == "publishable" and not key.origins:
        yield "A publishable key needs the origins of the pages that it stands in."
    if len(key.origins) > MAX_ENTRIES:
        yield f"A key may have at most {MAX_ENTRIES} origins."
    wrong = [value for value in key.origins if not is_origin(value)]
    yield from (not_an_origin(value[:100]) for value in wrong[:5])


def _rights_problems(rights: Rights) -> Iterator[str]:
    for name in ("bots", "workflows", "content_types", "networks"):
        if len(getattr(rights, name)) > MAX_ENTRIES:
            yield f"A key may have at most {MAX_ENTRIES} {name}."
    ids = [value for value in (*rights.bots, *rights.workflows) if not _ID.fullmatch(value)]
    if ids:
        yield f"bots and workflows are ids of letters, digits, '-' and '_', which {_listed(ids)} is not."
    types = [value for value in rights.content_types if not _TYPE_GLOB.fullmatch(value)]
    if types:
        yield f"content_types are like image/* or application/pdf, which {_listed(types)} is not."
    networks = [value for value in rights.networks if not _is_network(value)]
    if networks:
        yield (
            "networks are CIDR ranges like 192.0.2.0/24 or 2001:db8::/32, zero behind the prefix, "
            f"which {_listed(networks)} is not."
        )
    yield from _number_problems(rights)


def _number_problems(rights: Rights) -> Iterator[str]:
    limits = rights.limits
    bounds = (
        ("max_bytes", rights.max_bytes, 1, MAX_NUMBER),
        ("requests", limits.requests, 0, MAX_NUMBER),
        ("bytes", limits.bytes, 0, MAX_NUMBER),
        ("window_seconds", limits.window_seconds, 1, MAX_WINDOW_SECONDS),
        ("inflight_uploads", limits.inflight_uploads, 0, MAX_NUMBER),
    )
    for name, value, least, most in bounds:
        if value is not None and not least <= value <= most:
            yield f"{name} is {least} to {most}."


def _tidy(rights: Rights) -> Rights:
    networks = (_written(value) for value in rights.networks)
    types = (value.lower() for value in rights.content_types)
    return dataclasses.replace(
        rights,
        bots=tuple(dict.fromkeys(rights.bots)),
        workflows=tuple(dict.fromkeys(rights.workflows)),
        content_types=tuple(dict.fromkeys(types)),
        networks=tuple(dict.fromkeys(networks)),
    )


def _written(network: str) -> str:
    """As it is always written; one address is a range of one. What is none stays as it is."""
    try:
        return str(ipaddress.ip_network(network))
    except ValueError:
        return network


def _is_network(text: str) -> bool:
    """Not a range of IPv4 addresses written as IPv6 either: callers' are unmapped, so it would match none."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return False
    return getattr(network.network_address, "ipv4_mapped", None) is None


def _listed(values: list[str]) -> str:
    """The first few, none of any length: a caller made them up."""
    return ", ".join(repr(value[:40]) if not value.isprintable() else value[:40] for value in values[:5])
