"""`make venv`: the set-up of .venv, with a Python that only logs its arguments."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import ENVIRONMENT, run
from tests.tiny_datasets import REPOSITORY

INSTALLER = "point_rend/cli/install_detectron2.py"

FAKE_PYTHON = """#!/bin/sh
# Logs its arguments; runs only code that asks about Python or its packages.
case "$*" in
    -c*find_spec*) [ ! -e {loss} ] && exec {python} "$@"; exit 1 ;;
    -c*|--version) exec {python} "$@" ;;
esac
echo "$*" >>{log}
if [ -e {trouble} ] && echo "$*" | grep -q "$(cat {trouble})"; then exit 1; fi
if [ -e {slow} ] && echo "$*" | grep -q "$(cat {slow})"; then rm {slow}; sleep 60; fi
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


class Checkout:
    """A copy of the files that the set-up reads, with a Python that installs nothing.

    The files `trouble` and `slow` hold a part of the command that fails or takes a minute; that
    command removes `slow` when it starts. While the file `loss` exists, a package is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.log = folder / "log"
        self.trouble = folder / "trouble"
        self.slow = folder / "slow"
        self.loss = folder / "loss"
        self.state = self.folder / ".venv" / "set-up"
        sources = ("Makefile", "constraints.txt", "setup.py", "tools/setup_venv.sh", INSTALLER)
        for name in sources:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, self.folder / name)
        (self.folder / "point_rend" / "__init__.py").touch()
        self.python = folder / "python3"
        self.python.write_text(
            FAKE_PYTHON.format(
                python=sys.executable,
                log=self.log,
                trouble=self.trouble,
                slow=self.slow,
                loss=self.loss,
            )
        )
        self.python.chmod(self.python.stat().st_mode | stat.S_IXUSR)

    def make(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return run(["make", "venv"], self.folder, **{"PYTHON": str(self.python), **variables})

    @contextmanager
    def slow_set_up(self) -> Iterator[subprocess.Popen[bytes]]:
        """A set-up in a process group of its own, in the middle of its third step."""
        self.slow.write_text("editable")
        process = subprocess.Popen(
            ["make", "venv"],
            cwd=self.folder,
            env={**ENVIRONMENT, "PYTHON": str(self.python)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while self.slow.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
        process.wait(60)

    def commands(self) -> list[str]:
        """The commands since the last call of this method."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        pytest.skip("the set-up refuses this Python")
    return Checkout(tmp_path)


def test_first_run_takes_every_step_and_second_run_none(checkout: Checkout) -> None:
    first = checkout.make()
    assert first.returncode == 0, first.stdout
    assert [line.split(" --")[0] for line in checkout.commands()] == [
        "-m venv .venv",
        "-m pip install",
        "-m pip install",
        "tools/install_detectron2.py",
        "-W ignore -c import cv2, detectron2.modeling, fvcore, pycocotools.mask, torch",
    ]
    second = checkout.make()
    assert second.returncode == 0
    assert checkout.commands() == []


def test_failing_step_is_named_with_advice_and_packages_are_reinstalled(checkout: Checkout) -> None:
    checkout.trouble.write_text("editable")
    failed = checkout.make()
    assert failed.returncode != 0
    assert "step 3 of 5" in failed.stdout
    assert "Check the network" in failed.stdout
    checkout.commands()

    half_done = checkout.folder / ".venv" / "half-done"
    half_done.touch()
    checkout.trouble.unlink()
    assert checkout.make().returncode == 0
    assert not half_done.exists()
    assert len(checkout.commands()) == 5


def test_steps_before_a_failing_detectron2_are_kept(checkout: Checkout) -> None:
    checkout.trouble.write_text("install_detectron2")
    failed = checkout.make()
    assert failed.returncode != 0
    assert "step 4 of 5 (Detectron2)" in failed.stdout
    checkout.commands()

    checkout.trouble.unlink()
    assert checkout.make().returncode == 0
    assert [line.split()[0] for line in checkout.commands()] == [
        "tools/install_detectron2.py",
        "-W",
    ]


@pytest.mark.parametrize("name", ["constraints.txt", "setup.py", INSTALLER])
def test_changed_source_recreates_the_environment(checkout: Checkout, name: str) -> None:
    checkout.make()
    checkout.commands()
    with (checkout.folder / name).open("a") as file:
        file.write("# changed\n")
    assert checkout.make().returncode == 0
    assert len(checkout.commands()) == 5


def test_moved_checkout_recreates_its_environment(checkout: Checkout) -> None:
    checkout.make()
    checkout.commands()
    checkout.folder = checkout.folder.rename(checkout.folder.parent / "moved")
    assert checkout.make().returncode == 0
    assert len(checkout.commands()) == 5


def test_environment_with_a_broken_python_is_recreated(checkout: Checkout) -> None:
    checkout.make()
    checkout.commands()
    (checkout.folder / ".venv" / "bin" / "python").write_text("#!/no/such/interpreter\n")
    assert checkout.make().returncode == 0
    assert len(checkout.commands()) == 5


def test_environment_without_a_package_is_recreated(checkout: Checkout) -> None:
    checkout.make()
    checkout.commands()
    checkout.loss.touch()
    assert checkout.make().returncode == 0
    assert len(checkout.commands()) == 5


def test_killed_set_up_is_redone(checkout: Checkout) -> None:
    with checkout.slow_set_up() as process:
        os.killpg(process.pid, signal.SIGKILL)
    checkout.commands()
    again = checkout.make()
    assert again.returncode == 0, again.stdout
    assert "waiting" not in again.stdout
    assert len(checkout.commands()) == 5


def test_second_set_up_waits_for_the_first(checkout: Checkout) -> None:
    with checkout.slow_set_up() as process:
        second = subprocess.Popen(
            ["make", "venv"],
            cwd=checkout.folder,
            env={**ENVIRONMENT, "PYTHON": str(checkout.python)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert second.stdout is not None
        assert "waiting for its end" in second.stdout.readline()
        assert len(checkout.commands()) == 3
        os.killpg(process.pid, signal.SIGKILL)
    assert second.wait(60) == 0
    second.stdout.close()
    assert len(checkout.commands()) == 5


def test_foreign_environment_is_left_alone(checkout: Checkout) -> None:
    own = checkout.folder / ".venv" / "own"
    own.parent.mkdir()
    own.touch()
    refused = checkout.make()
    assert refused.returncode != 0
    assert "make clean" in refused.stdout
    assert own.exists()


def test_unusable_python_is_refused_by_name(checkout: Checkout) -> None:
    refused = checkout.make(PYTHON="/bin/false")
    assert refused.returncode != 0
    assert "PYTHON=/bin/false" in refused.stdout
    assert "3.11 to 3.14" in refused.stdout


def test_python_that_does_not_run_is_passed_over(checkout: Checkout, tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    tools = ("cat", "cksum", "cp", "dirname", "find", "grep", "head", "mkdir", "mv", "rm", "sh")
    for name in (*tools, "touch"):
        (commands / name).symlink_to(shutil.which(name) or "")
    # A version manager leaves such a file for a version that is not installed.
    (commands / "python3.11").write_text("#!/bin/sh\necho not found >&2\nexit 127\n")
    (commands / "python3.11").chmod(0o755)
    script = ["sh", "tools/setup_venv.sh"]

    none = run(script, checkout.folder, PATH=str(commands))
    assert none.returncode != 0
    assert "No Python 3.11 to 3.14 was found" in none.stdout
    assert checkout.commands() == []

    (commands / "python3").symlink_to(checkout.python)
    assert run(script, checkout.folder, PATH=str(commands)).returncode == 0
    assert len(checkout.commands()) == 5
