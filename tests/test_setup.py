"""The wheel of this package."""

import importlib.metadata
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import point_rend
from tests.commands import run
from tests.tiny_datasets import REPOSITORY

CONFIGS = sorted(
    path.relative_to(REPOSITORY / "configs").as_posix()
    for path in (REPOSITORY / "configs").rglob("*.yaml")
)


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


@pytest.fixture(scope="module")
def installed(own_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the wheel."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", target, own_wheel]
    done = run(pip, target)
    assert done.returncode == 0, done.stdout
    return target


def test_wheel_holds_the_package_and_its_configs_and_nothing_else(own_wheel: Path) -> None:
    expected = {"point_rend/configs/" + name for name in CONFIGS} | {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "point_rend").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(own_wheel) as archive:
        names = archive.namelist()
    packed = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert packed == expected
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


def test_installed_wheel_finds_every_config_inside_itself(
    own_wheel: Path, installed: Path, tmp_path: Path
) -> None:
    program = (
        "import sys, point_rend\n"
        "print(point_rend.__version__)\n"
        "for name in sys.argv[1:]: print(point_rend.get_config_file(name))\n"
    )
    done = run(
        [sys.executable, "-W", "ignore", "-c", program, *CONFIGS],
        tmp_path,
        PYTHONPATH=str(installed),
    )
    assert done.returncode == 0, done.stdout
    version, *found = done.stdout.splitlines()
    assert own_wheel.name.startswith(f"point_rend-{version}-")
    assert [Path(path) for path in found] == [installed / "point_rend/configs" / x for x in CONFIGS]
    assert all(Path(path).is_file() for path in found)


def test_installed_wheel_gives_the_command_in_any_folder(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "pointrend"
    done = run([command, "prepare-ade20k", "nowhere"], tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 2
    assert done.stdout.startswith("pointrend prepare-ade20k: error: missing: nowhere/images")
    listed = run([command, "--version"], tmp_path, PYTHONPATH=str(installed))
    assert listed.stdout == f"pointrend {point_rend.__version__}\n"
    assert list(tmp_path.iterdir()) == []
