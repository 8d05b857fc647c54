"""Setting up: the set-up of .venv by make, the installer of Detectron2, and the wheel."""

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
INSTALLER = REPOSITORY / "tools" / "install_detectron2.py"

# A run of these tests by `make` must not tell the runs below what make was told.
OWN_VARIABLES = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "PYTHON", "DETECTRON2", "PYTHONPATH")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}

# The modules that the installer imports to see whether a Detectron2 works.
PARTS = ("checkpoint", "config", "data", "engine", "evaluation", "model_zoo", "modeling")


def run(
    command: Sequence[str | Path], folder: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without network and collect what it says."""
    environment = {**ENVIRONMENT, "PIP_NO_INDEX": "1", **variables}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )


# --- make: the set-up of .venv ------------------------------------------------------------------

FAKE_PYTHON = """#!/bin/sh
# Writes down what it is asked to do; only runs code that asks about Python or its packages.
case "$*" in
    -c*find_spec*) [ ! -e {loss} ] && exec {python} "$@"; exit 1 ;;
    -c*|--version) exec {python} "$@" ;;
esac
echo "$*" >>{log}
if [ -e {trouble} ] && echo "$*" | grep -q "$(cat {trouble})"; then exit 1; fi
if [ -e {slow} ] && echo "$*" | grep -q "$(cat {slow})"; then rm {slow}; sleep 60; fi
if [ "$1 $2" = "-m venv" ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi
"""


class Checkout:
    """A copy of what the set-up reads, with a Python that installs nothing.

    The files `trouble` and `slow` hold a part of the command that fails or takes a minute; it
    removes `slow` when it begins to. While the file `loss` is there, a package is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.log = folder / "log"
        self.trouble = folder / "trouble"
        self.slow = folder / "slow"
        self.loss = folder / "loss"
        self.state = self.folder / ".venv" / "set-up"
        for name in ("Makefile", "constraints.txt", "setup.py", "tools"):
            source = REPOSITORY / name
            (shutil.copytree if source.is_dir() else shutil.copy)(
                source, self._parent_of(self.folder / name)
            )
        (self.folder / "point_rend").mkdir()
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

    @staticmethod
    def _parent_of(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

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
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
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


def test_failing_step_is_named_with_advice_and_packages_begin_anew(checkout: Checkout) -> None:
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


@pytest.mark.parametrize("name", ["constraints.txt", "setup.py", "tools/install_detectron2.py"])
def test_changed_source_makes_the_environment_anew(checkout: Checkout, name: str) -> None:
    checkout.make()
    checkout.commands()
    with (checkout.folder / name).open("a") as file:
        file.write("# changed\n")
    assert checkout.make().returncode == 0
    assert len(checkout.commands()) == 5


def test_moved_checkout_makes_its_environment_anew(checkout: Checkout) -> None:
    checkout.make()
    checkout.commands()
    checkout.folder = checkout.folder.rename(checkout.folder.parent / "moved")
    assert checkout.make().returncode == 0
    assert len(checkout.commands()) == 5


def test_environment_whose_python_does_not_run_is_made_anew(checkout: Checkout) -> None:
    checkout.make()
    checkout.commands()
    (checkout.folder / ".venv" / "bin" / "python").write_text("#!/no/such/interpreter\n")
    assert checkout.make().returncode == 0
    assert len(checkout.commands()) == 5


def test_environment_that_lost_a_package_is_made_anew(checkout: Checkout) -> None:
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
    assert "3.11 or 3.12" in refused.stdout


def test_python_that_does_not_run_is_passed_over(checkout: Checkout, tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    tools = ("cat", "cksum", "cp", "dirname", "find", "grep", "head", "mkdir", "mv", "rm", "sh")
    for name in (*tools, "touch"):
        (commands / name).symlink_to(shutil.which(name) or "")
    # What a version manager leaves for a version that is not there.
    (commands / "python3.11").write_text("#!/bin/sh\necho not found >&2\nexit 127\n")
    (commands / "python3.11").chmod(0o755)
    script = ["sh", "tools/setup_venv.sh"]

    none = run(script, checkout.folder, PATH=str(commands))
    assert none.returncode != 0
    assert "No Python 3.11 or 3.12 was found" in none.stdout
    assert checkout.commands() == []

    (commands / "python3").symlink_to(checkout.python)
    assert run(script, checkout.folder, PATH=str(commands)).returncode == 0
    assert len(checkout.commands()) == 5


# --- The installer of Detectron2 ----------------------------------------------------------------


@pytest.fixture
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", INSTALLER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_detectron2(folder: Path, version: str = "9.9") -> Path:
    """Write a package `detectron2` that satisfies the installer's look at it."""
    package = folder / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    for part in PARTS:
        (package / f"{part}.py").touch()
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A small wheel with everything that the pinned one has and should not have."""
    info = "sal_detectron2-0.7.2.dist-info"
    content = {
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "no library",
        "tools/__init__.py": "",
        "tools/train_net.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
        'Requires-Dist: pyyaml>=1\nRequires-Dist: black\nRequires-Dist: timm; extra == "all"\n',
        f"{info}/WHEEL": "Wheel-Version: 1.0\nTag: cp310-cp310-linux_x86_64\n",
        f"{info}/top_level.txt": "detectron2\ntools\n",
        f"{info}/RECORD": "tools/__init__.py,,\n",
    }
    sources = write_detectron2(tmp_path / "wheel sources", "0.7.2")
    path = tmp_path / "index" / "sal_detectron2-0.7.2-cp310-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for source in sources.rglob("*.py"):
            archive.write(source, source.relative_to(sources))
        for name, text in content.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def bare_python(tmp_path: Path) -> Iterator[Path]:
    """A Python whose site-packages is that of this one without Detectron2.

    Its packages are links, so nothing that is installed there can reach the real ones.
    """
    folder = tmp_path / "bare"
    venv.create(folder, symlinks=True)
    variables = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", variables))
    for source in Path(sysconfig.get_path("purelib")).iterdir():
        if "detectron2" not in source.name and source.name != "__pycache__":
            (site_packages / source.name).symlink_to(source)
    before = {path.name for path in site_packages.iterdir()}
    yield folder / "bin" / "python"
    allowed = {"detectron2", "__pycache__"}
    new = {path.name for path in site_packages.iterdir()} - before - allowed
    assert all("dist-info" in name for name in new), new


def site_packages_of(python: Path) -> Path:
    (folder,) = python.parents[1].glob("lib/python*/site-packages")
    return folder


def test_importable_detectron2_is_kept(tmp_path: Path, bare_python: Path) -> None:
    own = write_detectron2(tmp_path / "own", "1.2.3")
    kept = run([bare_python, INSTALLER], tmp_path, PYTHONPATH=str(own), DETECTRON2="/not/used")
    assert kept.returncode == 0, kept.stdout
    assert "Detectron2 1.2.3" in kept.stdout
    assert "is kept" in kept.stdout
    assert "DETECTRON2=/not/used is not used" in kept.stdout
    assert not (site_packages_of(bare_python) / "detectron2").exists()


def test_detectron2_that_cannot_be_imported_is_reported_and_not_replaced(
    tmp_path: Path, bare_python: Path
) -> None:
    own = write_detectron2(tmp_path / "own")
    (own / "detectron2" / "engine.py").write_text("import a_module_that_is_missing\n")
    refused = run([bare_python, INSTALLER], tmp_path, PYTHONPATH=str(own))
    assert refused.returncode != 0
    assert "a_module_that_is_missing" in refused.stdout
    assert not (site_packages_of(bare_python) / "detectron2").exists()


def test_named_sources_are_built(tmp_path: Path, bare_python: Path) -> None:
    own = write_detectron2(tmp_path / "own sources", "4.5.6")
    (own / "setup.py").write_text(
        "from setuptools import setup\n"
        "setup(name='detectron2', version='4.5.6', packages=['detectron2'])\n"
    )
    built = run([bare_python, INSTALLER], tmp_path, DETECTRON2=str(own))
    assert built.returncode == 0, built.stdout
    assert "Detectron2 4.5.6" in built.stdout
    assert (site_packages_of(bare_python) / "detectron2" / "engine.py").exists()


def test_sources_that_do_not_build_are_an_error(tmp_path: Path, bare_python: Path) -> None:
    failed = run([bare_python, INSTALLER], tmp_path, DETECTRON2=str(tmp_path / "nowhere"))
    assert failed.returncode != 0
    assert "Detectron2 was not installed: pip install failed" in failed.stdout


def test_wheel_with_another_hash_is_refused_and_leaves_nothing(
    wheel: Path, bare_python: Path, installer: ModuleType
) -> None:
    before = set(site_packages_of(bare_python).iterdir())
    refused = run([bare_python, INSTALLER], wheel.parent, PIP_FIND_LINKS=str(wheel.parent))
    assert refused.returncode != 0
    assert installer.WHEEL_SHA256 in refused.stdout
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in refused.stdout
    assert set(site_packages_of(bare_python).iterdir()) == before


def test_pinned_wheel_is_installed_as_pure_python_with_a_true_record(
    wheel: Path, bare_python: Path
) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(INSTALLER.parent)!r}); sys.argv = ['install']\n"
        "import install_detectron2 as installer\n"
        f"installer.WHEEL_SHA256 = {hashlib.sha256(wheel.read_bytes()).hexdigest()!r}\n"
        "installer.main()\n"
    )
    done = run([bare_python, "-c", program], wheel.parent, PIP_FIND_LINKS=str(wheel.parent))
    assert done.returncode == 0, done.stdout
    assert "Detectron2 0.7.2" in done.stdout

    site_packages = site_packages_of(bare_python)
    assert not (site_packages / "tools").exists()
    assert not list((site_packages / "detectron2").glob("_C*"))
    (found,) = importlib.metadata.distributions(name="sal-detectron2", path=[str(site_packages)])
    assert found.requires == ["pyyaml>=1", 'timm; extra == "all"']
    assert found.files is not None
    recorded = {file.as_posix(): file for file in found.files}
    present = {
        path.relative_to(site_packages).as_posix()
        for folder in ("detectron2", "sal_detectron2-0.7.2.dist-info")
        for path in (site_packages / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert set(recorded) == present
    for name, file in recorded.items():
        if file.hash is not None:
            digest = hashlib.sha256((site_packages / name).read_bytes()).digest()
            assert file.hash.value == base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), name


@pytest.mark.parametrize("moves", [0, 1])
def test_interrupted_unpacking_leaves_no_package_and_is_redone(
    wheel: Path,
    tmp_path: Path,
    installer: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    moves: int,
) -> None:
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(installer.os, "replace", _interrupt_after(moves, os.replace))
        with pytest.raises(KeyboardInterrupt):
            installer.unpack_pure_python(wheel, site_packages)
    assert not (site_packages / "detectron2").exists()
    assert not (site_packages / ".detectron2.partial").exists()

    installer.unpack_pure_python(wheel, site_packages)
    assert {path.name for path in site_packages.iterdir()} == {
        "detectron2",
        "sal_detectron2-0.7.2.dist-info",
    }


def _interrupt_after(calls: int, function: Callable[..., None]) -> Callable[..., None]:
    """The function for a number of calls; the next one is a Ctrl-C."""
    left = calls

    def wrapped(*arguments: object) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        function(*arguments)

    return wrapped


# --- The wheel of this package ------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy because building leaves folders behind."""
    sources = tmp_path_factory.mktemp("sources")
    for name in ("point_rend", "configs"):
        shutil.copytree(
            REPOSITORY / name, sources / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(REPOSITORY / name, sources)
    built = run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."], sources
    )
    assert built.returncode == 0, built.stdout
    (wheel,) = sources.glob("*.whl")
    return wheel


def test_wheel_holds_every_module_every_config_and_the_license(own_wheel: Path) -> None:
    modules = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "point_rend").rglob("*.py")
    }
    configs = {
        (Path("point_rend") / path.relative_to(REPOSITORY)).as_posix()
        for path in (REPOSITORY / "configs").rglob("*.yaml")
    }
    with zipfile.ZipFile(own_wheel) as archive:
        names = archive.namelist()
    packed = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert len(configs) > 0
    assert packed == modules | configs
    assert any(name.endswith("LICENSE") for name in names)


def test_every_requirement_has_a_pinned_version_in_its_range(own_wheel: Path) -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    (metadata,) = importlib.metadata.distributions(path=[str(own_wheel)])
    requirements = [Requirement(line) for line in metadata.requires or []]
    assert len(requirements) > 10
    for requirement in requirements:
        pin = pinned[canonicalize_name(requirement.name)]
        assert pin.startswith("=="), requirement
        assert requirement.specifier.contains(pin.removeprefix("==")), requirement


def test_installed_wheel_finds_every_config_inside_itself(own_wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    with zipfile.ZipFile(own_wheel) as archive:
        archive.extractall(target)
    names = sorted(
        path.relative_to(REPOSITORY / "configs").as_posix()
        for path in (REPOSITORY / "configs").rglob("*.yaml")
    )
    program = (
        "import sys, point_rend\n"
        "print(point_rend.__version__)\n"
        "for name in sys.argv[1:]: print(point_rend.get_config_file(name))\n"
    )
    done = run(
        [sys.executable, "-W", "ignore", "-c", program, *names], tmp_path, PYTHONPATH=str(target)
    )
    assert done.returncode == 0, done.stdout
    version, *found = done.stdout.splitlines()
    assert own_wheel.name.startswith(f"point_rend-{version}-")
    assert [Path(path) for path in found] == [
        target / "point_rend/configs" / name for name in names
    ]
    assert all(Path(path).is_file() for path in found)
