"""The Dockerfile, against the files and versions that it names; no test here starts Docker."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
# (name, value) of each instruction, with continued lines joined.
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.+)$", TEXT.replace("\\\n", ""), flags=re.MULTILINE)
CONTEXT = [
    line.removeprefix("!")
    for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line.startswith("!")
]


def values(instruction: str) -> list[str]:
    return [value for name, value in INSTRUCTIONS if name == instruction]


def commands() -> list[str]:
    """The shell commands of all RUN instructions."""
    return [part.strip() for value in values("RUN") for part in value.split("&&")]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that Docker copies into the image."""
    folder = tmp_path_factory.mktemp("context")
    for name in CONTEXT:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


def test_the_image_is_described_in_about_15_lines():
    assert len(TEXT.splitlines()) <= 17
    assert {name for name, _ in INSTRUCTIONS} <= {
        "FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT",
    }  # fmt: skip


def test_the_python_of_the_image_is_one_that_the_package_supports():
    (image,) = values("FROM")
    (version,) = re.findall(r"^python:(3\.\d+)-slim-\w+$", image)
    classifier = version.removeprefix("3.")
    (minors,) = re.findall(r"for minor in \(([\d, ]+)\)", (REPOSITORY / "setup.py").read_text())
    assert classifier in minors.split(", ")


def test_one_argument_selects_the_device_and_names_the_cuda_of_the_constraints():
    assert values("ARG") == ["DEVICE=cpu"]
    assert sum("$DEVICE" in value for _, value in INSTRUCTIONS) == 1
    assert "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/$DEVICE" in values("ENV")[0]
    (major, minor) = re.findall(
        r"^cuda-toolkit==(\d+)\.(\d+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE
    )[0]
    assert re.findall(r"--build-arg (\S+)", TEXT) == [f"DEVICE=cu{major}{minor}"]
    assert f"CUDA {major}.{minor}" in TEXT


def test_everything_is_installed_in_the_versions_of_the_constraints():
    installing = [command for command in commands() if command.startswith(("pip", "pointrend"))]
    assert len(installing) == 3
    assert all("--constraint constraints.txt" in command for command in installing)
    assert "constraints.txt" in CONTEXT


def test_the_extras_of_the_image_exist():
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", TEXT)
    setup = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    assert all(f'"{extra}": ' in setup for extra in extras.split(","))


def test_the_commands_run_as_a_user_without_rights():
    (user,) = values("USER")
    assert user != "root"
    assert f"useradd --create-home {user}" in commands()
    names = [name for name, _ in INSTRUCTIONS]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


def test_the_package_that_is_built_from_the_context_is_that_of_the_repository(context, tmp_path):
    assert values("COPY") == [". ."]
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=context, check=True, capture_output=True)
    built = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    code = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "point_rend").rglob("*.py")}
    assert {path.as_posix() for path in code} <= built
    configs = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert {f"point_rend/{path.as_posix()}" for path in configs} <= built
    assert (context / "examples").is_dir()
