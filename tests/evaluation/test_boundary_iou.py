"""Inner bands and Boundary IoU, against a slow erosion and planted cases."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from point_rend.evaluation.boundary_iou import (
    band_of_rle,
    band_width,
    inner_band,
    lower_to_boundary_iou,
)
from tests.evaluation.oracles import band, blob, boundary_iou, encoded, eroded, iou


@pytest.mark.parametrize(
    ("size", "width"), [((3, 4), 1), ((60, 80), 2), ((192, 192), 5), ((1024, 2048), 46)]
)
def test_the_band_is_two_percent_of_the_diagonal_and_at_least_one_pixel(size, width):
    assert band_width(size) == width


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_band_of_a_square_is_its_frame(width):
    mask = np.zeros((20, 20), dtype=bool)
    mask[4:16, 4:16] = True
    expected = mask.copy()
    expected[4 + width : 16 - width, 4 + width : 16 - width] = False
    result = inner_band(mask, width)
    assert result.dtype == bool
    np.testing.assert_array_equal(result, expected)


def test_the_border_of_the_image_is_a_boundary():
    result = inner_band(np.ones((6, 8), dtype=bool), 2)
    assert result.sum() == 6 * 8 - 2 * 4


def test_a_thin_mask_is_all_band():
    mask = np.zeros((9, 9), dtype=bool)
    mask[4] = True
    np.testing.assert_array_equal(inner_band(mask, 1), mask)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_band_is_the_mask_minus_its_slow_erosion(width, order):
    rng = np.random.default_rng(width)
    masks = [blob(rng, 40, 61, radius) for radius in (2, 7, 12, 20, 50)]
    masks += [np.zeros((40, 61), dtype=bool), masks[0] | masks[2], rng.random((40, 61)) < 0.9]
    for mask in masks:
        core = mask
        for _ in range(width):
            core = eroded(core)
        before = mask.copy()
        result = inner_band(np.asarray(mask, order=order), width)
        np.testing.assert_array_equal(result, mask & ~core)
        np.testing.assert_array_equal(mask, before)


def test_the_band_of_an_encoded_mask_is_that_of_its_image():
    rng = np.random.default_rng(0)
    for _ in range(5):
        mask = blob(rng, 120, 160, 40)
        result = mask_util.decode(band_of_rle(encoded(mask)))
        assert result.shape == (120, 160)
        np.testing.assert_array_equal(result.astype(bool), band(mask))


def test_the_smaller_iou_counts_except_for_crowds():
    rng = np.random.default_rng(3)
    gt = [blob(rng, 90, 120, radius) for radius in (10, 30, 50)]
    found = [np.roll(mask, 2, axis=1) for mask in gt] + [gt[0]]
    ious = np.array([[iou(ours, theirs) for theirs in gt] for ours in found])
    records = [{"segmentation": encoded(mask), "iscrowd": k == 1} for k, mask in enumerate(gt)]
    result = lower_to_boundary_iou(ious, [{"segmentation": encoded(x)} for x in found], records)
    expected = np.array([[boundary_iou(ours, theirs) for theirs in gt] for ours in found])
    expected[:, 1] = ious[:, 1]
    assert result.shape == (4, 3)
    np.testing.assert_allclose(result, expected, rtol=1e-12)
    assert (expected < ious).any()


def test_a_band_is_computed_once(monkeypatch):
    gt = [{"segmentation": encoded(blob(np.random.default_rng(0), 30, 30, 9))}]
    first = lower_to_boundary_iou(np.ones((1, 1)), gt, gt)
    monkeypatch.setattr("point_rend.evaluation.boundary_iou.band_of_rle", None)
    np.testing.assert_array_equal(lower_to_boundary_iou(np.ones((1, 1)), gt, gt), first)
