"""The README's screens of ``broker doctor`` are what it prints on the same broken ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.authority import make_authority
from tests.support.doctor import (
    environment,
    listening_in,
    make_silent,
    namespace,
    never_answering,
    run,
    serving_on,
    with_tls,
)

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SCREENS = re.findall(r"^```\n\$ broker doctor\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
HOST, ADDRESS = "api.coze.cn", "101.126.59.10"
COZE = {"COZE_API_BASE": f"https://{HOST}", "COZE_API_TOKEN": "pat_of_the_readme"}
CHANGES: dict[str, str] = {
    r": \d+ ms$": ": N ms",  # how long the address took to connect
    r", \d+\.\d s\)\.$": ", N s).",  # how long all of it took
}
"""What differs from run to run, and what stands for it on both sides. Nothing else may differ."""


@contextmanager
def firewall(name: str, _: Path) -> Iterator[None]:
    """What goes out is dropped."""
    make_silent(name, ADDRESS)
    yield


@contextmanager
def gateway(name: str, folder: Path) -> Iterator[None]:
    """It answers as Coze, with a certificate that it issued itself."""
    pem = make_authority(folder, "Example Corp Web Gateway").issue(HOST)
    with serving_on(listening_in(name, ADDRESS, 443), with_tls(pem, never_answering)):
        yield


WAYS = (firewall, gateway)


def steady(screen: str) -> str:
    """A screen without what changes."""
    for pattern, stand_in in CHANGES.items():
        screen = re.sub(pattern, stand_in, screen, flags=re.MULTILINE)
    return screen


@pytest.fixture(autouse=True)
def networks() -> None:
    needs.networks()


@pytest.mark.parametrize(("way", "number"), [(way, number) for number, way in enumerate(WAYS)])
def test_a_screen_in_the_readme_is_what_the_doctor_prints(
    folder: Path, way: Callable[[str, Path], AbstractContextManager[None]], number: int
) -> None:
    with namespace({HOST: [ADDRESS]}) as name, way(name, folder):
        done = run(environment(folder, COZE), cwd=folder, namespace=name)
    assert steady(done.stdout) == steady(SCREENS[number])
    code = re.search(r"exit code (\d+)", done.stdout)
    assert code is not None
    assert done.returncode == int(code[1])


def test_every_screen_in_the_readme_is_held() -> None:
    assert len(SCREENS) == len(WAYS) == README.count("$ broker doctor")
