"""Checks of annotated points before a training."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog

from point_rend.data.checks.annotations import check_datasets, leave_out_impossible_annotations
from point_rend.data.checks.points import is_far_outside, usable_points
from point_rend.data.datasets.coco import register_coco
from tests.tiny_datasets import CocoSet, process_state_restored, write_coco

GOOD = {"point_coords": [[3, 4], [10, 5.5]], "point_labels": [1, 0]}
SIZE = (20, 30)
NAN = float("nan")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


def test_good_points_have_no_fault() -> None:
    assert usable_points(GOOD | {"id": 1}, SIZE) == (GOOD, [])
    assert usable_points(GOOD, None) == (GOOD, [])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "no annotated points ('point_coords' and 'point_labels')"),
        ({"point_coords": [], "point_labels": []}, "no annotated points"),
        ({"point_coords": [[1, 2]]}, "point_coords and point_labels must be lists"),
        (GOOD | {"point_labels": 1}, "must be lists, got [[3, 4], [10, 5.5]] and 1"),
        (GOOD | {"point_labels": [1]}, "2 point_coords, but 1 point_labels"),
        (GOOD | {"point_coords": [3, 4]}, "point_coords must be pixels (x, y), got 3"),
        (GOOD | {"point_coords": [[3, 4], [1]]}, "must be pixels (x, y), got [1]"),
        (GOOD | {"point_coords": [[3, 4], [1, "2"]]}, "must be pixels (x, y), got [1, '2']"),
        (GOOD | {"point_coords": [[3, NAN], [1, 2]]}, "must be finite, got [3, nan]"),
        (GOOD | {"point_coords": [[3, 4], [1e300, 2]]}, "must be finite, got [1e+300, 2]"),
        (GOOD | {"point_labels": [1, 2]}, "point_labels must be 0 or 1, got 2"),
        (GOOD | {"point_labels": [True, 1]}, "point_labels must be 0 or 1, got True"),
        (GOOD | {"point_labels": [-1, 1]}, "point_labels must be 0 or 1, got -1"),
    ],
)
def test_a_fault_of_form_is_named(fields: dict[str, Any], text: str) -> None:
    usable, faults = usable_points(fields, SIZE)
    assert usable is None
    (fault,) = faults
    assert text in fault.text
    assert "\n" not in fault.text
    assert not fault.fatal


def test_points_outside_of_their_image_are_removed() -> None:
    coords = [[0, 0], [29, 19], [29.6, 0], [-1, 3], [4, 20]]
    usable, faults = usable_points({"point_coords": coords, "point_labels": [1, 0, 1, 1, 1]}, SIZE)
    assert usable == {"point_coords": coords[:2], "point_labels": [1, 0]}
    (fault,) = faults
    assert fault.text == "3 of 5 points outside its image of 30 x 20 pixels, such as [29.6, 0]"


def test_an_object_whose_points_are_all_outside_of_the_image_is_impossible() -> None:
    usable, _ = usable_points({"point_coords": [[40, 0]], "point_labels": [1]}, SIZE)
    assert usable is None


@pytest.mark.parametrize(
    ("point", "far"), [([4, 4], False), ([3.2, 9], False), ([11, 5], True), ([3, 10], True)]
)
def test_a_point_far_from_its_box_is_found(point: list[float], far: bool) -> None:
    """The first pixel of a box may lie up to a pixel before it."""
    found = {"point_coords": [[5, 5], point], "point_labels": [0, 0]}
    assert is_far_outside(found, (4.7, 4.7, 5.3, 4.3)) == far


@pytest.fixture
def tiny(tmp_path: Path) -> CocoSet:
    """A set of 2 images and 6 annotations with one point each, without masks."""
    written = write_coco(tmp_path)
    content = written.read()
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation |= {"point_coords": [[x + width / 2, y + height / 2]], "point_labels": [1]}
        del annotation["segmentation"]
    written.rewrite(content)
    register_coco("tiny", *written)
    return written


def check() -> tuple[str, ...]:
    return check_datasets(["tiny"], [], masks=True, points=True)


def spoil(written: CocoSet, position: int, **fields: Any) -> None:
    content = written.read()
    content["annotations"][position] |= fields
    written.rewrite(content)


def test_a_training_set_needs_points_and_no_masks(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert check() == ()
    assert caplog.messages == []
    records = DatasetCatalog.get("tiny")
    loaded = [x for record in records for x in record["annotations"]]
    given = json.loads(Path(tiny.json_file).read_text())["annotations"]
    assert [x["point_coords"] for x in loaded] == [x["point_coords"] for x in given]


def test_annotations_with_impossible_points_are_named_and_left_out(
    tiny: CocoSet, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(tiny, 1, point_labels=[7])
    spoil(tiny, 4, point_coords=[[5, 5], [500, 5]], point_labels=[0, 1])
    assert check() == ("tiny",)
    text = caplog.text
    assert "2 annotations are impossible and are left out, wholly or in part" in text
    assert "annotation 2 of image 1" in text
    assert "point_labels must be 0 or 1, got 7" in text
    assert "1 of 2 points outside its image of 96 x 64 pixels, such as [500, 5]" in text
    assert "1 annotations have points outside of their box" in text
    leave_out_impossible_annotations("tiny", masks=False, points=True)
    first, second = (record["annotations"] for record in DatasetCatalog.get("tiny"))
    assert len(first) == 2
    assert second[1]["point_coords"] == [[5, 5]]
    assert second[1]["point_labels"] == [0]


def test_a_training_set_without_any_points_is_refused_in_one_line(tmp_path: Path) -> None:
    register_coco("tiny", *write_coco(tmp_path))
    with pytest.raises(ValueError, match="but none of its 6 annotations has point_coords"):
        check()


def test_crowds_need_no_points(tiny: CocoSet, caplog: pytest.LogCaptureFixture) -> None:
    content = tiny.read()
    del content["annotations"][0]["point_coords"], content["annotations"][0]["point_labels"]
    content["annotations"][0]["iscrowd"] = 1
    tiny.rewrite(content)
    with caplog.at_level(logging.WARNING):
        assert check() == ()
    assert caplog.messages == []
