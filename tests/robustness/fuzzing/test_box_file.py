"""Files of boxes, from good ones with changed values.

Every file is refused by a ValueError of one short line, or each of its boxes is usable or has a
fault of one short line, and the file is written as it was read.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data.catalog import Metadata
from hypothesis import example, given

from point_rend.data.datasets.coco import read_coco
from point_rend.evaluation.limits import coco_limit
from point_rend.refinement.box_file import boxes_of, is_crowd, read_box_file, write_box_file
from point_rend.refinement.class_map import ClassMap, categories_of, refuse_unmapped
from point_rend.refinement.images import ImageFolder, images_of
from point_rend.refinement.scoring import MaskScores
from tests.robustness.fuzzing.test_coco_json import CHANGES, GOOD, HEIGHT, WIDTH, changed

METADATA = Metadata(name="a", thing_classes=["a"], thing_dataset_id_to_contiguous_id={1: 0})
FOLDERS: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("boxes")
    for name in ("1.png", "2.png"):
        (path / name).touch()
    (path / "truth.json").write_text(json.dumps(GOOD))
    FOLDERS.append(path)
    yield path
    FOLDERS.pop()


def follow(content: Any) -> None:
    """Take a file through all steps but the model."""
    path = FOLDERS[-1] / "boxes.json"
    path.write_text(json.dumps(content))
    file = read_box_file(path)
    truth = read_coco(str(FOLDERS[-1] / "truth.json"))
    categories = categories_of(file.records, (file.data_set or truth)["categories"])
    for image in images_of(file, None, ImageFolder(FOLDERS[-1]))[0]:
        records = [file.records[index] for index in image.records]
        for record, box in zip(
            records, boxes_of(records, image.size or (HEIGHT, WIDTH)), strict=True
        ):
            is_crowd(record)
            assert (box.corners is None) == bool(box.fault)
            assert "\n" not in box.fault
            assert len(box.fault) < 300
            if box.corners is not None:
                x0, y0, x1, y1 = box.corners
                assert all(map(math.isfinite, box.corners))
                assert x0 <= x1
                assert y0 <= y1
    write_box_file(file, FOLDERS[-1] / "out.json")
    written = json.loads((FOLDERS[-1] / "out.json").read_text())
    assert repr(written) == repr(json.loads(path.read_text()))
    class_map = ClassMap(METADATA)
    refuse_unmapped(path, {x: 1 for x in categories if class_map.find(x) is None}, ["a"])
    ids = images_of(file, truth, ImageFolder(FOLDERS[-1]))[1]
    scores = MaskScores(file, truth, ids, categories, coco_limit())
    scores.metrics(scores.with_masks())


def check(content: Any) -> None:
    try:
        follow(content)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < 1500
        assert "boxes.json" in message or "no valid mask" in message or "--images" in message


@example([(["annotations", 0, "bbox"], [1e308, 1, 1e308, 2])])
@example([(["annotations", 0, "bbox"], None), (["annotations", 0, "segmentation"], [[]])])
@example([(["annotations", 0, "iscrowd"], "1")])
@example([(["images", 0, "file_name"], "..")])
@example([(["images", 0, "file_name"], "\0")])
@example([(["images", 0, "file_name"], "a" * 4000)])
@given(CHANGES)
def test_any_change_of_annotations(changes: list[tuple[list[Any], Any]]) -> None:
    check(changed(changes))


@example([(["annotations", 0, "image_id"], "x")])
@example([(["annotations", 0, "category_name"], "a")])
@given(CHANGES)
def test_any_change_of_results(changes: list[tuple[list[Any], Any]]) -> None:
    results = changed(changes)["annotations"]
    if isinstance(results, list):
        results = [x | {"score": 0.5} if isinstance(x, dict) else x for x in results]
    check(results)
