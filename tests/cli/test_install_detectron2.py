"""The installer of Detectron2, by its door and by its command."""

import base64
import hashlib
import importlib.metadata
import os
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from point_rend.cli import install_detectron2
from tests.commands import run
from tests.tiny_datasets import REPOSITORY

DOOR = REPOSITORY / "tools" / "install_detectron2.py"
# The modules that the installer imports to test a Detectron2.
PARTS = ("checkpoint", "config", "data", "engine", "evaluation", "model_zoo", "modeling")


def write_detectron2(folder: Path, version: str = "9.9") -> Path:
    """Write a package `detectron2` that the installer accepts."""
    package = folder / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    for part in PARTS:
        (package / f"{part}.py").touch()
    return folder


MODEL_ZOO = """import os
import pkg_resources

def get_config_file(config_path):
    cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
    return cfg_file
"""
MASK_OPS = """import numpy as np

def paste(mask):
    mask = np.array(mask, copy=False)
    return mask
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A small wheel with the parts of the pinned one, wanted and unwanted."""
    info = "sal_detectron2-0.7.2.dist-info"
    content = {
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "no library",
        "detectron2/layers/__init__.py": "",
        "detectron2/layers/mask_ops.py": MASK_OPS,
        "detectron2/model_zoo/__init__.py": "from .model_zoo import get_config_file\n",
        "detectron2/model_zoo/model_zoo.py": MODEL_ZOO,
        "detectron2/model_zoo/configs/Base.yaml": "",
        "tools/__init__.py": "",
        "tools/train_net.py": "",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
        "Requires-Dist: pyyaml>=1\nRequires-Dist: black\nRequires-Dist: numpy<2\n"
        'Requires-Dist: timm; extra == "all"\nRequires-Dist: black==23.3.0; extra == "dev"\n',
        f"{info}/WHEEL": "Wheel-Version: 1.0\nTag: cp310-cp310-linux_x86_64\n",
        f"{info}/top_level.txt": "detectron2\ntools\n",
        f"{info}/RECORD": "tools/__init__.py,,\n",
    }
    sources = write_detectron2(tmp_path / "wheel sources", "0.7.2")
    (sources / "detectron2" / "model_zoo.py").unlink()
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
    """A Python with the packages of this one except Detectron2.

    The packages are links, so an installation there cannot change the real ones.
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


def test_installer_needs_the_standard_library_only(tmp_path: Path) -> None:
    done = run([sys.executable, "-I", "-S", DOOR, "--help"], tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("usage: install_detectron2.py [-h]")


def test_importable_detectron2_is_kept(tmp_path: Path, bare_python: Path) -> None:
    own = write_detectron2(tmp_path / "own", "1.2.3")
    kept = run([bare_python, DOOR], tmp_path, PYTHONPATH=str(own), DETECTRON2="/not/used")
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
    refused = run([bare_python, DOOR], tmp_path, PYTHONPATH=str(own))
    assert refused.returncode != 0
    assert "a_module_that_is_missing" in refused.stdout
    assert not (site_packages_of(bare_python) / "detectron2").exists()


def test_named_sources_are_built(tmp_path: Path, bare_python: Path) -> None:
    own = write_detectron2(tmp_path / "own sources", "4.5.6")
    (own / "setup.py").write_text(
        "from setuptools import setup\n"
        "setup(name='detectron2', version='4.5.6', packages=['detectron2'])\n"
    )
    built = run([bare_python, DOOR], tmp_path, DETECTRON2=str(own))
    assert built.returncode == 0, built.stdout
    assert "Detectron2 4.5.6" in built.stdout
    assert (site_packages_of(bare_python) / "detectron2" / "engine.py").exists()


def test_sources_that_do_not_build_are_an_error(tmp_path: Path, bare_python: Path) -> None:
    failed = run([bare_python, DOOR], tmp_path, DETECTRON2=str(tmp_path / "nowhere"))
    assert failed.returncode != 0
    assert "Detectron2 was not installed: pip install failed" in failed.stdout


def test_wheel_with_another_hash_is_refused_and_leaves_nothing(
    wheel: Path, bare_python: Path
) -> None:
    before = set(site_packages_of(bare_python).iterdir())
    refused = run([bare_python, DOOR], wheel.parent, PIP_FIND_LINKS=str(wheel.parent))
    assert refused.returncode != 0
    assert install_detectron2.WHEEL_SHA256 in refused.stdout
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in refused.stdout
    assert set(site_packages_of(bare_python).iterdir()) == before


def test_pinned_wheel_is_installed_as_pure_python_with_a_true_record(
    wheel: Path, bare_python: Path
) -> None:
    program = (
        "from point_rend.cli import install_detectron2, main\n"
        f"install_detectron2.WHEEL_SHA256 = {hashlib.sha256(wheel.read_bytes()).hexdigest()!r}\n"
        "main(['install-detectron2'])\n"
    )
    done = run(
        [bare_python, "-c", program],
        wheel.parent,
        PIP_FIND_LINKS=str(wheel.parent),
        PYTHONPATH=str(REPOSITORY),
    )
    assert done.returncode == 0, done.stdout
    assert "Detectron2 0.7.2" in done.stdout

    site_packages = site_packages_of(bare_python)
    assert not (site_packages / "tools").exists()
    assert not list((site_packages / "detectron2").glob("_C*"))
    (found,) = importlib.metadata.distributions(name="sal-detectron2", path=[str(site_packages)])
    extras = ['timm; extra == "all"', 'black==23.3.0; extra == "dev"']
    assert found.requires == ["pyyaml>=1", "numpy", *extras]
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


def test_unpacked_sources_need_neither_pkg_resources_nor_numpy_1(
    wheel: Path, tmp_path: Path
) -> None:
    site_packages = tmp_path / "site-packages"
    install_detectron2.unpack_pure_python(wheel, site_packages)
    program = (
        "import sys\n"
        "sys.modules['pkg_resources'] = None  # an import fails\n"
        "from detectron2.layers.mask_ops import paste\n"
        "from detectron2.model_zoo import get_config_file\n"
        "print(paste([1, 0]), get_config_file('Base.yaml'))\n"
    )
    done = run([sys.executable, "-c", program], tmp_path, PYTHONPATH=str(site_packages))
    config = site_packages / "detectron2" / "model_zoo" / "configs" / "Base.yaml"
    assert config.exists()
    assert done.stdout == f"[1 0] {config}\n"


def test_wheel_with_other_lines_is_refused_and_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    site_packages = tmp_path / "site-packages"
    other = wheel.with_name("other.whl")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            text = source.read(name)
            target.writestr(name, text.replace(b"copy=False", b"copy=True"))
    with pytest.raises(RuntimeError, match=r"mask_ops\.py does not contain 'np\.array"):
        install_detectron2.unpack_pure_python(other, site_packages)
    assert list(site_packages.iterdir()) == []


@pytest.mark.parametrize("moves", [0, 1])
def test_interrupted_unpacking_leaves_no_package_and_is_redone(
    wheel: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moves: int,
) -> None:
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(install_detectron2.os, "replace", _interrupt_after(moves, os.replace))
        with pytest.raises(KeyboardInterrupt):
            install_detectron2.unpack_pure_python(wheel, site_packages)
    assert not (site_packages / "detectron2").exists()
    assert not (site_packages / ".detectron2.partial").exists()

    install_detectron2.unpack_pure_python(wheel, site_packages)
    assert {path.name for path in site_packages.iterdir()} == {
        "detectron2",
        "sal_detectron2-0.7.2.dist-info",
    }


def _interrupt_after(calls: int, function: Callable[..., None]) -> Callable[..., None]:
    """Pass a number of calls on to a function; the next one is a Ctrl-C."""
    left = calls

    def wrapped(*arguments: object) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        function(*arguments)

    return wrapped
