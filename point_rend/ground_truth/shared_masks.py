"""Ground-truth masks of an image, stored once per object and shared by all of its regions.

Detectron2 gives each sampled proposal a copy of the mask of its object, one byte per pixel of the
image, and later a second copy of four bytes per pixel. Here a proposal has the number of its object
instead.

Shapes: M objects, N regions, P points, H and W sides of the image in pixels, S side of a crop.
Coordinates are ``coords_img``; a window or a box is (x0, y0, x1, y1).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, polygons_to_bitmask
from torch import Tensor

from point_rend.ground_truth.mask_cropping import SAMPLE_ROUNDING, axis_bins

# Pixels that are converted to floating point at a time for crops; RoIAlign needs whole masks.
CANVAS_PIXELS = 2**22


@dataclass(frozen=True)
class MaskObjects:
    """The masks of M objects, each stored as a window of pixels or as polygons.

    Args:
        image_size: (H, W).
        pixels: (total area of the windows + 1,) bool, window after window in row-major order; the
            last value is False and represents all pixels outside the windows.
        windows: (M, 4) int64, the tightest window around the pixels of each mask; zeros without
            pixels, as for an object with polygons.
        polygons: of M objects, without parts for an object with pixels.
    """

    image_size: tuple[int, int]
    pixels: Tensor
    windows: Tensor
    polygons: PolygonMasks

    @classmethod
    def of_bitmaps(cls, bitmaps: Tensor) -> "MaskObjects":
        """Store the masks (M, H, W) bool."""
        height, width = bitmaps.shape[1:]
        windows = _tight_windows(bitmaps)
        pieces = [
            bitmap[y0:y1, x0:x1].flatten()
            for bitmap, (x0, y0, x1, y1) in zip(bitmaps, windows.tolist(), strict=True)
        ]
        pixels = torch.cat([*pieces, bitmaps.new_zeros(1)])
        return cls((height, width), pixels, windows, PolygonMasks([[] for _ in bitmaps]))

    @classmethod
    def of_polygons(cls, polygons: PolygonMasks, image_size: tuple[int, int]) -> "MaskObjects":
        """Store the polygons of M objects."""
        windows = torch.zeros(len(polygons), 4, dtype=torch.int64)
        return cls(image_size, torch.zeros(1, dtype=torch.bool), windows, polygons)

    @classmethod
    def cat(cls, stores: Sequence["MaskObjects"]) -> "MaskObjects":
        """Join one or more stores of the same image."""
        pixels = [*(store.pixels[:-1] for store in stores), stores[-1].pixels[-1:]]
        return cls(
            image_size=stores[0].image_size,
            pixels=torch.cat(pixels),
            windows=torch.cat([store.windows for store in stores]),
            polygons=PolygonMasks.cat([store.polygons for store in stores]),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle eight pixels per byte."""
        bits = torch.from_numpy(np.packbits(self.pixels.cpu().numpy()))
        return _unpack, (self.image_size, bits, self.windows, self.polygons)

    def __len__(self) -> int:
        return len(self.windows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MaskObjects":
        """Move the pixels; polygons stay on the CPU, as in Detectron2."""
        pixels, windows = (
            x.to(device, non_blocking=non_blocking) for x in (self.pixels, self.windows)
        )
        return MaskObjects(self.image_size, pixels, windows, self.polygons)

    @property
    def has_polygons(self) -> bool:
        """Whether any object has polygons, known without a GPU synchronization."""
        return any(len(parts) > 0 for parts in self.polygons.polygons)

    def areas(self) -> Tensor:
        """Return the number of pixels in each window, (M,) int64."""
        x0, y0, x1, y1 = self.windows.unbind(1)
        return (x1 - x0) * (y1 - y0)

    def read_pixels(self, objects: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
        """Read single pixels, False outside the image and for objects with polygons.

        Args:
            objects: (N,) int64 in [0, M), the masks to read.
            columns: (N, P) int64.
            rows: (N, P) int64.

        Returns:
            (N, P) bool.
        """
        areas = self.areas()
        starts = (areas.cumsum(0) - areas)[objects, None]
        x0, y0, x1, y1 = self.windows[objects, :, None].unbind(1)  # (N, 1) each
        inside = (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)
        positions = starts + (rows - y0) * (x1 - x0) + (columns - x0)
        return self.pixels[positions.where(inside, self.pixels.numel() - 1)]

    def window_pixels(self, objects: Tensor) -> list[Tensor]:
        """Return views of the windows of the objects (n,), each (h, w) bool."""
        areas = self.areas()
        starts = (areas.cumsum(0) - areas)[objects].tolist()
        x0, y0, x1, y1 = self.windows[objects].unbind(1)
        sides = torch.stack((y1 - y0, x1 - x0), dim=1).tolist()
        return [
            self.pixels[start : start + h * w].view(h, w)
            for start, (h, w) in zip(starts, sides, strict=True)
        ]

    def paint_pixels(self, objects: Tensor, canvas: Tensor) -> None:
        """Write the windows of the objects (n,) into the images of a canvas (n, H, W)."""
        windows = self.windows[objects].tolist()
        pixels = self.window_pixels(objects)
        for image, window, (x0, y0, x1, y1) in zip(canvas, pixels, windows, strict=True):
            image[y0:y1, x0:x1] = window


class SharedMasks(BitMasks):
    """:class:`BitMasks` of N regions that share the masks of M objects.

    Indexing returns a view: it selects from the index and keeps the objects. The methods work on
    the objects; only the property ``tensor`` makes N images.

    Args:
        objects: the masks of the objects in the image.
        index: (N,) int64 in [0, M), the object of each region.
    """

    def __init__(self, objects: MaskObjects, index: Tensor) -> None:
        self.objects = objects
        self.index = index

    @classmethod
    def of(cls, masks: BitMasks | PolygonMasks, image_size: tuple[int, int]) -> "SharedMasks":
        """Convert Detectron2's masks of an image; return shared masks as they are.

        Raises:
            TypeError: if the masks are neither bitmasks nor polygons.
        """
        if isinstance(masks, SharedMasks):
            return masks
        if isinstance(masks, BitMasks):
            objects = MaskObjects.of_bitmaps(masks.tensor)
        elif isinstance(masks, PolygonMasks):
            objects = MaskObjects.of_polygons(masks, image_size)
        else:
            raise TypeError(
                f"gt_masks: expected BitMasks or PolygonMasks, got {type(masks).__name__}"
            )
        return cls(objects, torch.arange(len(masks), device=objects.windows.device))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.objects.image_size

    @property
    def device(self) -> torch.device:
        """The device of the index and the pixels."""
        return self.index.device

    @property
    def tensor(self) -> Tensor:
        """All masks as images, (N, H, W) bool; polygons are rasterized as in COCO."""
        shown, slots = self.index.unique(return_inverse=True)
        images = torch.zeros(len(shown), *self.image_size, dtype=torch.bool, device=self.device)
        self.objects.paint_pixels(shown, images)
        for image, parts in zip(images, self.objects.polygons[shown], strict=True):
            if parts:
                image.copy_(torch.from_numpy(polygons_to_bitmask(parts, *self.image_size)))
        return images[slots]

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)}, num_objects={len(self.objects)})"

    def __getitem__(self, item: Any) -> "SharedMasks":
        """Select regions by a position, a slice, positions or an (N,) bool mask."""
        return SharedMasks(self.objects, self.index[item].reshape(-1))

    def __iter__(self) -> Iterator[Tensor]:
        for position in range(len(self)):
            yield self[position].tensor[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SharedMasks":
        """Move to a device; return masks that are already there as they are."""
        if torch.device(device) == self.device:
            return self
        objects = self.objects.to(device, non_blocking=non_blocking)
        return SharedMasks(objects, self.index.to(device, non_blocking=non_blocking))

    @staticmethod
    def cat(bitmasks_list: Sequence[BitMasks]) -> "SharedMasks":
        """Concatenate regions of one image; shared objects stay shared.

        Raises:
            ValueError: if there are no masks, or their image sizes differ.
        """
        sizes = {tuple(masks.image_size) for masks in bitmasks_list}
        if len(sizes) != 1:
            raise ValueError(f"cat: expected masks of one image size, got {sorted(sizes)}")
        shared = [SharedMasks.of(masks, masks.image_size) for masks in bitmasks_list]
        stores = {id(masks.objects): masks.objects for masks in shared}
        firsts = itertools.accumulate(map(len, stores.values()), initial=0)
        first_of = dict(zip(stores, firsts, strict=False))
        objects = MaskObjects.cat(list(stores.values())) if len(stores) > 1 else shared[0].objects
        index = torch.cat([masks.index + first_of[id(masks.objects)] for masks in shared])
        return SharedMasks(objects, index)

    def nonempty(self) -> Tensor:
        """Return which masks have pixels or polygons, (N,) bool."""
        has_polygons = self.objects.polygons.nonempty().to(self.device)
        return ((self.objects.areas() > 0) | has_polygons)[self.index]

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes of the N masks; zeros for an empty mask."""
        polygons = self.objects.polygons
        boxes = self.objects.windows.to(torch.float32)
        with_polygons = polygons.nonempty()
        boxes[with_polygons] = polygons[with_polygons].get_bounding_boxes().tensor.to(boxes)
        return Boxes(boxes[self.index])

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop each mask to a box and resize it to S × S.

        The result equals Detectron2's bit for bit: for pixels that of :class:`BitMasks` (the mean
        over a cell, by RoIAlign, is at least 0.5), for polygons that of :class:`PolygonMasks`
        (rasterized at size S).

        Args:
            boxes: (N, 4).
            mask_size: S.

        Returns:
            (N, S, S) bool.

        Raises:
            ValueError: if the number of boxes is not that of the masks.
        """
        if len(boxes) != len(self):
            raise ValueError(f"crop_and_resize: expected {len(self)} boxes, got {len(boxes)}")
        boxes = boxes.to(self.device, torch.float32)
        shape = (len(self), mask_size, mask_size)
        crops = torch.zeros(shape, dtype=torch.bool, device=self.device)
        with_pixels = (self.objects.areas() > 0)[self.index]
        crops[with_pixels] = self[with_pixels]._crop_pixels(boxes[with_pixels], mask_size)
        if self.objects.has_polygons:
            with_polygons = self.objects.polygons.nonempty().to(self.device)[self.index]
            polygons = self.objects.polygons[self.index[with_polygons]]
            crops[with_polygons] = polygons.crop_and_resize(boxes[with_polygons], mask_size)
        return crops

    def _crop_pixels(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Threshold cell means; leave crops that rounding could change to RoIAlign itself."""
        means, error_bounds = self._cell_means(boxes, mask_size)
        crops = means >= 0.5
        is_close = (means - 0.5).abs() <= error_bounds[:, None, None]
        rows = is_close.flatten(1).any(1).nonzero()[:, 0]
        crops[rows] = self[rows]._align(boxes[rows], mask_size) >= 0.5
        return crops

    def _cell_means(self, boxes: Tensor, mask_size: int) -> tuple[Tensor, Tensor]:
        """Compute the means of RoIAlign one axis at a time: it is linear along each.

        The means are float64, which neither autocast nor TF32 affects.

        Returns:
            The means (N, S, S), and bounds on their difference from RoIAlign's own, (N,).
        """
        height, width = self.image_size
        across = axis_bins(boxes[:, 0::2], width, mask_size)
        down = axis_bins(boxes[:, 1::2], height, mask_size)
        means = across.weights.new_zeros(len(self), mask_size, mask_size)
        order = self.index.argsort()
        shown, counts = self.index[order].unique_consecutive(return_counts=True)
        windows = self.objects.windows[shown].tolist()
        regions = order.split(counts.tolist())
        for window, pixels, chosen in zip(
            windows, self.objects.window_pixels(shown), regions, strict=True
        ):
            x0, y0, x1, y1 = window
            rows_per_piece = max(1, CANVAS_PIXELS // max(1, x1 - x0))
            pieces = zip(
                down.weights[chosen, :, y0:y1].split(rows_per_piece, dim=2),
                pixels.split(rows_per_piece),
                strict=True,
            )
            columns = sum(weights @ piece.double() for weights, piece in pieces)  # (n, S, w)
            means[chosen] = columns @ across.weights[chosen, :, x0:x1].mT
        error_bounds = SAMPLE_ROUNDING * across.num_samples * down.num_samples
        return means, error_bounds + across.error_bounds + down.error_bounds

    def _align(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Apply RoIAlign to the images of the objects, a few images at a time: (N, S, S)."""
        height, width = self.image_size
        shown, slots = self.index.unique(return_inverse=True)
        images_at_once = max(1, CANVAS_PIXELS // (height * width))
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        means = boxes.new_zeros(len(self), mask_size, mask_size)
        for first in range(0, len(shown), images_at_once):
            objects = shown[first : first + images_at_once]
            canvas = boxes.new_zeros(len(objects), 1, height, width)
            self.objects.paint_pixels(objects, canvas[:, 0])
            rows = ((slots >= first) & (slots < first + images_at_once)).nonzero()[:, 0]
            rois = torch.cat(((slots[rows, None] - first).to(boxes), boxes[rows]), dim=1)  # (n, 5)
            means[rows] = align(canvas, rois)[:, 0]
        return means


def share_masks(instances: Sequence[Instances]) -> list[Instances]:
    """Return the instances with their ``gt_masks``, if any, converted to :class:`SharedMasks`.

    The masks are moved to the device of the boxes: Detectron2 leaves polygons on the CPU.

    Raises:
        TypeError: as :meth:`SharedMasks.of`.
    """
    return [_with_shared_masks(x) if x.has("gt_masks") else x for x in instances]


def _with_shared_masks(instances: Instances) -> Instances:
    masks = SharedMasks.of(instances.gt_masks, instances.image_size)
    fields = instances.get_fields()
    devices = [field.device for field in fields.values() if isinstance(field, Boxes)]
    if devices:
        masks = masks.to(devices[0])
    return Instances(instances.image_size, **fields | {"gt_masks": masks})


def _unpack(
    image_size: tuple[int, int], bits: Tensor, windows: Tensor, polygons: PolygonMasks
) -> MaskObjects:
    """Undo :meth:`MaskObjects.__reduce__`."""
    objects = MaskObjects(image_size, bits, windows, polygons)
    pixels = np.unpackbits(bits.numpy(), count=int(objects.areas().sum()) + 1).view(bool)
    return MaskObjects(image_size, torch.from_numpy(pixels).to(windows.device), windows, polygons)


def _tight_windows(bitmaps: Tensor) -> Tensor:
    """Return the tightest windows around the pixels of masks (M, H, W) bool: (M, 4) int64."""
    pixels = bitmaps.view(torch.uint8)  # the maximum of bytes is many times as fast as any()
    sides = []
    for used in (pixels.amax(1), pixels.amax(2)):  # (M, W) and (M, H)
        sides.append((used.argmax(1), used.shape[1] - used.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = sides
    has_pixels = used.amax(1) > 0
    return torch.stack((x0, y0, x1, y1), dim=1) * has_pixels[:, None]
