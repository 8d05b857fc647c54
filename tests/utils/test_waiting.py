"""The wait of OpenMP threads: which processes make it passive, and that OpenMP reads it."""

import os
import subprocess
import sys

import pytest

from point_rend.utils import waiting
from tests.commands import ENVIRONMENT
from tests.tiny_datasets import REPOSITORY

# Neither imports PyTorch: one starts train_net.py, the other pip.
WITHOUT_TORCH = {
    "check_pythons.py",
    "fuzz.py",
    "install_detectron2.py",
    "rehearse_large_coco.py",
    "rehearse_two_nodes.py",
}
DOORS = [
    script
    for script in (
        REPOSITORY / "train_net.py",
        *sorted((REPOSITORY / "tools").glob("**/*.py")),
        REPOSITORY / "point_rend" / "__main__.py",
    )
    if script.name not in WITHOUT_TORCH
]
# Each door runs in a fork, until it imports PyTorch or ends.
START = """
import os, runpy, sys
import point_rend, nbclient, nbformat, PIL.Image
class Watch:
    def find_spec(name, *_):
        if name == "torch":
            end()
def end():
    words = [f"{name}={os.environ.get(name)}" for name in %r]
    os.write(1, f"{' '.join(words)}\\n".encode())
    os._exit(0)
sys.meta_path.insert(0, Watch)
assert "torch" not in sys.modules
for start in sys.argv[1:]:
    if not os.fork():
        sys.argv, sys.path[0] = [start, "--version"], os.path.dirname(start)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        try:
            runpy.run_path(start, run_name="__main__")
        finally:
            end()
    os.wait()
"""


def start(code: str, *words: object, **variables: str) -> subprocess.Popen[str]:
    """Start Python with code, in an environment with no other variables of OpenMP."""
    inherited = {key: value for key, value in ENVIRONMENT.items() if key not in waiting.VARIABLES}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env={**inherited, "PYTHONPATH": str(REPOSITORY), **variables},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_every_door_makes_the_wait_passive_before_pytorch_is_imported() -> None:
    code = START % (tuple(waiting.PASSIVE),)
    for variables, expected in (
        ({}, "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=1000 KMP_BLOCKTIME=0"),
        ({"GOMP_SPINCOUNT": "7"}, "OMP_WAIT_POLICY=None GOMP_SPINCOUNT=7 KMP_BLOCKTIME=None"),
    ):
        output, _ = start(code, *DOORS, **variables).communicate(timeout=100)
        assert output.splitlines() == [expected] * len(DOORS)


def test_openmp_reads_it_in_a_command_and_not_where_the_package_is_imported() -> None:
    """By the report of the OpenMP library itself."""
    imports = ("point_rend.cli", "point_rend, point_rend.rendering.subdivision")
    started = [start(f"import {x}; import torch", OMP_DISPLAY_ENV="verbose") for x in imports]
    command, library = (process.communicate(timeout=100)[0] for process in started)
    assert "GOMP_SPINCOUNT = '1000'" in command
    assert "GOMP_SPINCOUNT = '1000'" not in library
    assert "GOMP_SPINCOUNT = " in library


def test_only_the_commands_of_the_package_change_the_wait() -> None:
    package = REPOSITORY / "point_rend"
    callers = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if "wait_passively" in file.read_text(encoding="utf-8")
    }
    assert callers == {"utils/waiting.py", "cli/__init__.py"}


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process without variables of OpenMP that has not loaded PyTorch, as far as it shows."""
    for name in waiting.VARIABLES:
        monkeypatch.setenv(name, "")  # restored at the end, even if it was not set
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch")
    return monkeypatch


@pytest.mark.usefixtures("unset")
def test_the_wait_is_passive_for_processes_that_are_started_later() -> None:
    waiting.wait_passively()
    assert waiting.wait_settings() == waiting.PASSIVE
    code = f"import os; print(*(os.environ[name] for name in {list(waiting.PASSIVE)}))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "PASSIVE 1000 0\n"


@pytest.mark.parametrize("name", waiting.VARIABLES)
def test_a_setting_of_the_user_stays_alone(unset: pytest.MonkeyPatch, name: str) -> None:
    unset.setenv(name, "9")
    waiting.wait_passively()
    assert waiting.wait_settings() == {name: "9"}


def test_after_pytorch_was_loaded_nothing_changes(unset: pytest.MonkeyPatch) -> None:
    unset.setitem(sys.modules, "torch", os)
    waiting.wait_passively()
    assert waiting.wait_settings() == {}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (waiting.PASSIVE, "passive wait"),
        ({}, "OpenMP's default wait"),
        ({"GOMP_SPINCOUNT": "300000"}, "wait by GOMP_SPINCOUNT=300000"),
        (
            {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "1"},
            "wait by OMP_WAIT_POLICY=PASSIVE KMP_BLOCKTIME=1",
        ),
    ],
)
def test_the_wait_is_described_by_what_is_set(
    unset: pytest.MonkeyPatch, variables: dict[str, str], words: str
) -> None:
    for name, value in variables.items():
        unset.setenv(name, value)
    assert waiting.describe_wait() == words
