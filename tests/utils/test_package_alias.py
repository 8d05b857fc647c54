"""A second name for an installed package."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from point_rend.utils.package_alias import alias_package

ALIAS = "outer_maker.projects.tools"


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo imports and finders."""
    before = dict(sys.modules)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages, with the package `real_tools`."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "real_tools" / "helpers"
    package.mkdir(parents=True)
    (tmp_path / "real_tools" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "labels.py").write_text("labels = ['road']\nclass Label: pass\n")
    (package / "settings.py").write_text("import os\nfolder = os.environ.get('THE_FOLDER')\n")
    return tmp_path


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("first", ["alias", "package"])
def test_a_module_is_the_same_object_under_both_names(first: str) -> None:
    alias_package(ALIAS, "real_tools")
    names = [f"{ALIAS}.helpers.labels", "real_tools.helpers.labels"]
    for name in names if first == "alias" else reversed(names):
        importlib.import_module(name)
    for end in ("", ".helpers", ".helpers.labels"):
        assert sys.modules[ALIAS + end] is sys.modules["real_tools" + end]
        # The module does not notice: pickle and importlib find it by its own name.
        assert sys.modules[ALIAS + end].__name__ == "real_tools" + end
        assert sys.modules[ALIAS + end].__spec__.name == "real_tools" + end
    assert sys.modules[names[0]].Label.__module__ == "real_tools.helpers.labels"


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    "statement",
    [
        f"from {ALIAS}.helpers.labels import labels",
        f"import {ALIAS}.helpers.labels as module; labels = module.labels",
        f"from {ALIAS}.helpers import labels as module; labels = module.labels",
        f"import {ALIAS}.helpers.labels; labels = {ALIAS}.helpers.labels.labels",
    ],
)
def test_every_form_of_import_works(statement: str) -> None:
    alias_package(ALIAS, "real_tools")
    names: dict[str, object] = {}
    exec(statement, names)
    assert names["labels"] is sys.modules["real_tools.helpers.labels"].labels


@pytest.mark.usefixtures("root")
def test_nothing_is_imported_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools of Cityscapes read the environment when they are imported."""
    alias_package(ALIAS, "real_tools")
    assert not any(name.startswith("real_tools") for name in sys.modules)
    importlib.import_module(f"{ALIAS}.helpers.labels")
    assert "real_tools.helpers.settings" not in sys.modules
    monkeypatch.setenv("THE_FOLDER", "late")
    assert importlib.import_module(f"{ALIAS}.helpers.settings").folder == "late"


def test_a_package_that_has_the_name_takes_precedence(root: Path) -> None:
    alias_package(ALIAS, "real_tools")
    own = root / ALIAS.replace(".", "/")
    (own / "helpers").mkdir(parents=True)
    (own / "helpers" / "labels.py").write_text("labels = ['own']\n")
    (root / "outer_maker" / "__init__.py").write_text("version = 1\n")
    assert importlib.import_module(f"{ALIAS}.helpers.labels").labels == ["own"]
    assert "real_tools" not in sys.modules
    assert importlib.import_module("outer_maker").version == 1


def test_a_package_around_the_alias_keeps_its_own_modules(root: Path) -> None:
    alias_package(ALIAS, "real_tools")
    (root / "outer_maker").mkdir()
    (root / "outer_maker" / "__init__.py").write_text("version = 1\n")
    (root / "outer_maker" / "models.py").write_text("size = 2\n")
    assert importlib.import_module(f"{ALIAS}.helpers.labels").labels == ["road"]
    assert importlib.import_module("outer_maker").version == 1
    assert importlib.import_module("outer_maker.models").size == 2


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("name", "missing"),
    [
        (f"{ALIAS}.helpers.nonsense", "real_tools.helpers.nonsense"),
        ("outer_maker.projects.nonsense", "outer_maker.projects.nonsense"),
        ("outer_maker.nonsense", "outer_maker.nonsense"),
    ],
)
def test_other_names_stay_missing(name: str, missing: str) -> None:
    alias_package(ALIAS, "real_tools")
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module(name)
    assert raised.value.name == missing


def test_without_the_package_the_error_names_it() -> None:
    alias_package(ALIAS, "missing_tools")
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module(f"{ALIAS}.helpers.labels")
    assert str(raised.value) == (
        f"{ALIAS} stands for the package missing_tools, which is not installed: "
        "pip install missing_tools"
    )
    assert ALIAS not in sys.modules
