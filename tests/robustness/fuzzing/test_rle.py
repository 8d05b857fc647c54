"""Run-length encodings, from any text and any list.

The oracles are the definition, read character by character, and pycocotools on what is accepted.
"""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from hypothesis import example, given
from hypothesis import strategies as st

from point_rend.data.checks.masks import compressed_rle
from point_rend.data.checks.rle import check_rles, decode_counts
from tests.data.checks.test_rle import painted, slowly_decoded

SIDES = st.integers(1, 9)
CHARACTERS = st.text(st.characters(min_codepoint=47, max_codepoint=112), max_size=30)
RUNS = st.lists(st.integers(0, 12) | st.integers(-3, 2**33), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=6), below),
    max_leaves=8,
)


def expected_runs(counts: Any) -> list[int] | None:
    """Read counts by the definition; None if they mean nothing."""
    if isinstance(counts, list):
        return counts if all(type(x) is int and x >= 0 for x in counts) else None
    text = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    if not all("0" <= x <= "o" for x in text) or (text and text[-1] >= "P"):
        return None
    long = "".join("#" if x >= "P" else "." for x in text)
    runs = slowly_decoded(text)
    return None if 7 * "#" in long or any(run < 0 for run in runs) else runs


def check(counts: Any, height: int, width: int) -> None:
    """Compare a mask with the definition, alone and in a row with others."""
    rle = {"size": [height, width], "counts": counts}
    whole = {"size": [height, width], "counts": [0, height * width]}
    before, checked, after = check_rles([whole, rle, whole], [(height, width)] * 3)
    assert before == after
    assert before.area == height * width
    runs = expected_runs(counts)
    if runs is None or sum(runs) != height * width:
        assert checked.fault is not None
        assert checked.fault.fatal
        assert len(checked.fault.text) < 200
        return
    assert decode_counts(counts).tolist() == runs
    mask = painted(runs, height, width)
    if not mask.any():
        assert checked.fault == ("RLE of area 0", False)
        return
    assert checked.fault is None
    compressed = compressed_rle(rle, height, width)
    assert np.array_equal(mask_util.decode(compressed), mask)
    assert checked.area == mask.sum() == mask_util.area(compressed)
    rows, columns = np.nonzero(mask)
    assert checked.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    plain = mask_util.encode(np.asfortranarray(mask))
    assert mask_util.iou([compressed], [plain], [0]).item() == 1


@example("", 1, 1)
@example("0", 1, 1)
@example("o", 3, 4)
@example("06O6", 3, 4)
@example("2300", 3, 4)
@example("PPPPPPPP0", 3, 4)
@example("ooooooO0", 3, 4)
@example("000000000", 3, 4)
@example("\x00", 3, 4)
@given(CHARACTERS, SIDES, SIDES)
def test_any_text(counts: str, height: int, width: int) -> None:
    check(counts, height, width)


@example(b"\xff", 3, 4)
@example(b"0<0", 3, 4)
@given(st.binary(max_size=20), SIDES, SIDES)
def test_any_bytes(counts: bytes, height: int, width: int) -> None:
    check(counts, height, width)


@example([], 1, 1)
@example([5, 0, 7], 3, 4)
@example([0, 0, 0, 12], 3, 4)
@example([2**32 + 12], 3, 4)
@example([10**400], 3, 4)
@example([13, -1], 3, 4)
@given(RUNS, SIDES, SIDES)
def test_any_list(counts: list[int], height: int, width: int) -> None:
    check(counts, height, width)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.data())
def test_lists_that_fill_an_image(counts: list[int], data: st.DataObject) -> None:
    height = data.draw(SIDES)
    check([*counts, -sum(counts) % height], height, max(1, -(-sum(counts) // height)))


@given(st.lists(st.integers(0, 1), min_size=1, max_size=80), st.data())
def test_every_mask_that_pycocotools_encodes(pixels: list[int], data: st.DataObject) -> None:
    height = data.draw(st.integers(1, len(pixels)))
    pixels = pixels[: len(pixels) // height * height]
    mask = np.array(pixels, dtype=np.uint8).reshape(-1, height).T
    rle = mask_util.encode(np.asfortranarray(mask))
    (checked,) = check_rles([rle], [mask.shape])
    assert checked.area == mask.sum()
    check(rle["counts"].decode(), *mask.shape)


@example({"size": [100_000, 100_000], "counts": [10**10]})
@example({"size": [10**400, 1], "counts": "0"})
@example({"size": [3, 4], "counts": {"a": 1}})
@example({"size": "ab", "counts": "0"})
@given(VALUES | st.fixed_dictionaries({"size": VALUES, "counts": VALUES}))
def test_any_value(value: Any) -> None:
    for size in (None, (3, 4)):
        (checked,) = check_rles([value], [size])
        assert checked.fault is None or len(checked.fault.text) < 200
