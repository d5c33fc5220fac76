"""The fuzzer's seeds keep every promise, a short run finds nothing, and a broken promise is found.

The seeds need no fuzzer; ``make fuzz`` runs for longer.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys
from pathlib import Path

import pytest

from tests.fuzz import TARGETS, Target
from tests.fuzz.run import MAX_MEMORY_MB, fuzz
from tests.support import needs

SEEDS = [(target, seed) for target in TARGETS.values() for seed in sorted(target.corpus.iterdir())]
SHORT_SECONDS = 6
SEED = 1
"""The same inputs each time, as far as they come."""


@pytest.fixture(scope="module")
def fuzzer() -> None:
    """atheris has wheels for Linux on x86-64 and Python 3.11 to 3.13 only."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info >= (3, 14):
        pytest.skip("there is no atheris for this machine or Python")
    if importlib.util.find_spec("atheris") is None:
        needs.missing("atheris is not installed")


@pytest.mark.parametrize(
    ("target", "seed"), SEEDS, ids=[f"{target.name}: {seed.name}" for target, seed in SEEDS]
)
def test_a_seed_keeps_every_promise(target: Target, seed: Path) -> None:
    importlib.import_module(target.module).check(seed.read_bytes())


def test_there_are_seeds_for_every_target() -> None:
    sizes = {
        target.name: [seed.stat().st_size for seed in target.corpus.iterdir()] for target in TARGETS.values()
    }
    assert all(len(each) >= 10 and max(each) <= 2048 for each in sizes.values()), sizes


@pytest.mark.usefixtures("fuzzer")
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_short_run_breaks_no_promise(target: Target, tmp_path: Path) -> None:
    result = fuzz(target, seconds=SHORT_SECONDS, folder=tmp_path, seed=SEED)
    assert result.found is None, f"{result.found.read_bytes()!r}\n{result.log.read_text(errors='replace')}"
    assert result.inputs > len(list(target.corpus.iterdir()))
    assert result.peak_memory_mb < MAX_MEMORY_MB


@pytest.mark.usefixtures("fuzzer")
def test_a_broken_promise_is_found_and_its_input_kept(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(b"sound")
    planted = Target("planted", __name__, corpus, (__name__,), ("bug",))
    result = fuzz(planted, seconds=30, folder=tmp_path / "found", seed=SEED)
    assert result.found is not None
    assert b"bug" in result.found.read_bytes()
    assert "no bug is taken" in result.log.read_text(errors="replace")


def check(data: bytes) -> None:
    """A target with a bug."""
    assert b"bug" not in data, "no bug is taken"
