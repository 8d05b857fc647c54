"""Tests of the grid of tiles."""

import numpy as np
import pytest

from point_rend.tiling.grid import Window, tiles_of

SIZES = [(1, 1), (16, 16), (17, 40), (64, 64), (65, 200), (333, 100), (7, 129)]


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
def test_tiles_of_one_size_cover_the_image_and_stay_within_it(image_size, overlap):
    grid = tiles_of(image_size, 32, overlap)
    seen = np.zeros(image_size, int)
    windows = list(grid.windows())
    for window in windows:
        assert (window.height, window.width) == grid.tile_size
        assert min(window.top, window.left) >= 0
        assert window.bottom <= image_size[0]
        assert window.right <= image_size[1]
        seen[window.slices] += 1
    assert seen.all()
    assert grid.num_tiles == len(windows) == len(set(windows))


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.33, 0.5, 0.9])
def test_neighbors_share_the_wanted_part_and_gaps_differ_by_a_pixel_at_most(image_size, overlap):
    grid = tiles_of(image_size, 32, overlap)
    for starts in (grid.tops, grid.lefts):
        gaps = np.diff(starts)
        assert (gaps >= 1).all()
        assert (32 - gaps >= overlap * 32).all()
        assert not gaps.size or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.9])
def test_large_tiles_start_on_a_grid_of_features_but_for_the_last(overlap):
    """And still share the wanted part, evenly."""
    for side in (1025, 1311, 2000, 4099, 10_000, 10_240):
        for tile in (300, 512, 1024):
            grid = tiles_of((side, 1), tile, overlap)
            gaps = np.diff(grid.tops)
            assert grid.tops[0] == 0
            assert grid.tops[-1] == side - tile
            assert (tile - gaps >= overlap * tile).all()
            assert (gaps > 0).all()
            if tile * (1 - overlap) >= 129:
                assert not any(top % 32 for top in grid.tops[:-1])
                assert gaps.max() - gaps.min() < 64


@pytest.mark.parametrize("image_size", SIZES)
def test_no_tile_is_superfluous(image_size):
    # With one tile less along a side, some neighbors would share less than wanted.
    grid = tiles_of(image_size, 32, 0.25)
    for side, starts in zip(image_size, (grid.tops, grid.lefts), strict=True):
        fewer = len(starts) - 1
        assert fewer == 0 or 32 + (fewer - 1) * 24 < side


@pytest.mark.parametrize("image_size", [(5, 9), (16, 32), (32, 32)])
def test_an_image_that_is_no_larger_than_a_tile_is_one_tile(image_size):
    assert list(tiles_of(image_size, 32).windows()) == [Window(0, 0, *image_size)]


def test_windows_intersect_in_the_pixels_that_both_contain():
    rng = np.random.default_rng(0)
    for _ in range(200):
        one, other = (Window(*map(int, rng.integers(1, 12, 4))) for _ in range(2))
        canvas = np.zeros((2, 30, 30), bool)
        canvas[0][one.slices], canvas[1][other.slices] = True, True
        common = one.intersection(other)
        expected = np.zeros((30, 30), bool)
        if common is not None:
            expected[common.slices] = True
        assert np.array_equal(canvas.all(0), expected)


@pytest.mark.parametrize(
    ("tile", "overlap", "named"),
    [
        (15, 0.2, "tile: expected a whole number of 16 or more, got 15"),
        (-1, 0.2, "tile: .*got -1"),
        (100.5, 0.2, "tile: .*got 100.5"),
        (True, 0.2, "tile: .*got True"),
        (64, -0.1, "overlap: expected a number from 0 to 0.9, got -0.1"),
        (64, 1.0, "overlap: .*got 1.0"),
        (64, float("nan"), "overlap: .*got nan"),
        (64, "0.2", "overlap: .*got '0.2'"),
        (64, None, "overlap: .*got None"),
    ],
)
def test_sizes_out_of_range_are_named(tile, overlap, named):
    with pytest.raises(ValueError, match=named):
        tiles_of((100, 100), tile, overlap)


def test_an_empty_image_is_refused():
    with pytest.raises(ValueError, match="an image of a pixel or more, got one of 0×7"):
        tiles_of((0, 7), 32)
