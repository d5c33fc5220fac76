"""What a machine must have for a test, named; where it is missing the test is skipped, and CI fails."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def executable(*names: str) -> str:
    """The path of the first of these programs that is here; names may be paths with wildcards."""
    found = [path for name in names for path in _paths(name)]
    return found[0] if found else missing(f"none of {', '.join(names)} is installed")


def _paths(name: str) -> list[str]:
    if "*" in name:
        return [str(path) for path in sorted(Path("/").glob(name.lstrip("/")), reverse=True)]
    path = shutil.which(name)
    return [path] if path else []


def networks() -> None:
    """Namespaces with networks of their own, which only root may make."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        missing("network namespaces need root and ip")


def missing(reason: str) -> NoReturn:
    """Skip by name and reason; where everything must be there (CI), fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"needed here: {reason}")
    pytest.skip(reason)
