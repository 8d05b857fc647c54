"""Anchors against boxes, compared with Detectron2's anchors and a plain loop."""

import itertools

import numpy as np
import pytest
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from point_rend.inspection.anchors import (
    anchor_shapes,
    best_ious,
    compare_anchors,
    measure_fit,
)
from point_rend.inspection.settings import Anchors

COCO = Anchors(
    tuple((float(2**k),) for k in range(5, 10)),
    ((0.5, 1.0, 2.0),) * 5,
    background=0.3,
    foreground=0.7,
)


def plain_iou(first: tuple[float, float], second: tuple[float, float]) -> float:
    """IoU of two boxes with one center."""
    shared = min(first[0], second[0]) * min(first[1], second[1])
    return shared / (first[0] * first[1] + second[0] * second[1] - shared)


def test_the_shapes_are_those_of_detectron2() -> None:
    generator = DefaultAnchorGenerator(
        sizes=[list(x) for x in COCO.sizes], aspect_ratios=[[0.5, 1.0, 2.0]], strides=[4] * 5
    )
    corners = np.concatenate([x.numpy() for x in generator.cell_anchors])
    theirs = corners[:, 2:] - corners[:, :2]
    ours = anchor_shapes(COCO)
    assert ours.shape == theirs.shape
    order = [np.lexsort(x.round(2).T) for x in (ours, theirs)]
    np.testing.assert_allclose(ours[order[0]], theirs[order[1]], rtol=1e-5)


def test_the_best_iou_is_that_of_a_plain_loop_and_no_other_place_is_better() -> None:
    rng = np.random.default_rng(1)
    sides = rng.uniform(4, 900, (60, 2))
    shapes = anchor_shapes(COCO)
    found = best_ious(sides, shapes)
    expected = [max(plain_iou(tuple(box), tuple(x)) for x in shapes) for box in sides]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for (width, height), best in zip(sides, found, strict=True):
        for (w, h), dx, dy in itertools.product(shapes, (0, 5, 40), (0, 5, 40)):
            overlap = max(0, min(width / 2, w / 2 + dx) - max(-width / 2, -w / 2 + dx))
            overlap *= max(0, min(height / 2, h / 2 + dy) - max(-height / 2, -h / 2 + dy))
            assert overlap / (width * height + w * h - overlap) <= best + 1e-12


def test_shares_below_the_thresholds_are_means_over_the_scales() -> None:
    sides = np.array([[32.0, 32.0], [320.0, 10.0]])
    fit = measure_fit(sides, np.array([[1.0, 1.0], [1.4, 1.0]]), COCO)
    ious = [1.0, plain_iou((44.8, 44.8), (32, 32))]
    thin = max(plain_iou((320, 10), tuple(x)) for x in anchor_shapes(COCO))
    assert thin < 0.3 < 0.5 < ious[1] < 0.7
    assert fit == pytest.approx((0.75, 0.5, 0.5, (sum(ious) + 2 * thin) / 4))


def test_anchors_for_thin_objects_are_found_and_fit_better() -> None:
    rng = np.random.default_rng(2)
    height = rng.uniform(60, 500, 400)
    report = compare_anchors(np.stack([height / 7, height], axis=1), np.ones((2, 400)), COCO)
    assert report is not None
    assert report.ratio_percentiles == pytest.approx([7, 7, 7])
    assert report.better is not None
    assert report.better_fit is not None
    assert max(report.better.ratios[0]) >= 3
    assert report.better_fit.below_middle <= report.fit.below_middle - 0.05
    assert report.better_fit == measure_fit(
        np.stack([height / 7, height], axis=1), np.ones((2, 400)), report.better
    )


def test_small_objects_take_smaller_anchors_of_the_same_ratios() -> None:
    sides = np.random.default_rng(3).uniform(10, 24, (500, 1)).repeat(2, axis=1)
    report = compare_anchors(sides, np.ones((1, 500)), COCO)
    assert report is not None
    assert report.better is not None
    assert report.better.ratios == COCO.ratios
    assert [x[0] for x in report.better.sizes] == [x[0] / 2 for x in COCO.sizes]


def test_anchors_that_fit_are_left_alone() -> None:
    rng = np.random.default_rng(4)
    size, ratio = 2 ** rng.uniform(5, 9, 800), 2 ** rng.uniform(-1, 1, 800)
    sides = np.stack([size / np.sqrt(ratio), size * np.sqrt(ratio)], axis=1)
    report = compare_anchors(sides, np.ones((1, 800)), COCO)
    assert report is not None
    assert report.better is None
    assert report.fit.below_middle < 0.1


def test_images_of_unknown_size_and_empty_boxes_are_left_out() -> None:
    sides = np.array([[32.0, 32.0], [50.0, 50.0], [0.0, 3.0]])
    report = compare_anchors(sides, np.array([[1.0, np.nan, 1.0]]), COCO)
    assert report is not None
    assert report.fit.mean_iou == 1
    assert compare_anchors(sides[2:], np.ones((1, 1)), COCO) is None
