"""Run-length encodings: what is accepted means what pycocotools reads, and nothing else gets there.

The oracles are pycocotools, on masks that it encoded itself, and a decoder that reads character by
character.
"""

import re
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from point_rend.data.checks import rle as rle_module
from point_rend.data.checks.masks import compressed_rle
from point_rend.data.checks.rle import (
    CHUNK,
    MAX_LENGTH,
    check_rles,
    decode_counts,
    rle_fault,
    size_fault,
    without_empty_runs,
)
from tests.tiny_datasets import uncompressed

HEIGHT, WIDTH = 12, 17


def random_mask(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < rng.choice([0.02, 0.3, 0.9])
    mask[:, : seed % width] = seed % 2  # long runs too
    return mask


def encoded(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return rle | {"counts": rle["counts"].decode()}


def slowly_decoded(text: str) -> list[int]:
    """The definition, one character after another."""
    numbers: list[int] = []
    value = place = 0
    for character in text:
        digit = ord(character) - 48
        value += (digit % 32) << place
        place += 5
        if digit < 32:
            if digit >= 16:
                value -= 1 << place
            if len(numbers) > 2:
                value += numbers[-2]
            numbers.append(value)
            value = place = 0
    return numbers


def painted(runs: list[int], height: int, width: int) -> np.ndarray:
    pixels = [number % 2 for number, run in enumerate(runs) for _ in range(run)]
    return np.array(pixels, dtype=np.uint8).reshape(width, height).T


@pytest.mark.parametrize("seed", range(10))
def test_the_runs_of_a_mask_are_those_of_the_definition(seed: int) -> None:
    mask = random_mask(seed)
    counts = encoded(mask)["counts"]
    runs = decode_counts(counts)
    assert runs.dtype == np.int64
    assert runs.tolist() == slowly_decoded(counts) == decode_counts(counts.encode()).tolist()
    assert np.array_equal(painted(runs.tolist(), HEIGHT, WIDTH), mask)


def test_many_masks_are_measured_as_pycocotools_measures_them() -> None:
    sizes = [(1 + k % 13, 1 + k % 7) for k in range(60)] + [(300, 400)] * 40
    masks = [random_mask(seed, *size) for seed, size in enumerate(sizes)]
    rles = [encoded(mask) for mask in masks]
    assert sum(len(rle["counts"]) for rle in rles) > 2 * CHUNK
    for given in (rles, [uncompressed(rle) for rle in rles]):
        for checked, rle, mask in zip(check_rles(given, sizes), rles, masks, strict=True):
            if not mask.any():
                assert checked.fault == ("RLE of area 0", False)
                continue
            assert checked.fault is None
            assert checked.area == mask_util.area(rle)
            x, y, width, height = mask_util.toBbox(rle)
            assert checked.box == (x, y, x + width, y + height)


def test_a_broken_mask_does_not_change_the_others() -> None:
    good = [encoded(random_mask(seed)) for seed in range(1, 5)]
    bad = ["", "o", "5!", "zz", "0o", "PPPPPPPP0", good[0]["counts"][:-1], [5], [], None, [2**40]]
    rles = [x for text in bad for x in (*good, {"size": [HEIGHT, WIDTH], "counts": text})]
    faults = [checked.fault for checked in check_rles(rles, [(HEIGHT, WIDTH)] * len(rles))]
    assert [fault is not None for fault in faults] == [k % 5 == 4 for k in range(len(rles))]


@pytest.mark.parametrize(
    ("rle", "said"),
    [
        (None, "segmentation None"),
        ("text", "segmentation 'text'"),
        ({}, "RLE of size None"),
        ({"size": [3], "counts": "0"}, r"RLE of size \[3\]"),
        ({"size": ["3", 4], "counts": "0"}, r"RLE of size \['3', 4\]"),
        ({"size": [True, 4], "counts": [4]}, r"RLE of size \[True, 4\]"),
        ({"size": [3, 5], "counts": [15]}, r"RLE of size \(3, 5\), the image has .* = \(3, 4\)"),
        ({"size": [3, 4]}, "RLE with the counts None"),
        ({"size": [3, 4], "counts": 12}, "RLE with the counts 12"),
        ({"size": [3, 4], "counts": "é"}, "is not in ASCII"),
        ({"size": [3, 4], "counts": [12.0]}, "RLE with the run length 12.0"),
        ({"size": [3, 4], "counts": [True, 11]}, "RLE with the run length True"),
        ({"size": [3, 4], "counts": ["12"]}, "RLE with the run length '12'"),
        ({"size": [3, 4], "counts": [13, -1]}, "RLE with the run length -1"),
        ({"size": [3, 4], "counts": [10**400]}, "RLE with the run length <integer of"),
        ({"size": [3, 4], "counts": []}, "RLE of 0 pixels"),
        ({"size": [3, 4], "counts": [5, 6]}, "RLE of 11 pixels"),
        ({"size": [3, 4], "counts": b""}, "RLE of 0 pixels"),
        ({"size": [3, 4], "counts": b"\xff"}, "does not decode: 'ÿ' does not occur"),
        ({"size": [3, 4], "counts": "PPPPPPPP0"}, "a number of more than 7 characters"),
        ({"size": [3, 4], "counts": "ooooooO0"}, "negative or an absurd length"),
        ({"size": [3, 4], "counts": "PPPPPP2"}, "negative or an absurd length"),
        ({"size": [3, 4], "counts": [0] * (MAX_LENGTH + 1)}, "characters or runs"),
    ],
)
def test_what_is_not_an_rle_has_a_fault(rle: Any, said: str) -> None:
    fault = rle_fault(rle, 3, 4)
    assert fault is not None
    assert fault.fatal
    assert len(fault.text) < 200
    assert re.search(said, fault.text), fault.text


def test_sizes_are_bounded_as_pictures_are(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = {"size": [100_000, 100_000], "counts": [10**10]}
    fault = rle_fault(huge, 100_000, 100_000)
    assert fault is not None
    assert "100000 x 100000 pixels, expected at most 178,956,970" in fault.text
    assert "POINT_REND_MAX_PIXELS" in fault.text
    assert size_fault(13_000, 13_000) is None
    assert size_fault(14_000, 14_000) is not None
    monkeypatch.setenv("POINT_REND_MAX_PIXELS", str(14_000 * 14_000))
    assert size_fault(14_000, 14_000) is None
    for size in ((0, 5), (5, -1), (10**400, 10**400)):
        assert size_fault(*size) is not None


@pytest.mark.parametrize(
    "counts", [[0, 0, 5, 7], [3, 0, 4, 5], [3, 4, 0, 5], [0, 5, 0, 3, 4], [12, 0], [0, 0, 0, 12, 0]]
)
def test_empty_runs_are_found_and_removed(counts: list[int]) -> None:
    rle = {"size": [3, 4], "counts": counts}
    shorter = without_empty_runs(rle)
    assert shorter["size"] == [3, 4]
    assert 0 not in shorter["counts"][1:]
    assert np.array_equal(painted(shorter["counts"], 3, 4), painted(counts, 3, 4))
    (checked,) = check_rles([rle], [(3, 4)])
    assert checked.has_empty_runs == (0 in counts[1:-1] and any(counts[1::2]))


def test_pycocotools_compares_masks_with_empty_runs_wrongly() -> None:
    """The reason why these are removed."""
    given = [{"size": [3, 4], "counts": [2, 3, 0, *rest]} for rest in ([2, 5], [7])]
    for convert, expected in ((mask_util.frPyObjects, 1.0), (compressed_rle, 0.5)):
        first, second = (convert(rle, 3, 4) for rle in given)
        assert mask_util.iou([first], [second], [0]).item() == expected


def test_a_text_is_checked_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    rles = [encoded(random_mask(seed)) for seed in range(1, 30)]
    expected = check_rles(rles, [(HEIGHT, WIDTH)] * len(rles))
    monkeypatch.setattr(rle_module, "CHUNK", 1)
    assert check_rles(rles, [(HEIGHT, WIDTH)] * len(rles)) == expected
