"""Labels of a huge image from the logits of its tiles.

Where tiles overlap, their logits are averaged. The weight of a tile grows with the square of the
distance from those of its edges that cut through the image, from about zero, along rows and columns
alike; the weights of all tiles at a pixel sum to one. So there are no seams, and the context that a
tile lacks at its edge counts little.

Blocks leave as soon as no later tile covers them. What waits are the columns that two neighbors of
a row share, and the rows that two rows of tiles share: those lie in a temporary file if they take
more than `IN_MEMORY` bytes. The memory depends on the size of a tile and the number of classes, and
not on the size of the image.

Shapes: K classes, h × w pixels of a tile, H × W of the image.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from point_rend.rendering.uncertainty import label_map
from point_rend.tiling.grid import TileGrid, Window

IN_MEMORY = 1 << 28  # bytes of waiting rows
SMALL_LABELS = 256  # classes whose labels take a byte


class Block(NamedTuple):
    """A part of an image that is finished.

    Attributes:
        window: Its place.
        logits: (K, height, width) float32.
    """

    window: Window
    logits: Tensor


def blended_blocks(grid: TileGrid, logits: Iterable[Tensor]) -> Iterator[Block]:
    """Blend the logits of overlapping tiles.

    Equal logits stay equal to the bit: a predictor for which each pixel stands alone gives the same
    labels with tiles and without.

    Args:
        grid: The tiles.
        logits: (K, h, w) of each tile, in the order of `grid.windows()`; they are taken one by one.

    Yields:
        Blocks from left to right and from top to bottom, which together cover the image.

    Raises:
        OSError: If the temporary file cannot be written.
        ValueError: If logits have another size than their tile.
    """
    height, width = grid.tile_size
    down, right = _factors(grid.tops, height), _factors(grid.lefts, width)
    heights, widths = (
        np.diff([*starts, side]).tolist()
        for starts, side in zip((grid.tops, grid.lefts), grid.image_size, strict=True)
    )
    with _WaitingRows(height - min(heights)) as waiting:
        tiles = iter(logits)
        for i, top in enumerate(grid.tops):
            columns = None
            for j, left in enumerate(grid.lefts):
                tile = _checked(next(tiles), grid.tile_size)
                if columns is not None:
                    _blend(columns, tile[:, :, : columns.shape[2]], right[j])
                finished = tile[:, :, : widths[j]]
                columns = tile[:, :, widths[j] :].clone()
                if i:
                    rows = waiting.take(left, (len(tile), height - heights[i - 1], widths[j]))
                    _blend(rows, finished[:, : rows.shape[1]], down[i][:, None])
                waiting.put(left, finished[:, heights[i] :])
                yield Block(Window(top, left, heights[i], widths[j]), finished[:, : heights[i]])


def label_bands(grid: TileGrid, logits: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """Label an image from the logits of overlapping tiles.

    Args:
        grid, logits: As of :func:`blended_blocks`.

    Yields:
        Labels (rows, W) from top to bottom, uint8 up to 256 classes, else uint16.

    Raises:
        OSError, ValueError: As :func:`blended_blocks`.
    """
    width = grid.image_size[1]
    band = np.empty((0, width), np.uint8)
    for window, block in blended_blocks(grid, logits):
        if window.left == 0:
            dtype = np.uint8 if len(block) <= SMALL_LABELS else np.uint16
            band = np.empty((window.height, width), dtype)
        band[:, window.left : window.right] = label_map(block).numpy()
        if window.right == width:
            yield band


def _factors(starts: Sequence[int], side: int) -> list[Tensor]:
    """Return how far each tile pulls the average of the earlier ones to itself, along one axis.

    Args:
        starts: First pixels of the tiles.
        side: Pixels of a tile.

    Returns:
        Per tile (side,) from 0 to 1: its weight over the sum of its own and all earlier weights.
    """
    centers = np.arange(side) + 0.5
    total = np.zeros(starts[-1] + side)
    factors = []
    for start in starts:
        before = centers if start > 0 else np.inf
        after = side - centers if start < starts[-1] else np.inf
        distance = np.minimum(np.minimum(before, after), side) * np.ones(side)
        total[start : start + side] += distance**2
        factors.append(distance**2 / total[start : start + side])
    return [torch.from_numpy(factor.astype(np.float32)) for factor in factors]


def _blend(earlier: Tensor, tile: Tensor, factors: Tensor) -> None:
    """Average, in place, a part of a tile with what earlier tiles have left of it.

    Args:
        earlier: (K, h', w').
        tile: (K, h', w'), changed.
        factors: Of at least (h', 1) or (w').
    """
    factors = factors[: tile.shape[1] if factors.dim() == 2 else tile.shape[2]]
    torch.lerp(earlier, tile, factors.expand_as(tile), out=tile)


def _checked(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a copy of the logits of a tile on the CPU, which may be changed."""
    if tuple(logits.shape[1:]) != size:
        raise ValueError(f"expected logits of a tile of {size}, got {tuple(logits.shape[1:])}")
    return logits.detach().to("cpu", torch.float32, copy=True)


class _WaitingRows:
    """Rows that a row of tiles shares with the next one, in memory or in a temporary file.

    Args:
        most: Largest number of rows that wait.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115

    def __enter__(self) -> "_WaitingRows":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def put(self, left: int, rows: Tensor) -> None:
        """Keep rows (K, h', w') of the columns from `left`."""
        try:
            self.file.seek(self._place(left, len(rows)))
            self.file.write(rows.numpy().tobytes())
        except OSError as error:
            reason = f"temporary file in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR"
            raise OSError(error.errno, reason) from error

    def take(self, left: int, shape: tuple[int, int, int]) -> Tensor:
        """Return the rows of the columns from `left`."""
        self.file.seek(self._place(left, shape[0]))
        values = np.frombuffer(self.file.read(4 * math.prod(shape)), np.float32)
        return torch.from_numpy(values.reshape(shape).copy())

    def _place(self, left: int, classes: int) -> int:
        return 4 * classes * self.most * left
