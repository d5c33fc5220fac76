"""The broker without sha256, for the one row that asks what the hash costs. There is no such switch.

``python -m tests.bench.unhashed``: ``broker serve``, its hash of a file's bytes replaced before it starts.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import broker.serve  # noqa: F401 - brings everything with it that is patched below
from broker.cli import app

PATCHED = "broker.transfer."
NO_DIGEST = "0" * 64
"""What the broker answers as the file's digest then; the benchmark looks for it."""


class NoHash:
    """Takes bytes as a hash does, and forgets them."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def update(self, _: object) -> None: ...

    def digest(self) -> bytes:
        return bytes.fromhex(NO_DIGEST)

    def hexdigest(self) -> str:
        return NO_DIGEST


def modules_that_hash() -> list[ModuleType]:
    """Those that see a file's bytes; keys and tokens are hashed elsewhere, and go on being so."""
    loaded = [module for name, module in sys.modules.items() if name.startswith(PATCHED)]
    return [module for module in loaded if hasattr(module, "hashlib")]


def main() -> None:
    """Serve. Ends at once when there is no hash to replace."""
    found = modules_that_hash()
    if not found:
        sys.exit(f"No module of {PATCHED}* imports hashlib: say here where a file is hashed now.")
    for module in found:
        vars(module)["hashlib"] = SimpleNamespace(sha256=NoHash)
    app(["serve"])


if __name__ == "__main__":
    main()
