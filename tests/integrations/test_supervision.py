"""Conversion to and from `supervision.Detections`, and masks for the boxes of other detectors."""

import importlib
import re
import sys
from typing import Any

import numpy as np
import pytest
import supervision as sv
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Boxes, Instances
from supervision.detection.compact_mask import CompactMask

from point_rend.integrations.supervision import refine, to_detections, to_instances
from point_rend.rendering.box_masks import BoxMasks
from tests.synthetic import small_head_config

SIZE = (40, 60)
NAMES = ["cat", "dog", "large bird"]
METADATA = Metadata(name="three", thing_classes=NAMES)
BOXES = np.array([[3, 4, 30, 20], [10, 5, 58.5, 39], [-4, -2, 9, 8]], dtype=np.float32)


def instances(count: int = 3) -> Instances:
    """Found objects with random masks of boxes; one box reaches beyond the image."""
    probabilities = torch.rand(count, 8, 8, generator=torch.Generator().manual_seed(0))
    found = Instances(SIZE)
    found.pred_boxes = Boxes(torch.from_numpy(BOXES[:count]))
    found.scores = torch.tensor([0.9, 0.75, 0.5])[:count]
    found.pred_classes = torch.tensor([1, 0, 2])[:count]
    found.pred_masks = BoxMasks(probabilities, torch.from_numpy(BOXES[:count]), SIZE)
    return found


def dense(count: int = 3) -> Instances:
    found = instances(count)
    found.pred_masks = found.pred_masks.tensor()
    return found


def detections(**fields: Any) -> sv.Detections:
    return sv.Detections(xyxy=BOXES.copy(), **fields)


class FilledBoxes:
    """Stands in for a model of :data:`NAMES`: a mask is its box without its lower row."""

    metadata = METADATA
    cfg = small_head_config()

    def unpasted(self) -> "FilledBoxes":
        return self

    def masks_for(self, image: Any, boxes: Any, classes: Any = None) -> Instances:
        self.boxes, self.classes = boxes, classes
        found = Instances(image.shape[:2])
        found.pred_masks = torch.zeros(len(boxes), *image.shape[:2], dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found.pred_masks, boxes.astype(int), strict=True):
            mask[max(y0, 0) : max(y1 - 1, 0), max(x0, 0) : max(x1, 0)] = True
        return found


IMAGE = np.zeros((*SIZE, 3), dtype=np.uint8)


# --- to supervision -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 0])
def test_detections_are_those_of_supervision_and_have_names(count: int) -> None:
    expected = sv.Detections.from_detectron2({"instances": dense(count)})
    for output in (dense(count), {"instances": dense(count)}, instances(count)):
        found = to_detections(output)
        assert found == expected
        assert found.mask.dtype == bool
        assert found.mask.shape == (count, *SIZE)
    named = to_detections(instances(count), METADATA)
    assert named["class_name"].tolist() == ["dog", "cat", "large bird"][:count]
    assert [named.xyxy.tolist(), named.class_id.tolist()] == [
        expected.xyxy.tolist(),
        expected.class_id.tolist(),
    ]


@pytest.mark.parametrize("kind", ["tensor", "bit masks", "box masks"])
def test_masks_of_every_kind_are_the_same_array_and_the_same_compact_masks(kind: str) -> None:
    found = instances()
    expected = found.pred_masks.tensor()
    if kind == "tensor":
        found.pred_masks = expected
    elif kind == "bit masks":
        found.pred_masks = BitMasks(expected)
    assert expected.any(dim=(1, 2)).all()
    np.testing.assert_array_equal(to_detections(found).mask, expected.numpy())
    compact = to_detections(found, compact=True).mask
    assert isinstance(compact, CompactMask)
    np.testing.assert_array_equal(compact.to_dense(), expected.numpy())


def test_compact_masks_hold_empty_masks_whole_images_and_none_at_all() -> None:
    found = dense(3)
    found.pred_masks[0] = False
    found.pred_masks[1] = True
    compact = to_detections(found, compact=True)
    np.testing.assert_array_equal(compact.mask.to_dense(), found.pred_masks.numpy())
    none = to_detections(dense(0), compact=True)
    assert none.mask.shape == (0, *SIZE)


def test_a_result_without_boxes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected instances with pred_boxes, .* got sem_seg"):
        to_detections({"sem_seg": torch.zeros(2, 4, 4)})
    with pytest.raises(ValueError, match="got no fields"):
        to_detections(Instances(SIZE))


# --- to Detectron2 --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 0])
@pytest.mark.parametrize("compact", [False, True])
def test_instances_survive_the_way_to_detections_and_back(count: int, compact: bool) -> None:
    original = dense(count)
    original.tracker_ids = torch.arange(7, 7 + count)
    original.keypoints = torch.rand(count, 4, 3)
    back = to_instances(to_detections(original, METADATA, compact=compact))
    assert back.image_size == SIZE
    assert back.class_name.tolist() == ["dog", "cat", "large bird"][:count]
    for name, value in original.get_fields().items():
        expected, actual = getattr(value, "tensor", value), back.get(name)
        actual = torch.as_tensor(getattr(actual, "tensor", actual))
        assert actual.dtype == expected.dtype, name
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_detections_survive_the_way_to_instances_and_back() -> None:
    original = detections(
        confidence=np.array([0.25, 0.5, 1], dtype=np.float32),
        class_id=np.array([17, 3, 17]),
        tracker_id=np.array([5, 6, 9]),
        mask=dense().pred_masks.numpy(),
        data={
            "class_name": np.array(["x", "y", "x"]),
            "embedding": np.random.default_rng(0).random((3, 5)),
        },
    )
    assert to_detections(to_instances(original)) == original
    bare = detections()
    assert to_detections(to_instances(bare, SIZE)) == bare
    assert to_instances(bare, SIZE).get_fields().keys() == {"pred_boxes"}
    empty = sv.Detections.empty()
    assert len(to_instances(empty, SIZE)) == 0
    assert to_detections(to_instances(empty, SIZE)).is_empty()


def test_fields_of_all_kinds_are_selected_together() -> None:
    found = to_instances(
        detections(data={"class_name": ["a", "b", "c"], "polygon": [[1], [2, 3], []]}), SIZE
    )
    part = found[torch.tensor([False, True, True])]
    assert part.class_name.tolist() == ["b", "c"]
    assert part.polygon.tolist() == [[2, 3], []]


def test_classes_are_found_by_name_in_any_order() -> None:
    given = detections(
        class_id=np.array([16, 15, 14]), data={"class_name": ["dog", "cat", "large bird"]}
    )
    assert to_instances(given, SIZE).pred_classes.tolist() == [16, 15, 14]
    for names, expected in (
        (NAMES, [1, 0, 2]),
        (NAMES[::-1], [1, 2, 0]),
        (["Large-Bird", "DOG", "cat"], [1, 2, 0]),
    ):
        metadata = Metadata(thing_classes=names)
        assert to_instances(given, SIZE, metadata).pred_classes.tolist() == expected
    with pytest.raises(ValueError, match="detected classes dog have no class in the model"):
        to_instances(given, SIZE, Metadata(thing_classes=["cat", "large bird"]))


def test_the_size_of_the_image_is_needed_and_must_be_that_of_the_masks() -> None:
    with pytest.raises(ValueError, match="image_size: expected H and W"):
        to_instances(detections())
    with pytest.raises(ValueError, match=r"expected \(40, 60\), .* got \(60, 40\)"):
        to_instances(detections(mask=dense().pred_masks.numpy()), (60, 40))
    with pytest.raises(ValueError, match=r"'scores'.* taken"):
        to_instances(detections(data={"scores": np.zeros(3)}), SIZE)


# --- masks for boxes ------------------------------------------------------------------------------


def test_refined_detections_have_new_masks_and_all_else_as_it_was() -> None:
    given = detections(
        confidence=np.array([0.25, 0.5, 1]),
        class_id=np.array([16, 15, 16]),
        tracker_id=np.array([5, 6, 9]),
        mask=np.ones((3, *SIZE), dtype=bool),
        data={"class_name": np.array(["dog", "cat", "dog"]), "age": [1, 2, 3]},
        metadata={"camera": "front"},
    )
    model = FilledBoxes()
    refined = refine(model, IMAGE, given)
    assert model.classes.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(model.boxes, BOXES)
    expected = np.zeros((3, *SIZE), dtype=bool)
    expected[0, 4:19, 3:30] = expected[1, 5:38, 10:58] = expected[2, :7, :9] = True
    np.testing.assert_array_equal(refined.mask, expected)
    assert given.mask.all()
    given.mask = refined.mask
    assert refined == given
    refined["age"] = [4, 5, 6]
    assert given["age"] == [1, 2, 3]


def test_what_detectors_keep_about_all_objects_together_does_no_harm() -> None:
    """Some write the image into `data`, after the check of its length."""
    given = detections(class_id=np.array([0, 1, 2]), data={"class_name": ["cat", "dog", None]})
    given.data["source_image"], given.data["source_shape"] = IMAGE, SIZE
    refined = refine(FilledBoxes(), IMAGE, given, {2: "dog"})
    assert refined.mask.any()
    assert refined.data["source_image"] is IMAGE
    fields = to_instances(given, SIZE).get_fields()
    assert fields.keys() == {"pred_boxes", "pred_classes", "class_name"}


def test_refined_masks_are_compact_where_the_given_ones_are() -> None:
    given = detections(data={"class_name": ["cat"] * 3}, mask=np.ones((3, *SIZE), dtype=bool))
    array = refine(FilledBoxes(), IMAGE, given).mask
    for compact in (
        refine(FilledBoxes(), IMAGE, given.to_compact_masks()).mask,
        refine(FilledBoxes(), IMAGE, given, compact=True).mask,
    ):
        assert isinstance(compact, CompactMask)
        np.testing.assert_array_equal(compact.to_dense(), array)
    dense = refine(FilledBoxes(), IMAGE, given.to_compact_masks(), compact=False).mask
    np.testing.assert_array_equal(dense, array)


def test_no_detections_are_refined_to_none() -> None:
    refined = refine(FilledBoxes(), IMAGE, sv.Detections.empty())
    assert len(refined) == 0
    assert refined.mask.shape == (0, *SIZE)


def test_a_class_map_has_names_or_ids_on_both_sides() -> None:
    given = detections(class_id=np.array([16, 0, 3]), data={"class_name": ["hound", "puss", "x"]})
    for class_map in (
        {"hound": "dog", "puss": "cat", "x": 2},
        {16: 1, 0: 0, 3: "large bird"},
        {"hound": 1, 0: "cat", "x": "large bird"},
    ):
        model = FilledBoxes()
        refine(model, IMAGE, given, class_map)
        assert model.classes.tolist() == [1, 0, 2]
    del given.data["class_name"]
    model = FilledBoxes()
    refine(model, IMAGE, given, {16: 1, 0: 0, 3: 2})
    assert model.classes.tolist() == [1, 0, 2]


def test_a_class_without_a_counterpart_is_refused_with_both_lists() -> None:
    given = detections(class_id=np.array([16, 0, 3]), data={"class_name": ["dog", "fish", "eel"]})
    model = r"the model's classes are 3 \(cat, dog, large bird\)"
    for message, class_map in (
        (rf"classes fish, eel have .*; {model}: pass .* such as {{'fish': 'cat'}}", None),
        (rf"classes eel have .*; {model}: expected them in class_map", {"fish": 0, "dog": 1}),
        (rf"fish is mapped to 'bird', but {model}", {"fish": "bird"}),
        ("expected an index from 0 to 2 .* got 3", {"fish": 3}),
    ):
        with pytest.raises(ValueError, match=message):
            refine(FilledBoxes(), IMAGE, given, class_map)
    del given.data["class_name"]
    with pytest.raises(ValueError, match=r"classes 16, 0, 3 have no .* such as {16: 'cat'}"):
        refine(FilledBoxes(), IMAGE, given)
    with pytest.raises(ValueError, match=f"the detections have no classes, and {model}"):
        refine(FilledBoxes(), IMAGE, detections())


def test_boxes_without_classes_fit_a_model_of_one_class() -> None:
    model = FilledBoxes()
    model.metadata = Metadata(name="one", thing_classes=["thing"])
    assert refine(model, IMAGE, detections()).mask.any()
    assert model.classes.tolist() == [0, 0, 0]
    named = detections(data={"class_name": ["anything"] * 3})
    with pytest.raises(ValueError, match="anything have no class"):
        refine(model, IMAGE, named)


def test_any_class_fits_a_model_with_the_same_mask_for_all() -> None:
    model = FilledBoxes()
    model.cfg = small_head_config(
        *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True, "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK", True)
    )
    refine(model, IMAGE, detections(class_id=np.array([90, 91, 92])))
    refine(model, IMAGE, detections())
    refine(model, IMAGE, detections(data={"class_name": ["dog", "anything", "else"]}))
    assert model.classes.tolist() == [1, 0, 0]


# --- the optional package -------------------------------------------------------------------------


def test_the_module_imports_without_supervision_and_its_functions_name_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    monkeypatch.delitem(sys.modules, to_detections.__module__)
    ours = importlib.import_module(to_detections.__module__)
    calls = (
        lambda: ours.to_detections(instances()),
        lambda: ours.refine(FilledBoxes(), IMAGE, detections()),
    )
    expected = (
        'supervision is not installed; install it with: pip install "point_rend[supervision]"'
    )
    for call in calls:
        with pytest.raises(ValueError, match=re.escape(expected)):
            call()
