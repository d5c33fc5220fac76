"""``.env``: where settings may stand besides the environment."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

NAME = ".env"
MAX_LINES = 5
_BLANK_LINES = re.compile(r"\s*")
_LINE_END = re.compile(r"\r\n|\n|\r")

# It would tell of bad lines itself, each time that the file is read, and to whoever listens to loggers.
logging.getLogger("dotenv").setLevel(logging.ERROR)


def path() -> str | None:
    """The file, for whoever reads it; None where there is none. A pipe is none: it would be waited for."""
    return NAME if Path(NAME).is_file() else None


def values() -> dict[str, str | None]:
    """What it says, by name. Raises ``OSError``, and ``UnicodeDecodeError``."""
    return dict(dotenv_values(NAME)) if path() else {}


def troubles() -> list[str]:
    """What in it means nothing, a sentence each; of what stands there, only the line's number."""
    if path() is None:
        return [f"{NAME} is not a regular file: nothing is read from it."] if os.path.lexists(NAME) else []
    try:
        lines = list(_bad_lines())
    except (OSError, UnicodeDecodeError):  # the settings can't be read then, and say why
        return []
    if not lines:
        return []
    told = ", ".join(map(str, lines[:MAX_LINES]))
    more = f" and {len(lines) - MAX_LINES} more" if len(lines) > MAX_LINES else ""
    one = len(lines) == 1
    return [
        f"{NAME}: line{'' if one else 's'} {told}{more} {'is' if one else 'are'} not NAME=value, "
        f"and {'is' if one else 'are'} passed over."
    ]


def _bad_lines() -> Iterator[int]:
    """The numbers of lines that set nothing, be they no settings or names alone."""
    with Path(NAME).open(encoding="utf-8") as stream:
        for binding in parse_stream(stream):
            if binding.error or (binding.key is not None and binding.value is None):
                yield _line_of(binding)


def _line_of(binding: Binding) -> int:
    """The parser counts blank lines to what follows them."""
    blank = _BLANK_LINES.match(binding.original.string)
    return binding.original.line + len(_LINE_END.findall(blank.group() if blank else ""))
