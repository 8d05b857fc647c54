"""mIoU and boundary mIoU of label maps, against slow loops and planted cases."""

import itertools
import math

import numpy as np
import pytest

from point_rend.evaluation.boundary_iou import band_width
from point_rend.evaluation.semantic_iou import SemanticIoU

IGNORE = 255


def eroded_once(mask: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the pixels of a set whose eight neighbors are all in it."""
    steps = [*itertools.product((-1, 0, 1), repeat=2)]
    return {(y, x) for y, x in mask if all((y + v, x + u) in mask for v, u in steps)}


def slow_scores(pairs, num_classes: int, width: int) -> tuple[list[float], list[float]]:
    """Compute IoU and Boundary IoU of each class from sets of pixels, one pixel at a time."""
    scores: tuple[list[float], list[float]] = ([], [])
    for k in range(num_classes):
        counts = [[0, 0], [0, 0]]
        for prediction, label in pairs:
            pixels = [p for p in np.ndindex(label.shape) if label[p] != IGNORE]
            masks = [{p for p in pixels if values[p] == k} for values in (prediction, label)]
            bands = []
            for mask in masks:
                core = mask
                for _ in range(width):
                    core = eroded_once(core)
                bands.append(mask - core)
            for count, (ours, theirs) in zip(counts, (masks, bands), strict=True):
                count[0] += len(ours & theirs)
                count[1] += len(ours | theirs)
        for ious, (common, either) in zip(scores, counts, strict=True):
            ious.append(common / either if either else math.nan)
    return scores


def blobs(rng: np.random.Generator, size: tuple[int, int], classes: int) -> np.ndarray:
    coarse = rng.integers(0, classes, (-(-size[0] // 6), -(-size[1] // 6)))
    return np.kron(coarse, np.ones((6, 6), dtype=int))[: size[0], : size[1]]


def split_at(column: int, size: tuple[int, int] = (20, 40)) -> np.ndarray:
    """Return a label map of class 0 left of a column and class 1 from there on."""
    return np.broadcast_to(np.arange(size[1]) >= column, size).astype(np.uint8)


@pytest.mark.parametrize("size", [(17, 23), (60, 90)])
def test_scores_equal_those_of_sets_of_pixels(size):
    rng = np.random.default_rng(size[0])
    pairs = []
    for _ in range(3):
        label = blobs(rng, size, 4)
        prediction = np.where(rng.random(size) < 0.1, rng.integers(0, 5, size), np.roll(label, 1))
        label[blobs(rng, size, 5) == 0] = IGNORE
        pairs.append((prediction, label))
    scores = SemanticIoU(6)
    for prediction, label in pairs:
        scores.add(prediction, label)
    iou, boundary_iou = slow_scores(pairs, 6, band_width(size))
    assert scores.iou.shape == scores.boundary_iou.shape == (6,)
    np.testing.assert_allclose(scores.iou, iou, rtol=1e-12)
    np.testing.assert_allclose(scores.boundary_iou, boundary_iou, rtol=1e-12)
    assert scores.means()["mIoU"] == pytest.approx(100 * np.nanmean(iou))
    assert scores.means()["boundary mIoU"] == pytest.approx(100 * np.nanmean(boundary_iou))
    assert math.isnan(iou[5])


def test_the_ground_truth_scores_100():
    label = blobs(np.random.default_rng(0), (30, 40), 3)
    label[:5] = IGNORE
    scores = SemanticIoU(3)
    scores.add(np.where(label == IGNORE, 1, label), label)
    assert scores.means() == {"mIoU": 100, "boundary mIoU": 100}


def test_a_shifted_edge_costs_the_boundary_more_than_the_area():
    """In 20×40 pixels the bands are 1 pixel wide: the frame of each part."""
    scores = SemanticIoU(2)
    scores.add(split_at(23), split_at(20))
    np.testing.assert_allclose(scores.iou, [20 / 23, 17 / 20])
    # Class 0: frames of 20×20 (76 pixels) and 20×23 (82); intersection: 2 × 20 on the long sides
    # and 18 on the left. Class 1: frames of 20×20 and 20×17 (70), intersection: 2 × 17 and 18.
    np.testing.assert_allclose(scores.boundary_iou, [58 / 100, 52 / 94])


def test_predictions_on_ignored_pixels_do_not_matter():
    rng = np.random.default_rng(1)
    label = blobs(rng, (40, 50), 3)
    label[10:25, 15:30] = IGNORE
    results = []
    for _ in range(2):
        prediction = np.where(label == IGNORE, rng.integers(0, 200, label.shape), label)
        scores = SemanticIoU(3)
        scores.add(prediction, label)
        results.append(scores.means())
    assert results[0] == results[1] == {"mIoU": 100, "boundary mIoU": 100}


def test_counts_are_summed_over_images_before_they_are_divided():
    scores = SemanticIoU(2)
    scores.add(split_at(40), split_at(40))  # class 0 only, all correct
    scores.add(split_at(0), split_at(10))  # class 1 predicted everywhere, 10 of 40 columns wrong
    np.testing.assert_allclose(scores.iou, [40 / 50, 30 / 40])


def test_images_may_be_added_to_several_objects_and_merged():
    rng = np.random.default_rng(2)
    whole, first, second = (SemanticIoU(3) for _ in range(3))
    for part in (first, second):
        label = blobs(rng, (20, 30), 3)
        for scores in (whole, part):
            scores.add(np.roll(label, 2), label)
    first.update(second)
    np.testing.assert_array_equal(first.iou, whole.iou)
    np.testing.assert_array_equal(first.boundary_iou, whole.boundary_iou)


def test_a_class_that_is_predicted_but_absent_counts_as_0():
    scores = SemanticIoU(3)
    label = np.zeros((8, 8), dtype=np.uint8)
    prediction = label.copy()
    prediction[0, 0] = 2
    scores.add(prediction, label)
    np.testing.assert_allclose(scores.iou, [63 / 64, np.nan, 0])
    assert scores.means()["mIoU"] == pytest.approx(100 * (63 / 64 + 0) / 2)


def test_without_counted_pixels_all_metrics_are_nan():
    scores = SemanticIoU(2)
    scores.add(np.zeros((4, 4), dtype=int), np.full((4, 4), IGNORE))
    assert all(math.isnan(value) for value in scores.means().values())


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (np.zeros((4, 5), int), np.zeros((5, 4), int), r"one size .* \(4, 5\) and \(5, 4\)"),
        (np.full((4, 4), 3), np.zeros((4, 4), int), r"prediction has the values \[3\].*0 to 2"),
        (np.zeros((4, 4), int), np.full((4, 4), 7), r"label map has the values \[7\].*0 to 2"),
        (np.zeros((4, 4), int), np.full((4, 4), -1), r"label map has the values \[-1\]"),
    ],
)
def test_invalid_label_maps_are_refused(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        SemanticIoU(3).add(prediction, label)
