"""The table of what can go wrong on the way to Coze has every refusal of that kind, and no other."""

from __future__ import annotations

import re
from typing import Any

import pytest

from broker.api.status import contract
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


MAY_FIND_COZE_DOWN = {
    "/token": "post",
    "/proxy/upload": "post",
    "/uploads/{upload_id}/complete": "post",
    "/v1/files/upload": "post",
    "/v1/files/retrieve": "get",
}


@pytest.mark.parametrize(("path", "method"), MAY_FIND_COZE_DOWN.items())
def test_the_contract_names_the_refusal_while_coze_is_down(path: str, method: str) -> None:
    response = resolved(contract()["paths"][path][method]["responses"]["503"])
    assert "`upstream_down`" in response["description"]
    assert "Retry-After" in response["headers"]


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
def test_the_contract_names_the_refusal_of_who_would_wait_too_long_for_a_turn(path: str) -> None:
    assert (
        "`upstream_limit`" in resolved(contract()["paths"][path]["post"]["responses"]["429"])["description"]
    )


def resolved(response: dict[str, str]) -> dict[str, Any]:
    """What the contract has under a reference's name."""
    found: dict[str, Any] = contract()["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return found
