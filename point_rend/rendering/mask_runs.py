"""Masks as vertical runs of foreground, wherever they lie in an image of any size.

Masks of one image are cut, joined and compared run by run, as COCO's encoding is, but without
counting the pixels of the rest of the image. A mask takes 12 bytes per run: about as many runs as
it is wide, more where it is ragged.

Convention: runs are half open, [top, bottom) in a column, in ascending order of columns and rows.
No two runs of a mask touch in a column, so a mask has one representation.

Shapes: R runs of a mask, N masks, H and W height and width of the image, h and w those of a window.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from point_rend.rendering.box_masks import Crop, LazyMasks, Rle, rle_of_runs, run_ends


class Box(NamedTuple):
    """Smallest window that contains a mask; all zeros for an empty mask."""

    top: int
    left: int
    bottom: int  # row below the last one
    right: int  # column right of the last one


class MaskRuns(NamedTuple):
    """The runs of a mask.

    Attributes:
        columns: (R,) int32.
        tops: (R,) int32, first row of each run.
        bottoms: (R,) int32, row below its last one.
    """

    columns: np.ndarray
    tops: np.ndarray
    bottoms: np.ndarray

    @classmethod
    def of(cls, crop: Crop) -> Self:
        """Find the runs of a mask."""
        column, row = (ends.astype(np.int32) for ends in run_ends(crop))
        return cls(column[::2].copy(), row[::2].copy(), row[1::2].copy())

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.bottoms - self.tops).sum(dtype=np.int64))

    @property
    def box(self) -> Box:
        """Smallest window that contains the mask."""
        if not self.columns.size:
            return Box(0, 0, 0, 0)
        top, bottom = int(self.tops.min()), int(self.bottoms.max())
        return Box(top, int(self.columns[0]), bottom, int(self.columns[-1]) + 1)

    def clipped(self, top: int, left: int, height: int, width: int) -> "MaskRuns":
        """Return the part of the mask in a window; it stays where it is in the image."""
        part = slice(*np.searchsorted(self.columns, (left, left + width)))
        tops = np.maximum(self.tops[part], top)
        bottoms = np.minimum(self.bottoms[part], top + height)
        kept = tops < bottoms
        return MaskRuns(self.columns[part][kept], tops[kept], bottoms[kept])

    def moved(self, rows: int, columns: int) -> "MaskRuns":
        """Return the mask as many pixels further down and to the right."""
        down, right = np.int32(rows), np.int32(columns)
        return MaskRuns(self.columns + right, self.tops + down, self.bottoms + down)

    def crop(self) -> Crop:
        """Return the pixels in the smallest window."""
        top, left, bottom, right = self.box
        height = bottom - top
        # Along the columns, each run raises the sum by one at its top and lowers it at its bottom.
        steps = np.zeros((right - left) * (height + 1), dtype=np.int8)
        first = (self.columns.astype(np.int64) - left) * (height + 1) - top
        steps[first + self.tops] = 1
        steps[first + self.bottoms] = -1
        np.cumsum(steps, out=steps)
        pixels = steps.view(bool).reshape(right - left, height + 1)[:, :height]
        return Crop(pixels.T, top, left)

    def rle(self, image_size: tuple[int, int]) -> Rle:
        """Return the mask in COCO's compressed encoding, exactly as pycocotools encodes it.

        Args:
            image_size: H and W.

        Raises:
            ValueError: If the image has more pixels than the encoding can count.
        """
        rows = np.stack([self.tops, self.bottoms], axis=1).ravel()
        return rle_of_runs(np.repeat(self.columns, 2), rows, image_size)


def union_of(masks: Sequence[MaskRuns]) -> MaskRuns:
    """Join masks of the same image; one or more."""
    positions, depth, height = _depths(masks)
    covered = depth > 0
    starts = np.flatnonzero(covered & ~np.concatenate([[False], covered[:-1]]))
    ends = np.flatnonzero(~covered & np.concatenate([[False], covered[:-1]]))
    columns, tops = np.divmod(positions[starts], height)
    _, bottoms = np.divmod(positions[ends], height)
    return MaskRuns(*(x.astype(np.int32) for x in (columns, tops, bottoms)))


def common_area(one: MaskRuns, other: MaskRuns) -> int:
    """Count the pixels that two masks of the same image share."""
    if not (one.columns.size and other.columns.size):
        return 0
    left = max(one.columns[0], other.columns[0])
    right = min(one.columns[-1], other.columns[-1]) + 1
    if left >= right:
        return 0
    parts = []
    for mask in (one, other):
        part = slice(*np.searchsorted(mask.columns, (left, right)))
        parts.append(MaskRuns(*(x[part] for x in mask)))
    positions, depth, _ = _depths(parts)
    return int(np.diff(positions)[depth[:-1] == 2].sum()) if positions.size else 0


def _depths(masks: Sequence[MaskRuns]) -> tuple[np.ndarray, np.ndarray, int]:
    """Count how many masks cover each stretch between the ends of all runs.

    Returns:
        Positions in ascending order, each column times a height plus a row; the number of masks
        that cover the pixels from each to the next; the height.
    """
    # One row more than the lowest run: no run reaches the next column.
    height = 1 + max((int(x.bottoms.max()) for x in masks if x.bottoms.size), default=0)
    first = np.concatenate([x.columns for x in masks]).astype(np.int64) * height
    starts = first + np.concatenate([x.tops for x in masks])
    ends = first + np.concatenate([x.bottoms for x in masks])
    positions = np.concatenate([starts, ends])
    order = np.argsort(positions, kind="stable")
    positions = positions[order]
    depth = np.cumsum(np.where(order < starts.size, 1, -1))
    # Of several ends at one position only the last one has the final number.
    last = np.append(positions[1:] != positions[:-1], True)[: positions.size]
    return positions[last], depth[last], height


class RunMasks(LazyMasks):
    """Masks of an image of any size, as runs.

    Args:
        masks: N masks.
        image_size: H and W.
        device: Device of the tensors that are read.

    Attributes:
        masks: As given.
    """

    def __init__(
        self,
        masks: Sequence[MaskRuns],
        image_size: tuple[int, int],
        device: torch.device | None = None,
    ) -> None:
        super().__init__(image_size, torch.device("cpu") if device is None else device)
        self.masks = list(masks)

    def __len__(self) -> int:
        return len(self.masks)

    def crops(self) -> Iterator[Crop]:
        """Yield the masks in the windows of their foreground."""
        return (mask.crop() for mask in self.masks)

    def rles(self) -> Iterator[Rle]:
        """Yield the masks in COCO's compressed encoding, without their pixels."""
        return (mask.rle(self.image_size) for mask in self.masks)

    def part(self, index: Any) -> Self:
        """Return a part of the masks."""
        chosen = torch.arange(len(self))[
            index if isinstance(index, slice) else torch.as_tensor(index, device="cpu")
        ]
        masks = [self.masks[i] for i in chosen.tolist()]
        return type(self)(masks, self.image_size, self.device)

    def on(self, device: torch.device) -> Self:
        """Return the same masks, to be read on another device."""
        return type(self)(self.masks, self.image_size, device)

    def within(self, top: int, left: int, height: int, width: int) -> "RunMasks":
        """Return the masks in a window, as those of an image of the window's size."""
        parts = [mask.clipped(top, left, height, width).moved(-top, -left) for mask in self.masks]
        return RunMasks(parts, (height, width), self.device)

    @classmethod
    def cat(cls, parts: Sequence["RunMasks"]) -> "RunMasks":
        """Join masks of the same image."""
        masks = [mask for part in parts for mask in part.masks]
        return cls(masks, parts[0].image_size, parts[0].device)
