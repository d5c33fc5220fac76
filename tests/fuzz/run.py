"""One target in a process of its own, bounded in time, memory and length of input."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import Target

MAX_INPUT_BYTES = 2048
MAX_INPUT_SECONDS = 10
MAX_MEMORY_MB = 1024
GRACE_SECONDS = 60
"""For the start, and for the input that it is at when its time is up."""

_FIGURE = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """What came of a run. ``found`` is the input that broke a promise."""

    target: str
    inputs: int
    inputs_per_second: int
    peak_memory_mb: int
    found: Path | None
    log: Path


def fuzz(target: Target, *, seconds: int, folder: Path, seed: int = 0) -> Result:
    """Feed a target for so long. What reached something new is kept in ``folder``, as is what broke it.

    ``seed`` 0 takes another one each time. Raises ``RuntimeError`` when the fuzzer itself can't run.
    """
    reached = folder / target.name
    reached.mkdir(parents=True, exist_ok=True)
    log, words = folder / f"{target.name}.log", folder / f"{target.name}.words"
    words.write_text("".join(f'"{word}"\n' for word in target.words))
    options = {
        "seed": seed,
        "max_total_time": seconds,
        "max_len": MAX_INPUT_BYTES,
        "len_control": 0,
        "timeout": MAX_INPUT_SECONDS,
        "rss_limit_mb": MAX_MEMORY_MB,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder / target.name}-",
        "dict": words,
    }
    command = [*_worker(target), *(f"-{name}={value}" for name, value in options.items())]
    with log.open("wb") as file:
        status = subprocess.run(
            [*command, str(reached), str(target.corpus)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=seconds + GRACE_SECONDS,
            check=False,
        ).returncode
    return _result(target, log, status)


def _worker(target: Target) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz.worker", target.module, ",".join(target.watched)]


def _result(target: Target, log: Path, status: int) -> Result:
    text = log.read_text(errors="replace")
    figures = {name: int(value) for name, value in _FIGURE.findall(text)}
    saved = re.search(r"Test unit written to (.+)", text)
    if not figures or (status != 0 and saved is None):
        raise RuntimeError(f"the fuzzer of {target.name} ended with status {status}; see {log}")
    return Result(
        target=target.name,
        inputs=figures["number_of_executed_units"],
        inputs_per_second=figures["average_exec_per_sec"],
        peak_memory_mb=figures["peak_rss_mb"],
        found=Path(saved[1]) if saved else None,
        log=log,
    )
