"""Files of boxes: each record's box, and writing."""

import json
from pathlib import Path
from typing import Any

import pytest

from point_rend.refinement.box_file import boxes_of, read_box_file, write_box_file
from point_rend.refinement.run import _has_same_shape

SIZE = (40, 60)
SQUARE = [[10, 10, 20, 10, 20, 30, 10, 30]]
RLE = {"size": [40, 60], "counts": [40 * 5 + 8, 4, 36, 4, 40 * 60 - 252]}


def box(**record: Any) -> tuple[Any, str, bool]:
    ((corners, fault, is_inside),) = boxes_of([record], SIZE)
    return corners, fault, is_inside


def test_a_box_has_corners() -> None:
    assert box(bbox=[1, 2, 3.5, 4]) == ((1, 2, 4.5, 6), "", True)
    assert box(bbox=[-5, -5, 100, 6]) == ((-5, -5, 95, 1), "", True)


@pytest.mark.parametrize("bbox", [[5, 5, 0, 9], [60, 0, 5, 5], [0, 40, 5, 5], [-9, 0, 9, 9]])
def test_a_box_without_area_in_the_image_is_not_inside(bbox: list[float]) -> None:
    x, y, width, height = bbox
    assert box(bbox=bbox) == ((x, y, x + width, y + height), "", False)


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0], [70, 0, 5, 5], [1, 2], "box"])
@pytest.mark.parametrize(
    ("mask", "bounds"), [(SQUARE, (10, 10, 20, 30)), (RLE, (5, 8, 7, 12))], ids=["polygon", "rle"]
)
def test_the_bounds_of_the_mask_replace_a_box_that_cannot_be_used(
    bbox: Any, mask: Any, bounds: tuple[float, ...]
) -> None:
    assert box(bbox=bbox, segmentation=mask) == (bounds, "", True)
    assert box(segmentation=mask) == (bounds, "", True)


def test_a_box_in_the_image_counts_before_the_mask() -> None:
    assert box(bbox=[1, 2, 3, 4], segmentation=SQUARE) == ((1, 2, 4, 6), "", True)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({}, "has neither a bbox nor a segmentation"),
        ({"bbox": [1, 2, 3]}, "has the bbox [1, 2, 3], expected 4 numbers: x, y, width, height"),
        ({"bbox": [1, 2, 3, float("nan")]}, "has the bbox [1, 2, 3, nan], expected 4 numbers"),
        ({"bbox": [1, 2, 3, True]}, "has the bbox [1, 2, 3, True], expected 4 numbers"),
        ({"bbox": [1, 2, 3, 1e300]}, "has the bbox [1, 2, 3, 1e+300], expected 4 numbers"),
        ({"bbox": [9, 9, -3, 4]}, "has the bbox [9, 9, -3, 4], whose width or height is negative"),
        ({"segmentation": "x"}, "has no bbox, and the fault of its mask is: segmentation 'x'"),
        ({"segmentation": RLE | {"size": [60, 40]}}, "fault of its mask is: RLE of size (60, 40)"),
    ],
)
def test_a_box_that_cannot_be_used_has_a_fault(record: dict[str, Any], fault: str) -> None:
    corners, text, is_inside = box(**record)
    assert corners is None
    assert fault in text
    assert not is_inside


def test_a_file_is_written_with_the_values_that_were_read(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "ä/日.png", "height": 40, "width": 60, "x": [1.5e-7, None]}
    shape = {"bbox": [0.1, 2, 33.333333333333336, 4e1], "segmentation": SQUARE, "n": -0.0}
    annotation = {"id": "α", "image_id": 1, "category_id": 2, **shape}
    content = {
        "licenses": [],
        "annotations": [annotation, annotation | {"id": 10**15, "bbox": [float("nan")] * 4}],
        "images": [image],
        "categories": [{"id": 2, "name": "cat"}],
        "info": {"version": "2"},
    }
    results = [{"image_id": "a", "category_id": 3, **shape}]
    for value in (content, results, []):
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(value))
        write_box_file(read_box_file(path), tmp_path / "out.json")
        assert repr(json.loads((tmp_path / "out.json").read_text())) == repr(value)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((480, 640), (960, 1280), True),
        ((427, 640), (1281, 1920), True),
        ((427, 640), (213, 320), True),  # rounded down
        ((427, 640), (214, 320), True),  # rounded up
        ((480, 640), (640, 480), False),
        ((480, 640), (640, 640), False),
        ((480, 640), (470, 640), False),
    ],
)
def test_sizes_of_the_same_shape_differ_by_a_factor_up_to_whole_pixels(
    first: tuple[int, int], second: tuple[int, int], same: bool
) -> None:
    assert _has_same_shape(first, second) == _has_same_shape(second, first) == same
