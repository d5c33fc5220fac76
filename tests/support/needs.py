"""What a machine must have for a test, named; where it is missing the test is skipped, and CI fails."""

from __future__ import annotations

import glob
import os
import shutil
from typing import NoReturn

import pytest


def executable(*names: str) -> str:
    """The path of the first of these programs that is here; names may be paths with wildcards."""
    for name in names:
        found = shutil.which(name) or next(iter(sorted(glob.glob(name), reverse=True)), None)
        if found:
            return found
    missing(f"none of {', '.join(names)} is installed")


def missing(reason: str) -> NoReturn:
    """Skip by name and reason; where everything must be there (CI), fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"needed here: {reason}")
    pytest.skip(reason)
