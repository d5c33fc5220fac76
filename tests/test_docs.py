"""What the documents say is what the code does."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.cli import app
from broker.errors import Refusal, tree
from broker.settings import Settings
from broker.settings.checks import OF_THE_COMMAND_LINE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"(?<![-/\w])broker ((?:(?:keys|audit|signing-keys) )?[a-z][a-z-]*)")
DOCUMENTS = (
    "README.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)


def settings_table() -> str:
    """The table as it must stand in the README."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "", (), {}) else f"`{field.default}`"
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def row(kind: type[Refusal]) -> tuple[str, str, str]:
    return kind.code, str(kind.status), "yes" if kind.retryable else "no"


def between(text: str, start: str, end: str) -> str:
    return text.partition(start)[2].partition("-->")[2].partition(end)[0].strip()


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def headings(path: Path) -> set[str]:
    """What a link may name behind its ``#``, as GitHub makes it."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@functools.cache
def help_of(command: str) -> str | None:
    """What a command says of itself; None where there is no such command."""
    done = CliRunner().invoke(app, [*command.split(), "--help"], terminal_width=200)
    return done.output if done.exit_code == 0 else None


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


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_inside_the_project_lead_somewhere(document: str) -> None:
    lost = []
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text_of(document)):
        name, _, heading = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        if not path.exists() or (heading and heading not in headings(path)):
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_is_named_exists(document: str) -> None:
    commands = set(COMMAND.findall(in_code(text_of(document))))
    unknown = [command for command in commands if help_of(command) is None]
    assert unknown == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_that_is_shown_exists(document: str) -> None:
    wrong = []
    for line in re.findall(r"^ *(broker .+)$", in_code(text_of(document)), re.MULTILINE):
        shown, _, _ = line.partition("  #")
        known = "".join(help_of(command) or "" for command in COMMAND.findall(shown))
        wrong += [option for option in re.findall(r"(?<=\s)--[a-z][a-z-]+", shown) if option not in known]
    assert wrong == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_setting_that_is_named_exists(document: str) -> None:
    named = set(re.findall(r"`((?:BROKER|RATE|ENABLE)_[A-Z_]*[A-Z])\b", text_of(document)))
    assert named - {name.upper() for name in Settings.model_fields} - OF_THE_COMMAND_LINE == set()


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"\bmake ([a-z]+)", in_code(README)))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
