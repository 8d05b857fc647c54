"""Install Detectron2 into the Python environment that runs this command.

1. A Detectron2 that can be imported is kept as it is.
2. Otherwise, the environment variable `DETECTRON2`, a requirement or a path for pip, selects what
   to build. This needs a C++ compiler, and GitHub for the official sources:
   `DETECTRON2='git+https://github.com/facebookresearch/detectron2.git'`.
3. Otherwise, the pure-Python part of a wheel on the package index is unpacked: Detectron2's sources
   of April 2024, which run on every Python and PyTorch that PointRend supports. The wheel is
   pinned and verified by its hash. Its compiled extension, which loads on Python 3.10 only, and
   the unrelated top-level package `tools` are left out; without the extension, rotated boxes,
   deformable convolution and the fast COCO evaluation are missing. PointRend uses none of them.
   Three lines that need NumPy 1 or an old setuptools are rewritten.

PyTorch and torchvision must be installed first.
"""

# Only the standard library is used here: tools/install_detectron2.py runs this file by its path,
# before anything is installed.

import argparse
import base64
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import NamedTuple

WHEEL = "sal-detectron2==0.7.2"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
# Only a Python 3.10 finds the wheel, because of the extension that is left out here.
WHEEL_PYTHON = "3.10"

# Used, but not declared by the wheel.
UNDECLARED = ("fvcore>=0.1.5", "iopath>=0.1.9")
# Declared, but not needed (only used to write Python-style configs), or needed in any version.
REPLACED_REQUIREMENTS = {"black": None, "numpy<2": "numpy"}
# Lines that fail with NumPy 2, and with setuptools 82, which has no `pkg_resources`.
REPLACED_TEXT = {
    "detectron2/layers/mask_ops.py": {"np.array(mask, copy=False)": "np.asarray(mask)"},
    "detectron2/model_zoo/model_zoo.py": {
        "import pkg_resources\n": "",
        'pkg_resources.resource_filename(\n        "detectron2.model_zoo", '
        'os.path.join("configs", config_path)\n    )': (
            'os.path.join(os.path.dirname(__file__), "configs", config_path)'
        ),
    },
}

ABSENT_STATUS = 3
PROBE = f"""
import importlib.util, sys
spec = importlib.util.find_spec("detectron2")
if spec is None or spec.origin is None:
    sys.exit({ABSENT_STATUS})
import detectron2.checkpoint, detectron2.config, detectron2.data, detectron2.engine
import detectron2.evaluation, detectron2.model_zoo, detectron2.modeling
print(detectron2.__version__, "in", spec.submodule_search_locations[0])
"""


class Found(NamedTuple):
    """The Detectron2 of the environment: its description if it works, else the error."""

    works: str | None = None
    error: str | None = None


def find_detectron2() -> Found:
    """Import Detectron2 in a separate process; both fields are None if it is not installed."""
    command = [sys.executable, "-P", "-c", PROBE]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return Found(works=run.stdout.strip().splitlines()[-1])
    if run.returncode == ABSENT_STATUS:
        return Found()
    return Found(error=run.stderr.strip())


def pip(*arguments: str) -> None:
    """Run pip in this environment.

    Raises:
        RuntimeError: If pip failed; its messages are on the terminal.
    """
    command = [sys.executable, "-m", "pip", *arguments]
    print("$", shlex.join(command), flush=True)
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise RuntimeError(f"pip {arguments[0]} failed with status {status}; see its output above")


def check_sha256(path: Path, expected: str) -> None:
    """Compare the hash of a file with the expected one.

    Raises:
        RuntimeError: If they differ.
    """
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise RuntimeError(
            f"{path.name} is not the expected file: its sha256 is {actual}, expected {expected}"
        )


def read_requirements(wheel: Path) -> list[str]:
    """List the requirements of the package in a wheel, without those of its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    declared = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    replaced = [REPLACED_REQUIREMENTS.get(line, line) for line in declared]
    return [line for line in replaced if line is not None]


def unpack_pure_python(wheel: Path, site_packages: Path) -> None:
    """Install the package `detectron2` of a wheel without its compiled extension.

    The files are prepared in a hidden folder and moved into place at the end, the package last: an
    interruption leaves no package that looks complete. `pip uninstall` removes it again.
    """
    staging = site_packages / ".detectron2.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if _is_wanted(name)]
            archive.extractall(staging, names)
        for name, replacements in REPLACED_TEXT.items():
            _replace(staging / name, replacements)
        (info,) = staging.glob("*.dist-info")
        _describe_as_pure(info)
        for source in (info, staging / "detectron2"):
            target = site_packages / source.name
            shutil.rmtree(target, ignore_errors=True)
            os.replace(source, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_wanted(name: str) -> bool:
    """Whether a file of the wheel is installed."""
    top, _, rest = name.partition("/")
    if top.endswith(".dist-info"):
        return rest != "RECORD"
    return top == "detectron2" and not rest.startswith("_C.")


def _replace(path: Path, replacements: Mapping[str, str]) -> None:
    """Replace parts of a text file; each is in the file once.

    Raises:
        RuntimeError: If the file has another text; the verified wheel does not.
    """
    text = path.read_text(encoding="utf-8")
    for old, new in replacements.items():
        if text.count(old) != 1:
            raise RuntimeError(f"{path.name} does not contain {old!r} once")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def _describe_as_pure(info: Path) -> None:
    """Make the metadata describe the files that were unpacked."""
    field = "Requires-Dist: {}\n".format
    replacements = {
        field(old): "" if new is None else field(new) for old, new in REPLACED_REQUIREMENTS.items()
    }
    _replace(info / "METADATA", replacements)
    (info / "WHEEL").write_text(
        "Wheel-Version: 1.0\nGenerator: pointrend install-detectron2\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
        encoding="utf-8",
    )
    (info / "top_level.txt").write_text("detectron2\n", encoding="utf-8")
    (info / "INSTALLER").write_text("pointrend install-detectron2\n", encoding="utf-8")

    root = info.parent
    lines = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{path.relative_to(root).as_posix()},sha256={digest},{len(content)}\n")
    lines.append(f"{info.name}/RECORD,,\n")
    (info / "RECORD").write_text("".join(lines), encoding="utf-8")


def install_wheel(constraints: Sequence[str]) -> None:
    """Download the pinned wheel and install its pure-Python part and its requirements.

    Raises:
        RuntimeError: If a download or an installation failed, or the file is not the expected one.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip(
            "download",
            "--no-deps",
            "--only-binary=:all:",
            f"--python-version={WHEEL_PYTHON}",
            f"--dest={folder}",
            WHEEL,
        )
        (wheel,) = Path(folder).glob("*.whl")
        check_sha256(wheel, WHEEL_SHA256)
        pip("install", *constraints, "setuptools", "wheel")
        # Some are source packages: they are built with the setuptools of this environment.
        needed = [*UNDECLARED, *read_requirements(wheel)]
        pip("install", "--no-build-isolation", *constraints, *needed)
        unpack_pure_python(wheel, Path(sysconfig.get_path("purelib")))


def install(requirement: str, constraints: Sequence[str]) -> None:
    """Make sure that this environment has a working Detectron2, as the module docstring describes.

    Args:
        requirement: Requirement or path that pip builds if Detectron2 is not installed; empty for
            the pinned wheel.
        constraints: Arguments of pip that limit the versions of the requirements.

    Raises:
        RuntimeError: If none works afterwards; the message gives the reason and the remedy.
    """
    found = find_detectron2()
    if found.works:
        print(f"Detectron2 {found.works} is kept.")
        if requirement:
            print(f"DETECTRON2={requirement} is not used; to use it, uninstall that one first.")
        return
    for module in ("torch", "torchvision"):
        if importlib.util.find_spec(module) is None:
            raise RuntimeError(f"{module} is missing: run `pip install torch torchvision` first")
    if requirement:
        pip("install", "--no-build-isolation", *constraints, requirement)
    elif found.error:
        raise RuntimeError(
            "the installed Detectron2 cannot be imported (see below). Repair it, or remove it with "
            f"pip uninstall and run this command again.\n{found.error}"
        )
    else:
        install_wheel(constraints)
    found = find_detectron2()
    if not found.works:
        raise RuntimeError(f"installed, but it cannot be imported:\n{found.error or 'not found'}")
    print(f"Detectron2 {found.works} is installed.")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; the module's docstring is its description."""
    parser = argparse.ArgumentParser(
        prog=None if __name__ == "__main__" else "pointrend install-detectron2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--constraint", metavar="FILE", help="constraints file for pip")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and install.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 1 if no working Detectron2 is there at the end.
    """
    arguments = build_parser().parse_args(argv)
    constraints = ["--constraint", arguments.constraint] if arguments.constraint else []
    try:
        install(os.environ.get("DETECTRON2", ""), constraints)
    except (RuntimeError, OSError) as error:
        sys.exit(f"Detectron2 was not installed: {error}")


if __name__ == "__main__":
    main()
