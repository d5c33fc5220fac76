"""What a key may do beyond its scopes: with which agents, files, networks, and how much."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from fnmatch import fnmatchcase


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

    def allows_bot(self, bot_id: str) -> bool:
        """Whether the key may use this agent."""
        return not self.bots or bot_id in self.bots

    def allows_workflow(self, workflow_id: str) -> bool:
        """Whether the key may run this workflow."""
        return not self.workflows or workflow_id in self.workflows

    def allows_type(self, content_type: str) -> bool:
        """Whether the key may upload files of this media type (lower case, no parameters)."""
        return not self.content_types or any(fnmatchcase(content_type, glob) for glob in self.content_types)

    def allows_address(self, address: str | None) -> bool:
        """Whether the key may be used from this IP address; one that is not known is in no range."""
        if not self.networks:
            return True
        try:
            ip = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        mapped = getattr(ip, "ipv4_mapped", None)
        return any((mapped or ip) in ipaddress.ip_network(network) for network in self.networks)
