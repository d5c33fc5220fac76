"""What the commands write: lines for pipes, tables for people, problems with an exit code."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from broker import settings

out = Console()
err = Console(stderr=True)

Result = TypeVar("Result")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OUTPUT_EXIT_CODE = 1
USAGE_ERROR = 2


def print_line(value: Any) -> None:
    """For pipes: one line, no colours, no wrapping."""
    typer.echo(value if isinstance(value, str) else json.dumps(value))


def print_table(headings: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> None:
    """Nothing is cut, however narrow the terminal: an id that is cut can't be used."""
    lines = [headings, *(tuple("" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


class OutputError(OSError):
    """Standard output takes nothing any more: its reader has left, or its disk is full."""


class Output(io.TextIOWrapper):
    """Standard output, whose troubles are told from those of all other files: :class:`OutputError`."""

    def write(self, text: str) -> int:
        with _troubles_named():
            return super().write(text)

    def flush(self) -> None:
        with _troubles_named():
            super().flush()

    @classmethod
    def instead_of(cls, stream: io.TextIOWrapper) -> Output:
        """One that writes to the same place; what that can't show is replaced, no reason to fail."""
        return cls(
            stream.buffer,
            encoding=stream.encoding,
            errors="replace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )


@contextmanager
def _troubles_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(*error.args) from error


def end_output(error: OutputError) -> int:
    """Say that it is over, but not where the reader has left, as ``head`` does; the exit code for it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest is flushed to
    if error.errno != errno.EPIPE:
        with suppress(OSError):  # it may be the same disk
            say("red", "error", f"standard output can't be written to ({error.strerror}).")
    return OUTPUT_EXIT_CODE


def problems_of(read: Callable[[], Any]) -> list[str]:
    """What ``read`` finds wrong with the settings."""
    try:
        read()
    except settings.SettingsError as error:
        return error.problems
    return []


def or_stop(read: Callable[[], Result]) -> Result:
    """What ``read`` gives; where the settings are wrong the command ends, and says why."""
    try:
        return read()
    except settings.SettingsError as error:
        stop(error.problems)


def stop(problems: list[str]) -> NoReturn:
    """End the command with a line for each problem."""
    for sentence in problems:
        say("red", "error", sentence)
    raise typer.Exit(USAGE_ERROR)


def say(style: str, word: str, sentence: str) -> None:
    """A line on standard error, its first word in colour."""
    err.print(f"[{style}]{word}[/{style}] {escape(sentence)}", highlight=False, soft_wrap=True)
