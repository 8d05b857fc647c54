"""Points that are drawn from masks."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from point_rend.data.datasets.coco import register_coco
from point_rend.data.datasets.point_annotations import (
    COCO_POINTS,
    register_point_annotations,
    write_point_annotations,
)
from tests.tiny_datasets import CocoSet, process_state_restored, uncompressed, write_coco


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


def write(
    folder: Path, annotations: list[dict[str, Any]], height: int = 40, width: int = 50
) -> Path:
    """Write a file with one image and annotations of one class."""
    path = folder / "masks.json"
    known = {"image_id": 5, "category_id": 2, "iscrowd": 0}
    content = {
        "info": {"year": 2026},
        "licenses": [],
        "images": [{"id": 5, "file_name": "a.png", "height": height, "width": width}],
        "categories": [{"id": 2, "name": "x"}],
        "annotations": [{"id": k + 1, **known, **x} for k, x in enumerate(annotations)],
    }
    path.write_text(json.dumps(content))
    return path


def convert(source: Path, points: int = 200, **arguments: Any) -> tuple[list[dict], Any]:
    target = source.with_name("points.json")
    converted = write_point_annotations(source, target, points=points, **arguments)
    return json.loads(target.read_text())["annotations"], converted


def rle(pixels: np.ndarray) -> dict[str, Any]:
    coded = mask_util.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return coded | {"counts": coded["counts"].decode()}


def planted() -> np.ndarray:
    """A mask with a hole that touches two borders of the image."""
    pixels = np.zeros((40, 50), dtype=bool)
    pixels[:30, 20:] = True
    pixels[10:20, 30:40] = False
    return pixels


@pytest.mark.parametrize("form", ["compressed", "runs"])
def test_labels_are_those_of_the_mask_at_the_pixels(tmp_path: Path, form: str) -> None:
    mask = rle(planted())
    box = {"bbox": [20.0, 0.0, 30.0, 30.0], "area": 800.0}
    given = mask if form == "compressed" else uncompressed(mask)
    (found,), converted = convert(write(tmp_path, [{**box, "segmentation": given}]))
    assert converted == (1, 0, [])
    assert found.keys() == {
        *("id", "image_id", "category_id", "iscrowd", "bbox", "area"),
        *("point_coords", "point_labels"),
    }
    assert len(found["point_coords"]) == len(found["point_labels"]) == 200
    for (x, y), label in zip(found["point_coords"], found["point_labels"], strict=True):
        assert isinstance(x, int)
        assert isinstance(y, int)
        assert 20 <= x < 50
        assert 0 <= y < 30
        assert label == int(planted()[y, x])
    assert {0, 1} == set(found["point_labels"])


def test_labels_of_polygons_are_those_of_cocos_rasterizer(tmp_path: Path) -> None:
    parts = [[5.0, 5.0, 25.0, 8.0, 12.0, 33.0], [30.0, 10.0, 45.0, 10.0, 45.0, 30.0, 30.0, 30.0]]
    (found,), _ = convert(
        write(tmp_path, [{"bbox": [5.0, 5.0, 40.0, 28.0], "segmentation": parts}])
    )
    pixels = mask_util.decode(mask_util.merge(mask_util.frPyObjects(parts, 40, 50)))
    expected = [int(pixels[y, x]) for x, y in found["point_coords"]]
    assert found["point_labels"] == expected
    assert 20 < sum(expected) < 180


def test_points_are_uniform_in_the_box(tmp_path: Path) -> None:
    box = {"bbox": [10.0, 4.0, 8.0, 16.0], "segmentation": rle(np.ones((40, 50)))}
    (found,), _ = convert(write(tmp_path, [box]), points=8 * 16 * 100)
    counts = np.zeros((40, 50))
    for x, y in found["point_coords"]:
        counts[y, x] += 1
    assert counts.sum() == counts[4:20, 10:18].sum()
    assert (abs(counts[4:20, 10:18] - 100) < 6 * math.sqrt(100)).all()


def test_a_box_beyond_the_image_has_its_points_within(tmp_path: Path) -> None:
    box = {"bbox": [40.0, -5.0, 30.0, 100.0], "segmentation": rle(np.ones((40, 50)))}
    (found,), _ = convert(write(tmp_path, [box]))
    xs, ys = zip(*found["point_coords"], strict=True)
    assert (min(xs), max(xs), min(ys), max(ys)) == (40, 49, 0, 39)


def three() -> list[dict[str, Any]]:
    box = {"bbox": [20.0, 0.0, 30.0, 30.0], "segmentation": rle(planted())}
    return [{**box, "id": identity} for identity in (4, 11, 12)]


def test_points_depend_on_seed_and_id_and_not_on_the_order(tmp_path: Path) -> None:
    first, _ = convert(write(tmp_path, three()))
    again, _ = convert(write(tmp_path, three()[::-1]), overwrite=True)
    assert first == again[::-1]
    other, _ = convert(write(tmp_path, three()), seed=1, overwrite=True)
    drawn = [x["point_coords"] for x in (*first, *other)]
    assert all(drawn[k] not in drawn[:k] for k in range(6))


def test_the_rest_of_the_file_stays_and_unusable_objects_are_left_out_with_their_reason(
    tmp_path: Path,
) -> None:
    good = three()[0] | {"keypoints": [1, 2, 2], "score": 0.5}
    crowd = three()[1] | {"iscrowd": 1}
    nothing = {"id": 20, "bbox": [1.0, 1.0, 5.0, 5.0]}
    empty = {"id": 21, "bbox": [1.0, 1.0, 5.0, 5.0], "segmentation": rle(np.zeros((40, 50)))}
    flat = three()[2] | {"bbox": [1.0, 1.0, 0.0, 5.0]}
    source = write(tmp_path, [good, crowd, nothing, empty, flat])
    found, converted = convert(source)
    assert [x["id"] for x in found] == [4, 11]
    assert found[0]["keypoints"] == [1, 2, 2]
    assert found[1]["iscrowd"] == 1
    assert converted[:2] == (2, 3)
    assert [x.split(":")[0] for x in converted.reasons] == [
        f"annotation {identity}" for identity in (20, 21, 12)
    ]
    assert "bbox of size 0.0 x 5.0" in converted.reasons[2]
    before, after = (json.loads(x.read_text()) for x in (source, source.with_name("points.json")))
    for content in (before, after):
        del content["annotations"]
    assert after == before


def test_a_set_is_read_as_a_training_reads_it(tmp_path: Path) -> None:
    written = write_coco(tmp_path)
    target = tmp_path / "points.json"
    write_point_annotations(Path(written.json_file), target, points=10)
    register_coco("points", *CocoSet(str(target), written.image_root))
    for record in DatasetCatalog.get("points"):
        for annotation in record["annotations"]:
            assert len(annotation["point_coords"]) == len(annotation["point_labels"]) == 10
            assert sum(annotation["point_labels"]) > 0


def test_a_file_without_masks_or_with_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path, [{"bbox": [1.0, 1.0, 5.0, 5.0]}])
    with pytest.raises(ValueError, match="no mask of its 1 annotations can be used, such as annot"):
        convert(source)
    assert [x.name for x in tmp_path.iterdir()] == [source.name]
    source.with_name("points.json").write_text("mine")
    with pytest.raises(ValueError, match="exists: choose another name, or pass --overwrite"):
        convert(source)
    with pytest.raises(ValueError, match=r"is the input .*, which would be overwritten"):
        write_point_annotations(source, source, points=10, overwrite=True)
    with pytest.raises(ValueError, match="--points: expected 1 to 100000, got 0"):
        convert(source, points=0)


def test_the_set_of_the_project_is_registered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for _ in range(2):
        register_point_annotations()
    metadata = MetadataCatalog.get(COCO_POINTS)
    assert len(metadata.thing_classes) == 80
    assert metadata.json_file == str(
        tmp_path / "coco/annotations/instances_train2017_n10_v1_without_masks.json"
    )
