"""The rules for routes, lifetimes and sizes. Decides, opens nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from broker.errors import EmptyFile, NotScannable, TooLarge, TtlTooLong
from broker.transfer.sensitivity import Sensitivity
from broker.transfer.sniffing import FileTypes

Route = Literal["direct", "proxy"]
RouteWish = Literal["auto", "direct", "proxy"]
Reason = Literal[
    "small_file",
    "large_file",
    "sensitive",
    "no_browser_app",
    "proxy_requested",
    "direct_unavailable",
    "key_bound_to_types",
]


@dataclass(frozen=True)
class Policy:
    """What the operator allows."""

    direct_max_bytes: int
    max_upload_bytes: int
    default_ttl_seconds: int
    max_ttl_seconds: int
    has_browser_app: bool
    file_types: FileTypes = field(default_factory=FileTypes)
    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    scan_max_bytes: int | None = None
    """The largest file that the scanner takes; ``None`` where nothing is scanned."""

    def route(
        self, *, size: int, sensitive: bool, wish: RouteWish, bound_to_types: bool = False
    ) -> tuple[Route, Reason]:
        """The way a file goes, and why. A wish for ``direct`` never overrules what speaks against it.

        ``bound_to_types``: the caller may send some types only, to which Coze's token can't hold it.
        Raises :class:`EmptyFile`, :class:`TooLarge` or :class:`NotScannable` for what no way would take.
        """
        self.check_size(size)
        if sensitive:
            self.check_scannable(size)
            return "proxy", "sensitive"
        if wish == "proxy":
            return "proxy", "proxy_requested"
        if size >= self.direct_max_bytes:
            return "proxy", "large_file"
        if not self.has_browser_app:
            return "proxy", "no_browser_app"
        if bound_to_types:
            return "proxy", "key_bound_to_types"
        return "direct", "small_file"

    def check_size(self, size: int) -> None:
        """Raises :class:`EmptyFile` or :class:`TooLarge`."""
        if size == 0:
            raise EmptyFile
        if size > self.max_upload_bytes:
            raise too_large(self.max_upload_bytes)

    def check_scannable(self, size: int) -> None:
        """Raises :class:`NotScannable` for a sensitive file of which that is known before it is sent."""
        if self.scan_max_bytes is not None and size > self.scan_max_bytes:
            raise NotScannable(log=f"{size} bytes, more than {self.scan_max_bytes}")

    def ttl_seconds(self, asked: int | None) -> int:
        """How long a token lives. What is beyond the policy is refused, never clipped in silence."""
        if asked is None:
            return self.default_ttl_seconds
        if asked > self.max_ttl_seconds:
            raise TtlTooLong(
                f"A token may live {self.max_ttl_seconds} seconds at most. Ask for that or less."
            )
        return asked


def too_large(max_bytes: int) -> TooLarge:
    """The refusal of a file that is over ``max_bytes``, with the figure in its sentence."""
    return TooLarge(f"The file is larger than the {max_bytes:,} bytes that this upload may have.")
