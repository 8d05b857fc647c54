"""Boxes that are not those of their masks, and the formats in which they would be."""

import numpy as np
import pytest

from point_rend.data.checks.boxes import beyond_images, compare_boxes, seem_shares

WIDTH, HEIGHT = 640, 480
SIDES = np.tile([[WIDTH, HEIGHT]], (40, 1)).astype(float)


def corners() -> np.ndarray:
    """Random boxes (40, 4) as x0, y0, x1, y1."""
    rng = np.random.default_rng(0)
    low = rng.uniform(20, 300, (40, 2))
    return np.hstack([low, low + rng.uniform(20, 150, (40, 2))])


def from_corners(boxes: np.ndarray, form: str) -> np.ndarray:
    x0, y0, x1, y1 = boxes.T
    return np.stack(
        {
            "x, y, width, height": (x0, y0, x1 - x0, y1 - y0),
            "x0, y0, x1, y1": (x0, y0, x1, y1),
            "y0, x0, y1, x1": (y0, x0, y1, x1),
            "y, x, height, width": (y0, x0, y1 - y0, x1 - x0),
            "center x, center y, width, height": (
                *((x0 + x1) / 2, (y0 + y1) / 2),
                *(x1 - x0, y1 - y0),
            ),
        }[form],
        axis=1,
    )


@pytest.mark.parametrize(
    "form",
    [
        "x0, y0, x1, y1",
        "y0, x0, y1, x1",
        "y, x, height, width",
        "center x, center y, width, height",
    ],
)
def test_the_format_of_most_boxes_is_named(form: str) -> None:
    found = compare_boxes(from_corners(corners(), form), corners(), SIDES)
    assert found.suspected == form
    assert found.fitting > 30


@pytest.mark.parametrize(
    "form", ["x, y, width, height", "x0, y0, x1, y1", "center x, center y, width, height"]
)
def test_shares_of_the_sides_are_named(form: str) -> None:
    boxes = from_corners(corners(), form) / np.tile([WIDTH, HEIGHT], 2)
    found = compare_boxes(boxes, corners(), SIDES)
    assert found.suspected == f"{form} in shares of the image's sides"
    assert found.differs.all()


def test_boxes_of_the_masks_are_accepted_with_or_without_what_lies_outside_the_image() -> None:
    beyond = corners() - (150, 150, 0, 0)
    for given in (corners(), beyond, np.maximum(beyond, 0)):
        of_masks = corners() if given[0, 0] == corners()[0, 0] else beyond
        found = compare_boxes(from_corners(given, "x, y, width, height"), of_masks, SIDES)
        assert not found.differs.any()
        assert found.suspected is None


def test_a_few_wrong_boxes_are_found_and_no_format_is_suspected() -> None:
    boxes = from_corners(corners(), "x, y, width, height")
    boxes[[3, 7]] = from_corners(corners(), "x0, y0, x1, y1")[[3, 7]] + 30
    found = compare_boxes(boxes, corners(), SIDES)
    assert np.flatnonzero(found.differs).tolist() == [3, 7]
    assert found.suspected is None


def test_small_objects_may_be_rounded_to_pixels() -> None:
    small = corners()
    small[:, 2:] = small[:, :2] + 1.2
    rounded = np.round(small)
    rounded[:, 2:] = np.maximum(rounded[:, 2:], rounded[:, :2] + 1)
    found = compare_boxes(from_corners(rounded, "x, y, width, height"), small, SIDES)
    assert not found.differs.any()
    assert found.suspected is None


def test_images_may_be_of_unknown_size() -> None:
    unknown = np.full((40, 2), np.nan)
    found = compare_boxes(from_corners(corners(), "x0, y0, x1, y1"), corners(), unknown)
    assert found.suspected == "x0, y0, x1, y1"


def test_shares_are_suspected_unless_an_image_is_one_pixel_large() -> None:
    shares = from_corners(corners(), "x, y, width, height") / np.tile([WIDTH, HEIGHT], 2)
    assert seem_shares(shares, SIDES)
    assert seem_shares(shares, np.full((40, 2), np.nan))
    assert not seem_shares(shares, np.ones((40, 2)))
    shares[5] *= 10
    assert not seem_shares(shares, SIDES)


def test_boxes_beyond_their_images_are_suspected_if_they_are_more_than_a_fifth() -> None:
    boxes = np.tile([WIDTH - 20.0, HEIGHT - 20.0, 20.5, 20.5], (40, 1))
    assert not beyond_images(boxes, SIDES).size
    boxes[:8, 2] += 1
    assert not beyond_images(boxes, SIDES).size
    boxes[8, 3] += 1
    assert beyond_images(boxes, SIDES).tolist() == list(range(9))
    assert not beyond_images(boxes, np.full((40, 2), np.nan)).size
