"""Labels of tiles are those of the whole image wherever the predictor allows it."""

import tempfile
import tracemalloc
from collections.abc import Iterator
from functools import partial
from itertools import repeat

import numpy as np
import pytest
import torch
from torch import Tensor

from point_rend.rendering.uncertainty import label_map
from point_rend.tiling import semantic
from point_rend.tiling.grid import TileGrid, tiles_of
from point_rend.tiling.semantic import blended_blocks, label_bands
from tests.memory import LargestTensor

GRIDS = [
    tiles_of((90, 130), 32, 0.2),
    tiles_of((90, 130), 32, 0.0),
    tiles_of((90, 130), 32, 0.75),
    tiles_of((33, 130), 32, 0.25),
    tiles_of((16, 65), 64, 0.5),
    tiles_of((20, 30), 64, 0.2),
]


def crops_of(grid: TileGrid, logits: Tensor) -> Iterator[Tensor]:
    """Logits of a predictor for which each pixel stands alone."""
    return (logits[:, *window.slices] for window in grid.windows())


def blended(grid: TileGrid, logits: Iterator[Tensor], classes: int) -> Tensor:
    whole = torch.full((classes, *grid.image_size), torch.nan)
    for window, block in blended_blocks(grid, logits):
        assert whole[:, *window.slices].isnan().all(), "blocks overlap"
        whole[:, *window.slices] = block
    return whole


@pytest.mark.parametrize("grid", GRIDS)
def test_pixels_that_stand_alone_have_the_same_logits_with_tiles(grid: TileGrid) -> None:
    logits = torch.randn(5, *grid.image_size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blended(grid, crops_of(grid, logits), 5), logits)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("classes", "dtype"), [(5, np.uint8), (300, np.uint16)])
def test_labels_are_those_of_the_whole_image(
    grid: TileGrid, classes: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic, "IN_MEMORY", 1000)
    logits = torch.randn(classes, *grid.image_size, generator=torch.Generator().manual_seed(0))
    labels = np.concatenate(list(label_bands(grid, crops_of(grid, logits))))
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels, label_map(logits))


@pytest.mark.parametrize("grid", GRIDS)
def test_overlapping_tiles_are_averaged_by_the_distance_from_their_edges(grid: TileGrid) -> None:
    random = np.random.default_rng(0)
    tiles = random.normal(size=(grid.num_tiles, 3, *grid.tile_size))
    sums = np.zeros((3, *grid.image_size))
    weights = np.zeros(grid.image_size)
    for tile, window in zip(tiles, grid.windows(), strict=True):
        for y in range(window.height):
            for x in range(window.width):
                ys = [y + 0.5] * (window.top > 0)
                ys += [window.height - y - 0.5] * (window.bottom < grid.image_size[0])
                xs = [x + 0.5] * (window.left > 0)
                xs += [window.width - x - 0.5] * (window.right < grid.image_size[1])
                weight = min([*ys, window.height]) ** 2 * min([*xs, window.width]) ** 2
                weights[window.top + y, window.left + x] += weight
                sums[:, window.top + y, window.left + x] += weight * tile[:, y, x]
    found = blended(grid, iter(torch.from_numpy(tiles)), 3)
    np.testing.assert_allclose(found, sums / weights, atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_weights_of_all_tiles_sum_to_one(grid: TileGrid) -> None:
    unit = (torch.eye(grid.num_tiles)[:, :, None, None].expand(-1, -1, *grid.tile_size)).unbind()
    weights = blended(grid, iter(unit), grid.num_tiles)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(0), torch.ones(grid.image_size), atol=1e-6, rtol=0)


def test_no_weight_jumps() -> None:
    grid = tiles_of((200, 180), 64, 0.25)
    unit = torch.eye(grid.num_tiles)[:, :, None, None].expand(-1, -1, *grid.tile_size).unbind()
    weights = blended(grid, iter(unit), grid.num_tiles)
    for dim, starts in ((1, grid.tops), (2, grid.lefts)):
        shared = 64 - max(np.diff(starts))
        assert weights.diff(dim=dim).abs().max() < 2.5 / shared  # a straight ramp has 1 / shared


def test_memory_does_not_depend_on_the_size_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "IN_MEMORY", 1)
    peaks, tensors = [], []
    for size in ((100, 100), (1000, 500)):
        grid = tiles_of(size, 48, 0.25)
        tile = torch.randn(8, *grid.tile_size)
        tracemalloc.start()
        with LargestTensor() as largest:
            for _ in blended_blocks(grid, repeat(tile)):
                pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        tensors.append(largest.bytes)
    assert tensors == [4 * 8 * 48 * 48] * 2
    assert peaks[1] < peaks[0] + 20_000


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "IN_MEMORY", 1)
    full = partial(open, "/dev/full", "w+b", buffering=0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full())
    grid = tiles_of((90, 130), 32)
    with pytest.raises(OSError, match=r"temporary file in .*: No space left on device"):
        list(label_bands(grid, repeat(torch.zeros(2, 32, 32))))


def test_logits_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected logits of a tile of \(32, 32\), got \(31, 32"):
        list(label_bands(tiles_of((90, 130), 32), repeat(torch.zeros(2, 31, 32))))
