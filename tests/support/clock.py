"""A clock for whatever gets its clock as an argument."""

from __future__ import annotations

import pytest


class Clock:
    """Says what time it is, in seconds; time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
