"""Matching of objects and results, against planted cases and slow IoUs."""

import numpy as np
import pytest

from point_rend.evaluation.matching import MIN_IOU, greedy_pairs, match_objects
from tests.evaluation.oracles import band, blob, encoded, iou


def record(mask: np.ndarray, image: int = 1, category: int = 1) -> dict:
    return {"image_id": image, "category_id": category, "segmentation": encoded(mask)}


def test_the_best_pair_comes_first_and_takes_its_row_and_column():
    ious = np.array([[0.8, 0.9], [0.3, 0.85], [0.2, 0.05]])
    before = ious.copy()
    assert greedy_pairs(ious) == [(0, 1), (1, 0)]
    np.testing.assert_array_equal(ious, before)


def test_small_overlaps_make_no_pair():
    assert greedy_pairs(np.array([[MIN_IOU, 0.0], [0.0, MIN_IOU - 1e-6]])) == [(0, 0)]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_without_rows_or_columns_there_is_no_pair(shape):
    assert greedy_pairs(np.zeros(shape)) == []


def test_a_match_has_the_ious_of_the_masks_and_of_their_bands():
    rng = np.random.default_rng(3)
    gt_masks = [blob(rng, 60, 80, 18) for _ in range(4)]
    masks = [np.roll(gt, (2, 1), axis=(0, 1)) for gt in gt_masks[::-1]]
    objects = [record(gt, image) for image, gt in enumerate(gt_masks)]
    results = [record(mask, 3 - image) for image, mask in enumerate(masks)]
    matches = match_objects(objects, results)
    for index, (gt, match) in enumerate(zip(gt_masks, matches, strict=True)):
        assert match is not None
        assert match.result == 3 - index
        assert match.iou == pytest.approx(iou(gt, masks[3 - index]))
        assert match.boundary_iou == pytest.approx(iou(band(gt), band(masks[3 - index])))


def test_objects_of_other_images_or_classes_do_not_match():
    mask = np.ones((10, 10), dtype=bool)
    results = [record(mask, image=2), record(mask, category=2)]
    assert match_objects([record(mask)], results) == [None]


def test_the_inputs_are_not_changed():
    mask = np.ones((10, 10), dtype=bool)
    gt, result = record(mask), record(mask)
    match_objects([gt], [result])
    assert set(gt) == set(result) == {"image_id", "category_id", "segmentation"}
