"""Masks are measured as pycocotools rasterizes them, and nothing dangerous reaches it."""

import math
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from point_rend.data.checks import masks as masks_module
from point_rend.data.checks.masks import (
    FAR,
    LONGEST,
    Mask,
    compress_masks,
    compressed_rle,
    measure_masks,
)
from point_rend.data.checks.rle import Fault

SIZE = (48, 64)
SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
HOLE = [15, 15, 15, 20, 20, 20, 20, 15]


def measure(segmentation: Any, size: Any = SIZE) -> Mask:
    (found,) = measure_masks([segmentation], [size])
    return found


def stars(count: int) -> list[list[list[float]]]:
    """Random polygons around a center, one to three a mask."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        parts = []
        for _ in range(1 + number % 3):
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
            radii = rng.uniform(3, 20, angles.size)
            corners = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + (32, 24)
            parts.append(corners.ravel().round(2).tolist())
        found.append(parts)
    return found


def test_many_masks_are_compressed_as_pycocotools_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    polygons = stars(50)
    expected = [mask_util.merge(mask_util.frPyObjects(x, *SIZE)) for x in polygons]
    texts = [rle | {"counts": rle["counts"].decode()} for rle in expected]
    for chunk in (7, 1000):
        monkeypatch.setattr(masks_module, "CHUNK", chunk)
        assert list(compress_masks(polygons, [SIZE] * 50)) == expected
        assert list(compress_masks([*texts, *polygons], [SIZE] * 100)) == [*texts, *expected]
    assert compressed_rle(polygons[3], *SIZE) == expected[3]


def test_box_and_area_of_polygons_are_those_of_their_corners() -> None:
    for polygons in stars(20):
        corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        found = measure(polygons)
        assert found.usable == polygons
        assert found.box == (*corners.min(axis=0), *corners.max(axis=0))
        if len(polygons) == 1:
            x, y = corners.T.tolist()
            twice = sum(x[k - 1] * y[k] - x[k] * y[k - 1] for k in range(len(x)))
            assert found.area == pytest.approx(abs(twice) / 2)
    assert measure([SQUARE, HOLE]).area == 400 + 25


@pytest.mark.parametrize(
    ("polygons", "expected"),
    [
        ([SQUARE, HOLE], True),
        ([HOLE, SQUARE], True),
        ([SQUARE, [x + 30 for x in HOLE]], False),
        ([SQUARE, [12, 12, 28, 12, 28, 48]], False),
        ([SQUARE, SQUARE], False),
        # Within the box of the other one, but not within its outline.
        ([[10, 10, 30, 10, 10, 30], [25, 25, 28, 25, 28, 28]], False),
        ([SQUARE], False),
    ],
)
def test_a_polygon_within_another_one_is_a_hole(polygons: Any, expected: bool) -> None:
    assert measure(polygons).has_hole is expected


def test_polygons_may_reach_beyond_their_image() -> None:
    wide = [[-20, 5, 200, 5, 200, 20, -20, 20]]
    assert measure(wide).faults == ()
    decoded = mask_util.decode(compressed_rle(wide, *SIZE))
    assert decoded[5:20].all()
    assert decoded.sum() == 15 * 64


def test_corners_and_outlines_are_bounded_by_the_image() -> None:
    at = FAR * max(SIZE)
    assert measure([[1, 1, at, 1, 1, 9]]).faults == ()
    (fault,) = measure([[1, 1, at + 1, 1, 1, 9]]).faults
    assert fault.fatal
    assert "far beyond its image of 64 x 48 pixels" in fault.text
    turns = LONGEST * max(SIZE) // (4 * 40)
    for extra in (0, 1):
        around = [0, 0, 40, 0, 40, 40, 0, 40] * (turns + extra)
        assert len(measure([around]).faults) == extra
    assert measure([[1, 1, 5e5, 1, 1, 9]], None).faults == ()
    assert "far beyond any image" in measure([[1, 1, 5e6, 1, 1, 9]], None).faults[0].text


@pytest.mark.parametrize(
    "mask",
    [
        *([[2.1e8, 1, 5, 5, 9, 1]], [[1, math.nan, 5, 5, 9, 1]], [[1, 1, 5, 5]], [["1"] * 6]),
        *({"size": list(SIZE), "counts": [1]}, {"size": [2, 2], "counts": "04"}),
        *({}, [], [[]], 7, "x", None, np.ones(SIZE)),
    ],
)
def test_a_mask_with_a_fatal_fault_is_not_compressed(mask: Any) -> None:
    good = [SQUARE]
    first, found, last = compress_masks([good, mask, good], [SIZE] * 3)
    assert first == last == compressed_rle(good, *SIZE)
    assert isinstance(found, Fault)
    with pytest.raises(ValueError, match="a mask cannot be read: "):
        compressed_rle(mask, *SIZE)


def test_masks_of_numpy_are_accepted() -> None:
    found = measure([np.array(SQUARE, dtype=np.float32)])
    assert found.faults == ()
    assert found.area == 400
    sides = tuple(np.int64(side) for side in SIZE)
    rle = compressed_rle([SQUARE], *SIZE) | {"size": sides}
    assert measure(rle).area == mask_util.area(compressed_rle([SQUARE], *SIZE))
