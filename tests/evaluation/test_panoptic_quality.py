"""Panoptic quality on planted segments, against a slow loop over pixels and segments."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from point_rend.data.datasets.panoptic import segment_ids
from point_rend.evaluation.panoptic_quality import (
    Counts,
    as_quality_results,
    compare_segments,
    quality_of,
    total,
)

SIDE = 12
CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 5, "name": "dog", "isthing": 1},
    {"id": 9, "name": "sky", "isthing": 0},
]


def slowly(
    predicted_ids: np.ndarray,
    predicted: dict[int, int],
    true_ids: np.ndarray,
    true: dict[int, int],
    crowds: set[int],
) -> dict[int, Counts]:
    """Count by sets of pixels, one segment at a time."""

    def pixels(ids: np.ndarray, segment: int) -> set[tuple[int, int]]:
        rows, columns = len(ids), len(ids[0])
        return {(y, x) for y in range(rows) for x in range(columns) if ids[y][x] == segment}

    void = pixels(true_ids, 0)
    found = {category["id"]: [Fraction(0), 0, 0, 0] for category in CATEGORIES}
    hit: set[tuple[str, int]] = set()
    for own, category in predicted.items():
        for other, wanted in true.items():
            if other in crowds or category != wanted:
                continue
            mask, truth = pixels(predicted_ids, own) - void, pixels(true_ids, other)
            iou = Fraction(len(mask & truth), len(mask | truth))
            if 2 * iou > 1:
                found[category][0] += iou
                found[category][1] += 1
                hit |= {("own", own), ("other", other)}
    for own, category in predicted.items():
        mask = pixels(predicted_ids, own)
        ignored = void.union(*(pixels(true_ids, x) for x in crowds if true[x] == category))
        if ("own", own) not in hit and 2 * len(mask & ignored) <= len(mask):
            found[category][2] += 1
    for other, category in true.items():
        if ("other", other) not in hit and other not in crowds:
            found[category][3] += 1
    return {key: Counts(float(x[0]), *x[1:]) for key, x in found.items() if any(x)}


def random_segments(
    numbers: np.random.Generator, start: np.ndarray | None = None
) -> tuple[np.ndarray, dict[int, int]]:
    """Return a map of rectangles, and their classes; some pixels have none."""
    ids = np.zeros((SIDE, SIDE), dtype=np.int64) if start is None else start.copy()
    for _ in range(numbers.integers(1, 5)):
        y, x = numbers.integers(0, SIDE - 3, 2)
        height, width = numbers.integers(2, 9, 2)
        ids[y : y + height, x : x + width] = numbers.integers(0, 70_000)
    classes = [category["id"] for category in CATEGORIES]
    return ids, {int(x): int(numbers.choice(classes)) for x in np.unique(ids) if x}


@pytest.mark.parametrize("seed", range(60))
def test_counts_are_those_of_a_slow_loop(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    true_ids, true = random_segments(numbers)
    predicted_ids, predicted = random_segments(numbers, true_ids)
    predicted |= {x: true[x] for x in predicted if x in true and numbers.random() < 0.8}
    crowds = {x for x in true if numbers.random() < 0.3}
    found = compare_segments(predicted_ids, predicted, true_ids, true, crowds)
    expected = slowly(predicted_ids, predicted, true_ids, true, crowds)
    assert found.keys() == expected.keys()
    for category, counts in found.items():
        assert counts == pytest.approx(expected[category])


def strip(*lengths: int) -> np.ndarray:
    """Return a map of one row: so many pixels of each id, from 0."""
    return np.repeat(np.arange(len(lengths)), lengths)[None]


def test_the_ground_truth_itself_is_perfect() -> None:
    ids, true = strip(0, 5, 4, 3), {1: 1, 2: 1, 3: 9}
    results = as_quality_results(compare_segments(ids, true, ids, true), CATEGORIES)
    assert [results[x] for x in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st")] == [100] * 5
    assert np.isnan(results["PQ-dog"])


def test_half_is_no_match_and_more_is_one() -> None:
    true_ids, true = strip(0, 4, 8), {1: 1, 2: 9}
    half, more = strip(0, 8, 4), strip(0, 7, 5)
    assert compare_segments(half, true, true_ids, true)[1] == Counts(0.0, 0, 1, 1)
    assert compare_segments(more, true, true_ids, true)[1] == Counts(4 / 7, 1, 0, 0)


def test_void_is_in_no_union_and_segments_in_it_are_not_wrong() -> None:
    true_ids, true = strip(6, 6), {1: 1}
    wide = compare_segments(np.ones((1, 12), int), {1: 1}, true_ids, true)
    assert wide == {1: Counts(1.0, 1, 0, 0)}
    in_void = compare_segments(strip(0, 5, 7), {1: 9, 2: 1}, true_ids, true)
    assert in_void == {1: Counts(1.0, 1, 0, 0)}
    three_quarters = np.array([[3] * 4 + [3] + [4] * 7])
    mostly_void = compare_segments(three_quarters, {3: 9, 4: 5}, true_ids, true)
    assert mostly_void == {5: Counts(0.0, 0, 1, 0), 1: Counts(0.0, 0, 0, 1)}


def test_crowds_are_not_missed_and_only_their_class_is_excused_in_them() -> None:
    true_ids, true = strip(0, 6, 6), {1: 1, 2: 9}
    same, other = {3: 1, 4: 9}, {3: 5, 4: 9}
    ids = np.array([[3] * 6 + [4] * 6])
    assert compare_segments(ids, same, true_ids, true, [1]) == {9: Counts(1.0, 1, 0, 0)}
    found = compare_segments(ids, other, true_ids, true, [1])
    assert found == {9: Counts(1.0, 1, 0, 0), 5: Counts(0.0, 0, 1, 0)}


def test_qualities_of_a_class_by_hand() -> None:
    pq, sq, rq = quality_of(Counts(1.6, 2, 1, 3))
    assert (pq, sq, rq) == pytest.approx((0.4, 0.8, 0.5))
    assert pq == pytest.approx(sq * rq)
    assert quality_of(Counts(0.0, 0, 1, 0)) == (0, 0, 0)
    assert np.isnan(quality_of(Counts())).all()


def test_means_are_over_the_classes_that_occur() -> None:
    images = [{1: Counts(0.8, 1, 0, 0)}, {1: Counts(0.8, 1, 1, 3), 9: Counts(0.0, 0, 0, 1)}]
    results = as_quality_results(total(images), CATEGORIES)
    expected = {"PQ": 20, "SQ": 40, "RQ": 25, "PQ_th": 40, "SQ_th": 80, "RQ_th": 50}
    expected |= {"PQ_st": 0, "SQ_st": 0, "RQ_st": 0, "PQ-cat": 40, "PQ-sky": 0}
    assert {key: results[key] for key in expected} == pytest.approx(expected)


def test_ids_are_the_colors_to_the_base_of_256() -> None:
    colors = np.array([[[3, 0, 0], [1, 2, 0], [255, 255, 255]]], dtype=np.uint8)
    assert segment_ids(colors).tolist() == [[3, 513, 256**3 - 1]]


@pytest.mark.parametrize(
    ("predicted_ids", "predicted", "message"),
    [
        (strip(0, 5), {1: 1}, "1 x 12, got 1 x 5"),
        (strip(0, 5, 7), {1: 1}, "map of the prediction and the list .* 2 is in one"),
        (strip(0, 12), {1: 1, 7: 1}, "map of the prediction and the list .* 7 is in one"),
    ],
)
def test_contradictions_are_named(
    predicted_ids: np.ndarray, predicted: dict[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare_segments(predicted_ids, predicted, strip(0, 12), {1: 1})
