"""What the documents say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli import app
from broker.errors import Refusal, tree
from broker.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


def settings_table() -> str:
    """The table as it must stand in the README."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "", ()) else f"`{field.default}`"
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def row(kind: type[Refusal]) -> tuple[str, str, str]:
    return kind.code, str(kind.status), "yes" if kind.retryable else "no"


def between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition("-->")[2].partition(end)[0].strip()


def in_code(text: str) -> str:
    """What stands in shell blocks and between backticks."""
    found = re.findall(r"```sh\n(.+?)```|`((?:broker|make) [^`]+)`", text, re.DOTALL)
    return "\n".join("".join(match) for match in found)


def test_the_readme_lists_every_setting_as_it_is() -> None:
    assert between(README, "<!-- settings:", "<!-- /settings -->") == settings_table()


def test_every_error_is_documented_as_it_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (yes|no) \|", ERRORS, re.MULTILINE)
    # A refusal that others derive from is a family; only some of them are raised themselves.
    families = {kind for kind in tree() if kind.__subclasses__()}
    must = {row(kind) for kind in set(tree()) - families}
    assert must <= set(rows) <= must | {row(kind) for kind in families - {Refusal}}


@pytest.mark.parametrize("document", ["README.md", "docs/errors.md", "docs/performance.md", "CHANGELOG.md"])
def test_links_inside_the_project_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    assert [target for target in targets if not (folder / target).exists()] == []


def test_every_command_in_the_readme_exists() -> None:
    commands = set(re.findall(r"(?<!--)\bbroker ((?:keys )?[a-z]+)", in_code(README)))
    runner = CliRunner()
    unknown = [c for c in commands if runner.invoke(app, [*c.split(), "--help"]).exit_code != 0]
    assert unknown == []


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"\bmake ([a-z]+)", in_code(README)))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
