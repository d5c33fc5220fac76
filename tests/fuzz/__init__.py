"""``make fuzz``: what reads bytes of strangers, fed with bytes that nobody would write.

Each target is a module with ``check(data)``, which fails when a promise is broken; its seeds, and every
input that once broke one, are in ``corpus/`` under its name. To add one: write the module, name it in
``TARGETS``, put seeds into its folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """A ``check`` and where it starts from."""

    name: str
    module: str
    corpus: Path
    watched: tuple[str, ...]
    """The packages whose branches the fuzzer tries to reach."""
    words: tuple[str, ...] = ()
    """What it may put together; finding them by chance would take it long."""


_HEADER = ("Content-Disposition", "form-data", "filename", 'name=\\"file\\"', "*=UTF-8''", "%22", "%0D%0A")
_FORM = ("\\x0D\\x0A--b", "--b--", "\\x0D\\x0A\\x0D\\x0A", "Content-Type: ")
_FILE = (
    "\\x89PNG\\x0D\\x0A",
    "%PDF-",
    "PK\\x03\\x04",
    "ftyp",
    "RIFF",
    "<!DOCTYPE html",
    ".png",
    ".pdf",
    "image/png",
)
_TOKEN = ("eyJ", ".", "ImFsZyI6", "Im5vbmUi")


def _target(name: str, watched: tuple[str, ...], words: tuple[str, ...]) -> Target:
    return Target(name, f"tests.fuzz.{name}", CORPUS / name, watched, words)


TARGETS = {
    target.name: target
    for target in (
        _target("forms", ("broker.transfer", "python_multipart"), _HEADER + _FORM),
        _target("file_names", ("broker.transfer", "python_multipart"), _HEADER),
        _target("sniffing", ("broker.transfer", "puremagic"), _FILE),
        _target("tokens", ("broker.auth", "jwt"), _TOKEN),
    )
}
