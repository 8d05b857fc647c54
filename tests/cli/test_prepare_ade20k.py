"""`pointrend prepare-ade20k` on a folder with the layout of the official archive."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_ade20k
from PIL import Image

from point_rend.cli import prepare_ade20k
from point_rend.data.checks.label_maps import count_labels
from point_rend.data.datasets import ade20k
from tests.tiny_datasets import process_state_restored

NAMES = {"training": "ADE_train_{:08d}", "validation": "ADE_val_{:08d}"}


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ade20k, "SPLITS", {"training": 3, "validation": 2})
    with process_state_restored():
        yield


def labels(number: int) -> np.ndarray:
    """All values of the archive, 0 for unlabeled pixels and 1 to 150."""
    return np.roll(np.arange(160, dtype=np.uint8) % 151, number).reshape(10, 16)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for split, count in {"training": 3, "validation": 2}.items():
        images, annotations = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for number in range(count):
            name = NAMES[split].format(number + 1)
            Image.new("RGB", (16, 10)).save(images / f"{name}.jpg")
            Image.fromarray(labels(number)).save(annotations / f"{name}.png")
    return root


def prepared(root: Path, split: str, number: int) -> Path:
    return root / "annotations_detectron2" / split / f"{NAMES[split].format(number)}.png"


def test_values_move_down_by_one_and_unlabeled_pixels_become_255(archive: Path) -> None:
    prepare_ade20k.main([str(archive)])
    with Image.open(prepared(archive, "training", 2)) as image:
        assert image.mode == "L"
        found = np.array(image)
    expected = labels(1).astype(int) - 1
    assert np.array_equal(found, np.where(expected < 0, 255, expected))


def test_detectron2_finds_the_label_maps_and_they_pass_the_checks(archive: Path) -> None:
    prepare_ade20k.main([str(archive)])
    for name in ("ade20k_sem_seg_train", "ade20k_sem_seg_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_all_ade20k(str(archive.parent))
    assert len(DatasetCatalog.get("ade20k_sem_seg_val")) == 2
    counts = count_labels("ade20k_sem_seg_train", ignore_value=255)
    assert counts.shape == (150,)
    assert (counts > 0).all()


def test_an_interrupted_run_continues(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_ade20k.main([str(archive)])
    kept, lost = prepared(archive, "training", 1), prepared(archive, "training", 2)
    before = kept.stat().st_mtime_ns
    lost.unlink()
    capsys.readouterr()
    prepare_ade20k.main([str(archive)])
    assert "training: 1 label maps written, 2 kept" in capsys.readouterr().out
    assert lost.exists()
    assert kept.stat().st_mtime_ns == before
    assert not [file for file in lost.parent.iterdir() if file.suffix != ".png"]


def test_no_half_written_file_is_left(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", stumble)
    with pytest.raises(SystemExit) as ended:
        prepare_ade20k.main([str(archive)])
    assert ended.value.code == 2
    assert not [*(archive / "annotations_detectron2" / "training").iterdir()]


def test_missing_folders_are_named_before_anything_is_written(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (archive / "images" / "validation").iterdir():
        file.unlink()
    (archive / "images" / "validation").rmdir()
    with pytest.raises(SystemExit) as ended:
        prepare_ade20k.main([str(archive)])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert str(archive / "images" / "validation") in message
    assert str(archive / "images" / "training") not in message
    assert not (archive / "annotations_detectron2").exists()
    with pytest.raises(SystemExit):
        prepare_ade20k.main([str(tmp_path / "nowhere")])
    assert str(tmp_path / "nowhere" / "annotations" / "training") in capsys.readouterr().err


def test_missing_files_are_named_and_the_others_converted(
    archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "annotations" / "training" / "ADE_train_00000002.png").unlink()
    (archive / "images" / "validation" / "ADE_val_00000001.jpg").unlink()
    with pytest.raises(SystemExit) as ended:
        prepare_ade20k.main([str(archive)])
    assert ended.value.code == 1
    message = capsys.readouterr().err
    assert "training: 1 images have no label map: ADE_train_00000002" in message
    assert "validation: 1 label maps have no image: ADE_val_00000001" in message
    assert "training: there are 2 label maps, the archive has 3" in message
    assert prepared(archive, "training", 3).exists()


@pytest.mark.parametrize("kind", ["truncated", "values", "mode"])
def test_a_label_map_that_cannot_be_converted_is_named(
    kind: str, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = archive / "annotations" / "validation" / "ADE_val_00000002.png"
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:60])
    elif kind == "values":
        Image.fromarray(labels(0) + np.uint8(1)).save(file)
    else:
        Image.new("RGB", (16, 10)).save(file)
    with pytest.raises(SystemExit) as ended:
        prepare_ade20k.main([str(archive)])
    assert ended.value.code == 2
    assert str(file) in capsys.readouterr().err
    assert not prepared(archive, "validation", 2).exists()
