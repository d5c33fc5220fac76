"""Nothing that the settings call a secret, and no token that Coze gave, gets into what is said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr

from broker.doctor.finding import Finding
from broker.doctor.way import Way
from broker.observe.redaction import redacted

MIN_LENGTH = 4
"""What is shorter would be found in ordinary words."""
HIDDEN = "(not shown)"
_OWN_NAME = re.compile("[a-z_]+")


def scrubbed(finding: Finding, way: Way | None) -> Finding:
    """The finding without secrets, whoever wrote them into it."""
    secrets = () if way is None else secrets_of(way)
    return replace(
        finding,
        found=_clean(finding.found, secrets),
        means=_clean(finding.means, secrets),
        do=_clean(finding.do, secrets),
        facts=_clean(dict(finding.facts), secrets),
    )


def secrets_of(way: Way) -> tuple[str, ...]:
    """All that may not be said of this way, the longest first."""
    return tuple(sorted(set(_secrets(way)), key=len, reverse=True))


def clean_text(text: str, secrets: tuple[str, ...]) -> str:
    """The text without these, and without what looks like a credential."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return redacted(text)


def _clean(value: Any, secrets: tuple[str, ...]) -> Any:
    if isinstance(value, str):
        return clean_text(value, secrets)
    if isinstance(value, dict):
        return {_clean_name(name, secrets): _clean(each, secrets) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(each, secrets) for each in value]
    return value


def _clean_name(name: str, secrets: tuple[str, ...]) -> str:
    """Our own names stay, whatever a proxy's user is called; an origin or an address is none of them."""
    return name if _OWN_NAME.fullmatch(name) else str(_clean(name, secrets))


def _secrets(way: Way) -> Iterator[str]:
    values = [getattr(way.settings, name) for name in type(way.settings).model_fields]
    found = [each.get_secret_value() for each in values if isinstance(each, SecretStr)]
    found += way.tokens.values()
    if way.proxy is not None:
        found += [part for part in (way.proxy.username, way.proxy.password) if part]
    for secret in found:
        if len(secret) >= MIN_LENGTH:
            yield secret
            yield quote(secret, safe="")
