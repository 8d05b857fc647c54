"""Pictures of masks."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from point_rend.visualize import (
    GREY,
    colour_of,
    match_colours,
    overlay_masks,
    save_picture,
    side_by_side,
    stack,
)


def image(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(top: int, left: int, side: int = 12) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_a_mask_gets_its_colour_inside_and_nothing_changes_far_outside() -> None:
    masks = np.stack([square(4, 4), square(20, 40)])
    colours = [(255, 0, 0), (0, 0, 255)]
    source = image()
    before = source.copy()
    plain = overlay_masks(source, masks[:0])
    picture = overlay_masks(source, masks, colours, opacity=1.0, outline=0)
    assert picture.dtype == np.uint8
    assert picture.shape == source.shape
    for mask, colour in zip(masks, colours, strict=True):
        assert (picture[mask] == colour).all()
    np.testing.assert_array_equal(picture[~masks.any(0)], plain[~masks.any(0)])
    np.testing.assert_array_equal(source, before)


def test_the_outline_runs_along_holes_too() -> None:
    ring = square(5, 5, 24) & ~square(11, 11, 12)
    black = np.zeros((40, 60, 3), dtype=np.uint8)
    picture = overlay_masks(black, ring[None], [(0, 0, 200)], outline=1)
    assert (picture[5, 5:29] > 180).all()
    assert (picture[10, 12:22] > 180).all()
    assert (picture[16, 16] == 0).all()


def test_masks_of_another_size_and_missing_colours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 9, 9\) do not fit an image of \(40, 60\)"):
        overlay_masks(image(), np.zeros((1, 9, 9), dtype=bool))
    with pytest.raises(ValueError, match="1 masks need as many colours, got 2"):
        overlay_masks(image(), square(1, 1)[None], [GREY, GREY])


def test_a_box_takes_the_colour_of_the_reference_it_overlaps() -> None:
    reference = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], dtype=float)
    boxes = np.array([[21, 19, 41, 40], [1, 0, 10, 11], [60, 60, 70, 70]], dtype=float)
    assert match_colours(boxes, reference) == [colour_of(1), colour_of(0), GREY]
    assert match_colours(boxes, reference[:0]) == [GREY] * 3
    assert match_colours(boxes[:0], reference) == []


def test_panels_lie_side_by_side_under_their_titles() -> None:
    panels = [image(), image(40, 30)]
    bare = side_by_side(panels, gap=5)
    assert bare.shape == (40, 60 + 5 + 30, 3)
    np.testing.assert_array_equal(bare[:, :60], panels[0])
    np.testing.assert_array_equal(bare[:, 65:], panels[1])
    assert (bare[:, 60:65] == 255).all()

    titled = side_by_side(panels, ["one", "7×7"], gap=5)
    head = titled.shape[0] - 40
    assert head > 0
    np.testing.assert_array_equal(titled[head:], bare)
    assert titled[:head, :60].min() < 128
    assert titled[:head, 65:].min() < 128


def test_panels_that_cannot_share_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one height, got \[30, 40\]"):
        side_by_side([image(30), image(40)])
    with pytest.raises(ValueError, match=r"one height, got \[\]"):
        side_by_side([])
    with pytest.raises(ValueError, match="1 panels need as many titles, got 2"):
        side_by_side([image()], ["a", "b"])


def test_rows_lie_below_one_another() -> None:
    picture = stack([image(10, 20), image(5, 30)], gap=2)
    assert picture.shape == (17, 30, 3)
    np.testing.assert_array_equal(picture[:10, :20], image(10, 20))
    np.testing.assert_array_equal(picture[12:], image(5, 30))


def test_a_saved_picture_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "picture.png"
    save_picture(path, image())
    np.testing.assert_array_equal(cv2.imread(str(path)), image())
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
    with pytest.raises(ValueError, match=r"unknown picture format '\.nonsense'"):
        save_picture(tmp_path / "picture.nonsense", image())
