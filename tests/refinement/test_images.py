"""Images of boxes, found in a folder by their names."""

from pathlib import Path

import pytest

from point_rend.refinement.images import ImageFolder


def folder_of(root: Path, *names: str) -> ImageFolder:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return ImageFolder(root)


@pytest.mark.parametrize(
    "name",
    [
        "val/a.png",
        "a.png",
        "images/val/a.png",
        "/data/val/a.png",
        "../val/a.png",
        "C:\\x\\val\\a.png",
    ],
)
def test_a_file_is_found_below_the_folder_whatever_folder_its_name_has(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").touch()
    folder = folder_of(tmp_path / "in", "val/a.png", "val/b.png")
    assert folder.find([name]) == {name: tmp_path / "in" / "val" / "a.png"}


def test_no_file_outside_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch()
    folder = folder_of(tmp_path / "in", "a.png")
    assert folder.find([str(tmp_path / "secret.png"), "../secret.png"]) == {}


def test_the_exact_name_counts_first(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png", "val/a.png")
    assert folder.find(["a.png", "val/a.png"]) == {
        "a.png": tmp_path / "a.png",
        "val/a.png": tmp_path / "val" / "a.png",
    }


def test_a_name_that_fits_several_files_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "x/a.png", "y/a.png")
    with pytest.raises(ValueError, match=r"'a.png' fits 2 images of --images .*'x/a.png', 'y/a"):
        folder.find(["a.png"])


def test_names_that_fit_one_file_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"'a.png' of --images .* fits 2 images, 'x/a.png', 'y/a"):
        folder.find(["x/a.png", "y/a.png"])
