"""Grid of overlapping tiles that covers an image.

All tiles of an image have one size, that of the image where it is smaller than a tile. They are
spread evenly, so that neighbors share at least the wanted part of a tile, and the last one ends
where the image ends. All others start at multiples of `STRIDE` pixels if they are far enough apart:
a network that sees tiles at their own scale then has the same grid of features in all of them as in
the whole image.
"""

import math
from collections.abc import Iterator
from numbers import Real
from typing import NamedTuple

SMALLEST_TILE = 16  # pixels
LARGEST_OVERLAP = 0.9  # share of a tile; each pixel is then seen about a hundred times
DEFAULT_OVERLAP = 0.2
STRIDE = 32  # pixels, of the coarsest features of usual backbones


class Window(NamedTuple):
    """A rectangle of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """Row below the last one."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """Column right of the last one."""
        return self.left + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def intersection(self, other: "Window") -> "Window | None":
        """Return the part that two windows share, None if they share no pixel."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        height = min(self.bottom, other.bottom) - top
        width = min(self.right, other.right) - left
        return Window(top, left, height, width) if height > 0 and width > 0 else None


class TileGrid(NamedTuple):
    """Tiles of an image, row by row.

    Attributes:
        image_size: Height and width of the image in pixels.
        tile_size: Height and width of every tile.
        tops: First row of each row of tiles, in ascending order.
        lefts: First column of each column of tiles, in ascending order.
    """

    image_size: tuple[int, int]
    tile_size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @property
    def num_tiles(self) -> int:
        """Number of tiles."""
        return len(self.tops) * len(self.lefts)

    def row(self, top: int) -> Iterator[Window]:
        """Yield the tiles of one row, from left to right.

        Args:
            top: One of `tops`.
        """
        return (Window(top, left, *self.tile_size) for left in self.lefts)

    def windows(self) -> Iterator[Window]:
        """Yield all tiles, row by row."""
        return (window for top in self.tops for window in self.row(top))


def check_tiling(tile: int, overlap: float, names: tuple[str, str] = ("tile", "overlap")) -> None:
    """Refuse sizes of tiles that make no grid.

    Args:
        tile: Side of a tile in pixels.
        overlap: Share of a tile that it has in common with the next one.
        names: Of the two, for messages.

    Raises:
        ValueError: If one is out of its range.
    """
    if not isinstance(tile, int) or isinstance(tile, bool) or tile < SMALLEST_TILE:
        raise ValueError(
            f"{names[0]}: expected a whole number of {SMALLEST_TILE} or more, got {tile!r}"
        )
    is_number = isinstance(overlap, Real) and not isinstance(overlap, bool)
    if not is_number or not 0 <= overlap <= LARGEST_OVERLAP:  # NaN, too
        raise ValueError(
            f"{names[1]}: expected a number from 0 to {LARGEST_OVERLAP}, got {overlap!r}"
        )


def tiles_of(image_size: tuple[int, int], tile: int, overlap: float = DEFAULT_OVERLAP) -> TileGrid:
    """Cover an image with tiles.

    Args:
        image_size: Height and width in pixels, each at least 1.
        tile: Side of a tile in pixels.
        overlap: Share of a tile, at least, that it has in common with the next one.

    Raises:
        ValueError: If the image is empty, or a number is out of its range.
    """
    check_tiling(tile, overlap)
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"expected an image of a pixel or more, got one of {height}×{width}")
    step = max(1, tile - math.ceil(tile * overlap))
    return TileGrid(
        image_size=(height, width),
        tile_size=(min(tile, height), min(tile, width)),
        tops=_starts(height, tile, step),
        lefts=_starts(width, tile, step),
    )


def _starts(length: int, tile: int, step: int) -> tuple[int, ...]:
    """Place tiles along a side so that they start at most `step` pixels apart."""
    unit = STRIDE if step >= 4 * STRIDE else 1
    last = max(0, length - tile)
    gaps = -(-last // (step // unit * unit))
    return (*(unit * -(-last * i // (gaps * unit)) for i in range(gaps)), last)
