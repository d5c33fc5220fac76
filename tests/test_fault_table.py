"""The table of faults is the truth: every test that it names is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fault_table import FAULTS, names


@pytest.fixture(scope="module")
def node_ids(pytestconfig: pytest.Config) -> list[str]:
    """The ids of all tests in the files that the table names."""
    files = sorted({test.partition("::")[0] for tests in FAULTS.values() for test in tests})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *(f"tests/{file}" for file in files)]
    root = Path(pytestconfig.rootpath)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_every_fault_is_shown_by_the_tests_that_the_table_names(node_ids: list[str]) -> None:
    missing = {
        (fault, test)
        for fault, tests in FAULTS.items()
        for test in tests
        if not any(names(test, node_id) for node_id in node_ids)
    }
    assert missing == set()
    assert all(FAULTS.values())


def test_every_fault_beside_a_bystander_is_in_the_table(node_ids: list[str]) -> None:
    """So that it is looked at whether one of them leaves something behind."""
    ours = [node_id for node_id in node_ids if "test_left_behind.py::" in node_id]
    named = [test for tests in FAULTS.values() for test in tests]
    assert [node_id for node_id in ours if not any(names(test, node_id) for test in named)] == []
