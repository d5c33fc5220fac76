"""What is shipped: a wheel with all that it needs, and pins for all that it depends on."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check"]
    if importlib.util.find_spec("hatchling"):
        command.append("--no-build-isolation")  # else pip fetches the build tool, pinned as everything
    environment = os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    command += ["--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_has_the_whole_package(wheel: zipfile.ZipFile) -> None:
    """Every file of the package and of the page, as they are here, and nothing of the tests."""
    names = set(wheel.namelist())
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "broker").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    static = {
        "broker/" + path.relative_to(ROOT).as_posix()
        for path in (ROOT / "web" / "static").rglob("*")
        if path.is_file()
    }
    for name in (
        "openapi.yaml",
        "py.typed",
        "state/migrations/env.py",
        "state/migrations/versions/__init__.py",
    ):
        assert f"broker/{name}" in package
    assert "broker/web/static/docs/index.html" in static
    assert package | static <= names
    assert {name.split("/")[0].partition(".dist-info")[1] or name.split("/")[0] for name in names} == {
        "broker",
        ".dist-info",
    }


def test_the_wheel_names_its_command_and_licence(wheel: zipfile.ZipFile) -> None:
    names = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    assert "broker = broker.__main__:main" in wheel.read(names["entry_points.txt"]).decode()
    assert any(name.endswith("LICENSE") for name in names)


def pinned() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    matches = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line) for line in lines]
    assert all(matches), "a name and an exact version, no host, no path"
    return {normal(match[1]): match[2] for match in matches if match}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
        project["build-system"]["requires"],
    ]
    wanted = {normal(re.split(r"[\[>=;<~! ]", line)[0]) for lines in groups for line in lines}
    assert wanted <= set(pinned())


def test_what_is_pinned_names_no_host() -> None:
    for file in ("constraints.txt", "pyproject.toml", "tests/clients/package.json"):
        assert not re.search(r"https?://|--index|--find-links|@ file", (ROOT / file).read_text()), file
    lock = (ROOT / "tests" / "clients" / "package-lock.json").read_text()
    assert '"resolved"' not in lock
