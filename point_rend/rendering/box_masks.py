"""Masks that are pasted into their image only when they are read, one by one.

Detectron2 pastes the masks of an image into one tensor (N, H, W), whatever the size of the boxes,
and encodes each of them from a copy of the whole image. Here a mask is computed in the window of
its box alone, as a :class:`Crop`, and its RLE from the crop. The pixels are those of Detectron2's
`paste_masks_in_image` to the last bit, the RLEs those of pycocotools.

Convention: a pixel belongs to a mask if the probability at its center is at least 0.5. Around the
outermost cell centers of a mask, the probability falls to 0 over the length of one cell.

Shapes: N boxes of an image, S side of a mask, H and W height and width of the image, h and w those
of a window, all in pixels but S.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, ROIMasks
from torch import Tensor

from point_rend.rendering.sampling import sample_lattice

THRESHOLD = 0.5  # of the probabilities in a mask
PIXELS_AT_ONCE = 1 << 18  # whose coordinates and probabilities take 3 MiB
MAX_ENCODED_PIXELS = (1 << 32) - 1  # of an image; pycocotools counts with 32 bits

Rle = dict[str, Any]


class Crop(NamedTuple):
    """A window of a mask that contains all of its foreground.

    Attributes:
        mask: (h, w) bool.
        top: Row of the window's first pixel in the image.
        left: Column of that pixel.
    """

    mask: np.ndarray
    top: int
    left: int

    @classmethod
    def of(cls, mask: np.ndarray) -> Self:
        """Cut out the foreground of a mask (H, W) bool."""
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        if not rows.size:
            return cls(mask[:0, :0], 0, 0)
        top, left = int(rows[0]), int(columns[0])
        return cls(mask[top : rows[-1] + 1, left : columns[-1] + 1], top, left)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class LazyMasks(ABC):
    """Masks of an image that stand in for a bool tensor (N, H, W), without its memory.

    Reading an index or iterating gives bool tensors (H, W); any other index gives a part of the
    masks, as `Instances` requires of its fields. :meth:`crops` and :meth:`rles` are the fast ways
    to read.

    Args:
        image_size: H and W.
        device: Device of the tensors that are read.

    Attributes:
        image_size, device: As given.
    """

    dtype = torch.bool

    def __init__(self, image_size: tuple[int, int], device: torch.device) -> None:
        self.image_size = image_size
        self.device = device

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def crops(self) -> Iterator[Crop]:
        """Yield the masks in windows that contain all of their foreground."""

    @abstractmethod
    def part(self, index: Any) -> Self:
        """Return the masks of a slice, a list, or a tensor of bool or integers (M,)."""

    @abstractmethod
    def on(self, device: torch.device) -> Self:
        """Return the same masks, to be read on another device."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor that the masks stand for, (N, H, W)."""
        return torch.Size([len(self), *self.image_size])

    def __getitem__(self, index: Any) -> Any:
        """Return one mask (H, W) for an integer, else a part of the masks."""
        if isinstance(index, Tensor) and index.dim() == 0 and index.dtype != torch.bool:
            index = int(index)
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"mask {index} of {len(self)}")
            index = int(index) % len(self)
            (crop,) = self[index : index + 1].crops()
            mask = torch.zeros(self.image_size, dtype=torch.bool)
            mask[crop.window] = torch.from_numpy(crop.mask)
            return mask.to(self.device)
        if isinstance(index, tuple) or index is None or index is Ellipsis:
            raise TypeError(f"index {index!r:.100}: pixels have no index here: use `.tensor()`")
        return self.part(slice(0) if isinstance(index, list) and not index else index)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all masks (N, H, W), for `numpy.asarray`."""
        return np.asarray(self.tensor().cpu().numpy(), dtype=dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {self.image_size[0]} × {self.image_size[1]})"

    def to(self, device: Any = None, dtype: torch.dtype = torch.bool) -> Self:
        """Return the same masks, to be read on another device.

        They are still computed where they were, so the pixels are the same.

        Raises:
            TypeError: For another type than bool.
        """
        if dtype != torch.bool:
            raise TypeError(f"masks are bool, got {dtype}: convert `.tensor()`")
        return self.on(self.device if device is None else torch.device(device))

    def tensor(self) -> Tensor:
        """Return all masks at once, (N, H, W) bool."""
        masks = torch.zeros(self.shape, dtype=torch.bool)
        for mask, crop in zip(masks, self.crops(), strict=True):
            mask[crop.window] = torch.from_numpy(crop.mask)
        return masks.to(self.device)

    def rles(self) -> Iterator[Rle]:
        """Yield the masks in COCO's compressed encoding, exactly as pycocotools encodes them.

        Raises:
            ValueError: As :func:`rle_of_crop`.
        """
        return (rle_of_crop(crop, self.image_size) for crop in self.crops())


class BoxMasks(LazyMasks):
    """Masks of the boxes in an image, from the probabilities in each box.

    Args:
        probabilities: (N, S, S), of foreground in the cells of each mask.
        boxes: (N, 4), x0, y0, x1, y1 in pixels; they may reach beyond the image.
        image_size: H and W.
        device: Device of the tensors that are read; that of the probabilities by default.

    Attributes:
        probabilities, boxes: As given.

    Raises:
        ValueError: If a shape is another one, or a coordinate is not finite.
    """

    def __init__(
        self,
        probabilities: Tensor,
        boxes: Tensor,
        image_size: tuple[int, int],
        device: torch.device | None = None,
    ) -> None:
        count, *sides = probabilities.shape
        if len(sides) != 2 or sides[0] != sides[1] or boxes.shape != (count, 4):
            raise ValueError(
                "expected probabilities (N, S, S) and boxes (N, 4), got "
                f"{tuple(probabilities.shape)} and {tuple(boxes.shape)}"
            )
        if not torch.isfinite(boxes).all():
            raise ValueError("boxes: expected finite coordinates, got infinite ones or NaN")
        if not probabilities.is_floating_point():
            probabilities = probabilities.float()
        super().__init__(image_size, probabilities.device if device is None else device)
        self.probabilities = probabilities
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.probabilities)

    def part(self, index: Any) -> Self:
        """Return the masks of a part of the boxes."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.probabilities.device)
        boxes = self.boxes[index]
        return type(self)(self.probabilities[index], boxes, self.image_size, self.device)

    def on(self, device: torch.device) -> Self:
        """Return the same masks, to be read on another device."""
        return type(self)(self.probabilities, self.boxes, self.image_size, device)

    @classmethod
    def cat(cls, parts: Sequence["BoxMasks"]) -> "BoxMasks":
        """Join masks of the same image."""
        return cls(
            torch.cat([part.probabilities for part in parts]),
            torch.cat([part.boxes for part in parts]),
            parts[0].image_size,
            parts[0].device,
        )

    def tensor(self) -> Tensor:
        """Paste all masks at once, as Detectron2 does: (N, H, W) bool."""
        masks = ROIMasks(self.probabilities)
        return masks.to_bitmasks(Boxes(self.boxes), *self.image_size, THRESHOLD).tensor.to(
            self.device
        )

    def crops(self) -> Iterator[Crop]:
        """Yield the masks in the windows of their boxes."""
        corners = self.boxes.cpu()
        opposite = corners.new_tensor(self.image_size[::-1])
        # One pixel around the box, as in Detectron2; a box beyond the image has an empty window.
        first = (corners[:, :2].floor() - 1).clamp(min=0).minimum(opposite)
        last = (corners[:, 2:].ceil() + 1).minimum(opposite).maximum(first)
        windows = torch.cat((first, last), dim=1).long().tolist()
        side = max(self.image_size)
        centers = torch.arange(side, dtype=torch.float32, device=self.boxes.device) + 0.5
        for mask, box, (left, top, right, bottom) in zip(
            self.probabilities, self.boxes, windows, strict=True
        ):
            x0, y0, x1, y1 = box.split(1)
            x = (centers[left:right] - x0) / (x1 - x0)
            y = (centers[top:bottom] - y0) / (y1 - y0)
            columns = np.empty((right - left, bottom - top), dtype=bool)
            step = max(1, PIXELS_AT_ONCE // max(1, bottom - top))
            for start in range(0, right - left, step):
                part = slice(start, start + step)
                values = sample_lattice(mask, x[part], y).cpu().numpy()
                np.greater_equal(values, THRESHOLD, out=columns[part])
            yield Crop(columns.T, top, left)


def crops(masks: Tensor | LazyMasks) -> Iterator[Crop]:
    """Yield masks in windows of their foreground; a tensor is (N, H, W) on the CPU."""
    return masks.crops() if isinstance(masks, LazyMasks) else map(Crop.of, masks.bool().numpy())


def rle_of_crop(crop: Crop, image_size: tuple[int, int]) -> Rle:
    """Encode a mask from a window that contains all of its foreground.

    Args:
        crop: The window.
        image_size: H and W.

    Returns:
        COCO's compressed encoding, with "counts" as bytes.

    Raises:
        ValueError: If the image has more pixels than the encoding can count.
    """
    column, row = run_ends(crop)
    return rle_of_runs(column, row, image_size)


def run_ends(crop: Crop) -> tuple[np.ndarray, np.ndarray]:
    """Find the vertical runs of a mask's foreground, column by column.

    Returns:
        Columns and rows (2R,) in the image: in turn the first pixel of a run, and the one below its
        last, in the same column.
    """
    rows, columns = crop.mask.shape
    # With a pixel of background below each column, all runs end within their column.
    flat = np.zeros(columns * (rows + 1) + 1, dtype=bool)
    flat[1:].reshape(columns, rows + 1)[:, :rows] = crop.mask.T
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), rows + 1)
    return column + crop.left, row + crop.top


def rle_of_runs(column: np.ndarray, row: np.ndarray, image_size: tuple[int, int]) -> Rle:
    """Encode a mask from its vertical runs.

    Args:
        column, row: (2R,) integers, as of :func:`run_ends`.
        image_size: H and W.

    Returns:
        As :func:`rle_of_crop`.

    Raises:
        ValueError: As :func:`rle_of_crop`.
    """
    height, width = image_size
    if height * width > MAX_ENCODED_PIXELS:
        raise ValueError(
            f"COCO's encoding cannot count the pixels of an image of {height}×{width}: expected at "
            f"most {MAX_ENCODED_PIXELS:,}"
        )
    changes = column.astype(np.int64) * height + row
    # A run that ends at the bottom may go on at the top of the next column.
    goes_on = np.flatnonzero(changes[1:-1:2] == changes[2::2]) * 2 + 1
    if goes_on.size:
        changes = np.delete(changes, [goes_on, goes_on + 1])
    ends = np.empty(changes.size + 2, dtype=np.int64)
    ends[0], ends[1:-1], ends[-1] = 0, changes, height * width
    counts = ends[1:] - ends[:-1]
    if changes.size and not counts[-1]:
        counts = counts[:-1]
    return mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)
