"""``python -m tests.fuzz.worker MODULE PACKAGES [libFuzzer's options]``: one target, until it ends."""

from __future__ import annotations

import importlib
import logging
import sys

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]


def main() -> None:
    """Instrument the watched packages, then feed the module's ``check``."""
    module, watched, *options = sys.argv[1:]
    logging.disable(logging.CRITICAL)  # what is refused need not be logged a thousand times a second
    with atheris.instrument_imports(include=watched.split(",")):
        check = importlib.import_module(module).check
    atheris.Setup([sys.argv[0], *options], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
