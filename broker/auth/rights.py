"""What a key may do beyond its scopes: with which agents, files, networks, and how much."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class KeyLimits:
    """How much in a window, and at once. ``None`` leaves it to the settings, 0 sets no bound."""

    requests: int | None = None
    bytes: int | None = None
    window_seconds: int | None = None
    inflight_uploads: int | None = None


@dataclass(frozen=True)
class Rights:
    """The bounds of one key. An empty tuple, or ``None``, sets no bound of its own."""

    bots: tuple[str, ...] = ()
    workflows: tuple[str, ...] = ()
    content_types: tuple[str, ...] = ()
    """Media types, ``*`` for any part: ``image/*``."""
    max_bytes: int | None = None
    """The largest file."""
    networks: tuple[str, ...] = ()
    """CIDR ranges that the caller's address must be in."""
    limits: KeyLimits = KeyLimits()

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> Rights:
        """The rights that ``dataclasses.asdict`` made this of.

        Raises ``TypeError`` for a bound that this version does not know: to pass it over would widen the key.
        """
        bounds: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()
        }
        return cls(**{**bounds, "limits": KeyLimits(**kept.get("limits", {}))})

    def allows_bot(self, bot_id: str) -> bool:
        """Whether the key may use this agent."""
        return not self.bots or bot_id in self.bots

    def allows_workflow(self, workflow_id: str) -> bool:
        """Whether the key may run this workflow."""
        return not self.workflows or workflow_id in self.workflows

    def allows_type(self, content_type: str) -> bool:
        """Whether the key may upload files of this media type (lower case, no parameters)."""
        return not self.content_types or is_one_of(content_type, self.content_types)

    def allows_address(self, address: str | None) -> bool:
        """Whether the key may be used from this IP address; one that is not known is in no range."""
        if not self.networks:
            return True
        try:
            ip = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        mapped = getattr(ip, "ipv4_mapped", None)
        return any((mapped or ip) in _network(network) for network in self.networks)


@lru_cache(maxsize=1024)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


def is_one_of(content_type: str, globs: tuple[str, ...]) -> bool:
    """Whether a media type is among those that the globs describe."""
    return any(fnmatchcase(content_type, glob) for glob in globs)
