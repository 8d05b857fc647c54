"""Loading of registered data sets: without stray files, and with errors of one line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic
from PIL import Image

from point_rend.data.datasets.label_maps import register_sem_seg
from point_rend.data.datasets.loading import guard_loaders, load_records
from tests.tiny_datasets import process_state_restored

STRAYS = ("._a_leftImg8bit.png", "Thumbs.db", ".DS_Store", ".ipynb_checkpoints")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


def register(name: str, load: Any, **metadata: Any) -> None:
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(folder / name)


def litter(folder: Path) -> None:
    for name in STRAYS:
        (folder / name).write_bytes(b"\0\5\26\7")


def cityscapes(root: Path) -> None:
    write(root / "images" / "town", "a_leftImg8bit.png")
    endings = ("instanceIds", "labelIds", "labelTrainIds")
    write(root / "labels" / "town", *(f"a_gtFine_{ending}.png" for ending in endings))
    polygons = {"imgHeight": 4, "imgWidth": 6, "objects": []}
    (root / "labels" / "town" / "a_gtFine_polygons.json").write_text(json.dumps(polygons))
    images, labels = str(root / "images"), str(root / "labels")
    register("town", lambda: load_cityscapes_semantic(images, labels), image_dir=images)


def test_cityscapes_and_folders_of_label_maps_load_without_stray_files(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    write(tmp_path / "jpg", "a.jpg", "b.jpg")
    write(tmp_path / "png", "a.png", "b.png")
    register("pairs", lambda: load_sem_seg(str(tmp_path / "png"), str(tmp_path / "jpg")))
    expected = [DatasetCatalog.get(name) for name in ("town", "pairs")]
    for folder in ("images", "images/town", "labels/town", "jpg", "png"):
        litter(tmp_path / folder)
    (tmp_path / "jpg" / "._a.jpg").touch()
    assert [load_records(name) for name in ("town", "pairs")] == expected
    guard_loaders()
    guard_loaders()
    assert [DatasetCatalog.get(name) for name in ("town", "pairs")] == expected


def test_registered_folders_have_no_stray_files(tmp_path: Path) -> None:
    for folder in ("images", "images/.ipynb_checkpoints", "images/__MACOSX"):
        write(tmp_path / folder, "._a.png", "a.png")
    write(tmp_path / "labels", "a.png")
    register_sem_seg("mine", str(tmp_path / "images"), str(tmp_path / "labels"), "sky,road")
    assert [record["file_name"] for record in load_records("mine")] == [
        str(tmp_path / "images" / "a.png")
    ]


def test_cityscapes_without_prepared_files_names_the_first(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    missing = tmp_path / "labels" / "town" / "a_gtFine_labelTrainIds.png"
    missing.unlink()
    with pytest.raises(ValueError, match=r"town cannot be loaded: .*generate labelTrainIds\.png"):
        load_records("town")
    (tmp_path / "labels" / "town" / "a_gtFine_instanceIds.png").unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: there is no file .*instanceIds\.png"):
        load_records("town")


def test_a_foreign_file_among_the_images_of_cityscapes_is_named(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    (tmp_path / "images" / "town" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt in .*images is not named like an image"):
        load_records("town")


def test_a_panoptic_set_without_pairs_names_the_folders() -> None:
    records = [{"file_name": "photographs/a.png"}]
    folders = {"image_root": "photographs", "sem_seg_root": "labels"}
    register("none", lambda: merge_to_panoptic(records, []), **folders)
    expected = r"no label map for any photograph; .*NAME\.jpg in photographs with NAME\.png in lab"
    with pytest.raises(ValueError, match=expected):
        load_records("none")
    others = [{"file_name": "photographs/b.png"}]
    register("other", lambda: merge_to_panoptic(records, others), **folders)
    with pytest.raises(ValueError, match=r"no label map for the photograph photographs/a\.png"):
        load_records("other")


def test_missing_files_and_folders_are_named_with_the_set(tmp_path: Path) -> None:
    register("gone", lambda: load_sem_seg(str(tmp_path / "labels"), str(tmp_path / "images")))
    with pytest.raises(FileNotFoundError, match=r"gone cannot be loaded: .*images"):
        load_records("gone")
    register("file", lambda: os.listdir(__file__))
    with pytest.raises(ValueError, match=r"file cannot be loaded: .*Not a directory"):
        load_records("file")


def test_a_bug_of_a_loader_of_ones_own_keeps_its_traceback() -> None:
    def load() -> list[dict[str, Any]]:
        return {}["key"]

    register("own", load)
    with pytest.raises(KeyError):
        load_records("own")
