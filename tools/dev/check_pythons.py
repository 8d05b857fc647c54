#!/usr/bin/env python
"""Test PointRend briefly on every other Python from 3.11 to 3.14 that this machine has.

    python tools/dev/check_pythons.py     # or: make test-pythons

Each Python gets an environment of its own, `.venv-3.13` and so on, which is kept (6 GB). There, all
modules are compiled and imported, `pointrend demo --quick` is run, and then the core tests. A
Python that is missing, or whose packages cannot be downloaded, is skipped with a line.
"""

import argparse
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
CORE_TESTS = (
    *("tests/rendering", "tests/ground_truth", "tests/parity", "tests/config", "tests/checkpoint"),
    *("tests/data/loader", "tests/evaluation"),
)
SOURCES = ("point_rend", "tests", "tools", "examples", "train_net.py", "setup.py")
LARGE_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python")
BYTES = 8e9  # of an environment, and a little more
SECONDS_TO_SET_UP = 1200
# Variables of `make test-pythons`, and of its .venv, that must not reach the other environments.
OWN_VARIABLES = (
    *("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"),
    *("ARGS", "PYTHON", "VENV", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"),
)
VERSION = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
IMPORTS = """
import importlib, pkgutil, point_rend
for module in pkgutil.walk_packages(point_rend.__path__, "point_rend."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


class SkippedError(Exception):
    """A Python cannot be tested on this machine; the message gives the reason."""


class FailedError(Exception):
    """A Python failed; the message names the step."""


def run(command: Sequence[str | Path], *, limit: float | None = None) -> tuple[int | None, str]:
    """Run a command in the root of the repository and collect its output.

    Returns:
        The exit code, None if it took longer than `limit` seconds, and the output.
    """
    variables = {name: text for name, text in os.environ.items() if name not in OWN_VARIABLES}
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=REPOSITORY,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
        output, _ = process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return None, output
    return process.returncode, output


def find_python(version: str) -> str | None:
    """Return a Python of a version with the modules for virtual environments, if there is one."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    found = shutil.which(f"python{version}")
    candidates = sorted(glob.glob(f"{glob.escape(pyenv)}/versions/{version}.*/bin/python"))
    for candidate in [*([found] if found else []), *candidates]:
        if run([candidate, "-c", VERSION]) == (0, f"{version}\n"):
            return candidate
    return None


def set_up(python: str, folder: Path) -> None:
    """Set up an environment, unless it is complete.

    Raises:
        SkippedError: If the packages cannot be had.
        FailedError: If they can, and yet the set-up fails.
    """
    if not folder.exists() and shutil.disk_usage(REPOSITORY).free < BYTES:
        raise SkippedError(f"{REPOSITORY} has less than {BYTES / 1e9:.0f} GB of free space")
    print(f"setting up {folder.name} ...", flush=True)
    command = ["make", "venv", f"VENV={folder.name}", f"PYTHON={python}"]
    status, output = run(command, limit=SECONDS_TO_SET_UP)
    if status == 0:
        return
    print("\n".join(output.splitlines()[-20:]))
    if status is None:
        raise SkippedError(f"its set-up took more than {SECONDS_TO_SET_UP // 60} minutes")
    own_python = folder / "bin" / "python"
    pip: list[str | Path] = [own_python, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--constraint", "constraints.txt"]
    if own_python.exists() and run([*pip, *options, *LARGE_PACKAGES])[0] != 0:
        raise SkippedError("its packages cannot be downloaded")
    raise FailedError("set-up")


def check(version: str) -> str:
    """Test a version.

    Returns:
        A summary of its tests.

    Raises:
        SkippedError: If it is not there, or its packages cannot be had.
        FailedError: If a step fails.
    """
    python = find_python(version)
    if python is None:
        raise SkippedError("not on this machine")
    folder = REPOSITORY / f".venv-{version}"
    set_up(python, folder)
    own_python = folder / "bin" / "python"
    tests = f"ARGS=-q {' '.join(CORE_TESTS)}"
    with tempfile.TemporaryDirectory() as output:
        steps: dict[str, list[str | Path]] = {
            "compilation": [own_python, "-W", "error", "-m", "compileall", "-q", "-f", *SOURCES],
            "imports": [own_python, "-W", "ignore", "-c", IMPORTS],
            "demo": [folder / "bin" / "pointrend", "demo", "--quick", "--output", output],
            "tests": ["make", "test", f"VENV={folder.name}", f"PYTHON={python}", tests],
        }
        for name, command in steps.items():
            print(f"{name} ...", flush=True)
            status, printed = run(command)
            if status != 0:
                print(printed)
                raise FailedError(name)
    return printed.strip().splitlines()[-1].strip(" =")


def main(argv: Sequence[str] | None = None) -> None:
    """Test every version but that of the running Python.

    Raises:
        SystemExit: With code 1 if one of them fails.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    summary = {}
    failed = False
    for version in VERSIONS:
        if version == "{}.{}".format(*sys.version_info):
            continue
        print(f"=== Python {version}", flush=True)
        try:
            summary[version] = check(version)
        except SkippedError as reason:
            summary[version] = f"skipped: {reason}"
        except FailedError as step:
            summary[version] = f"failed: {step}"
            failed = True
    for version, text in summary.items():
        print(f"Python {version}: {text}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
