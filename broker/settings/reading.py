"""Reading the settings from the environment and ``.env``, once, checked together."""

from __future__ import annotations

import os
from typing import Any

from pydantic import ValidationError

from broker.settings import env_file
from broker.settings.checks import problems, store_problems
from broker.settings.fields import Settings


class SettingsError(Exception):
    """What is wrong with the settings, all of it at once: ``problems`` has a sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load(**overrides: Any) -> Settings:
    """Read and check the settings; ``overrides`` (by field name) win over the environment.

    Raises :class:`SettingsError` that names every problem.
    """
    settings, found = _read(overrides)
    _check(found + problems(settings))
    return settings


def load_for_store() -> Settings:
    """Read the settings and check what the database needs; for commands that talk to no Coze."""
    settings, found = _read({})
    _check([*found, *store_problems(settings)])
    return settings


def read() -> Settings:
    """Read the settings as they are, good or bad; ``problems`` tells which.

    Raises :class:`SettingsError`, with every problem, when a value is of no use at all.
    """
    settings, found = _read({})
    if found:
        _check(found + problems(settings))
    return settings


def _check(found: list[str]) -> None:
    """A line of ``.env`` that can't be read may be the reason for all others, so it is named with them."""
    if found:
        raise SettingsError(found + env_file.troubles())


def _read(overrides: dict[str, Any]) -> tuple[Settings, list[str]]:
    """The settings, and a sentence for each value that can't be one; its default stands in for it,
    so that the rest can be checked all the same.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(_env_file=env_file.path(), **given), []
    except ValidationError as error:
        found = error.errors()
    except UnicodeDecodeError as error:
        raise SettingsError(
            [f".env: the file can't be read as UTF-8 text ({type(error).__name__})."]
        ) from None
    except OSError as error:
        raise SettingsError([f".env: the file can't be read ({error.strerror})."]) from None
    defaults = {str(each["loc"][0]): Settings.model_fields[str(each["loc"][0])].default for each in found}
    return Settings(_env_file=env_file.path(), **{**given, **defaults}), [_sentence(each) for each in found]


def source_of(name: str) -> str:
    """Where the value of a field comes from: ``environment``, ``.env`` or ``default``."""
    env_name = name.upper()
    if any(key.upper() == env_name and value for key, value in os.environ.items()):
        return "environment"
    if any(key.upper() == env_name and value for key, value in env_file.values().items()):
        return ".env"
    return "default"


def _sentence(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"]).upper()
    return f"{name}: {problem['msg']}."
