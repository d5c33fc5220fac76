"""The table of what can go wrong on the way to Coze has every refusal of that kind, and no other."""

from __future__ import annotations

import re

import pytest

from broker.errors import OutcomeUnknown, Refusal, UpstreamFault, tree
from tests.test_docs import text_of

WEATHER = text_of("docs/upstream.md").partition("## Weather")[2].partition("**What counts as a failure**")[0]
ROWS = [line.strip("|").split("|") for line in WEATHER.splitlines() if line.startswith("| ")][1:]
FAMILIES = {UpstreamFault}
OF_THE_WAY = {kind for kind in tree() if kind.code.startswith("upstream_")} - FAMILIES | {OutcomeUnknown}


def told(cells: list[str]) -> set[tuple[str, str]]:
    """Status and code of each refusal in the column of what the caller gets."""
    return set(re.findall(r"(\d{3}) `([a-z_]+)`", cells[1]))


def test_every_refusal_of_the_way_is_in_the_table_and_no_other() -> None:
    assert {each for cells in ROWS for each in told(cells)} == {
        (str(kind.status), kind.code) for kind in OF_THE_WAY
    }


@pytest.mark.parametrize("kind", [kind for kind in tree() if kind in OF_THE_WAY], ids=lambda kind: kind.code)
def test_a_refusal_that_says_when_to_come_again_does_so_in_the_table(kind: type[Refusal]) -> None:
    """Those of Coze's load and of the breaker do, the others can't know."""
    cells = " ".join(cell for row in ROWS for cell in row if f"`{kind.code}`" in cell)
    assert ("Retry-After" in cells) is (kind.status in (429, 503))


def test_every_row_says_what_goes_wrong_what_is_seen_and_what_to_do() -> None:
    for cells in ROWS:
        assert len(cells) == 4
        assert all(cell.strip() for cell in cells)
