"""Ground-truth masks of an image, stored once per object and shared by all of its regions.

Detectron2 gives each sampled proposal a copy of the mask of its object, one byte per pixel of the
image, and later a second copy of four bytes per pixel. Here a proposal has the number of its object
instead.

Shapes: M objects, N regions, P points, H and W sides of the image in pixels, S side of a crop.
Coordinates are ``coords_img``; a window or a box is (x0, y0, x1, y1).
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, polygons_to_bitmask
from torch import Tensor

from point_rend.ground_truth.mask_cropping import SAMPLE_ROUNDING, axis_bins
from point_rend.ground_truth.mask_objects import MaskObjects

# Pixels that are converted to floating point at a time for crops; RoIAlign needs whole masks.
CANVAS_PIXELS = 2**22  # on a CPU
GPU_CANVAS_PIXELS = 2**25  # 128 MiB


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
        return cls(objects, torch.arange(len(masks), device=objects.pixels.device))

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
        self.objects.paint_pixels(shown.tolist(), images)
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
        non_blocking |= self.index.is_cpu  # as for the objects
        return SharedMasks(objects, self.index.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "SharedMasks":
        """Return a copy in pinned memory, from which a GPU copies while the CPU goes on."""
        return SharedMasks(self.objects.pin_memory(), self.index.pin_memory())

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
        objects = (self.objects.areas() > 0) | self.objects.polygons.nonempty()
        return objects.to(self.device, non_blocking=True)[self.index]

    def get_bounding_boxes(self) -> Boxes:
        """Return the tight boxes of the N masks; zeros for an empty mask."""
        polygons = self.objects.polygons
        boxes = self.objects.windows.to(torch.float32)
        with_polygons = polygons.nonempty()
        boxes[with_polygons] = polygons[with_polygons].get_bounding_boxes().tensor.to(boxes)
        return Boxes(boxes.to(self.device, non_blocking=True)[self.index])

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop each mask to a box and resize it to S × S, as :func:`crop_masks` does.

        Args:
            boxes: (N, 4).
            mask_size: S.

        Returns:
            (N, S, S) bool.

        Raises:
            ValueError: if the number of boxes is not that of the masks.
        """
        return crop_masks([self], [boxes], mask_size)

    def _crop_pixels(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop the masks of pixels to finite boxes; crops of polygons are empty."""
        if self.device.type != "cpu" and self.objects.has_pixels:
            return self._align(boxes, mask_size) >= 0.5
        shape = (len(self), mask_size, mask_size)
        crops = torch.zeros(shape, dtype=torch.bool, device=self.device)
        if not self.objects.has_pixels:
            return crops
        with_pixels = (self.objects.areas() > 0)[self.index]
        crops[with_pixels] = self[with_pixels]._threshold_means(boxes[with_pixels], mask_size)
        return crops

    def _threshold_means(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Threshold cell means; leave crops that rounding could change to RoIAlign itself."""
        means, error_bounds = self._cell_means(boxes, mask_size)
        crops = means >= 0.5
        is_close = (means - 0.5).abs() <= error_bounds[:, None, None]
        rows = is_close.flatten(1).any(1).nonzero()[:, 0]
        crops[rows] = self[rows]._align(boxes[rows], mask_size) >= 0.5
        return crops

    def _cell_means(self, boxes: Tensor, mask_size: int) -> tuple[Tensor, Tensor]:
        """Compute the means of RoIAlign one axis at a time: it is linear along each.

        On a CPU this is many times as fast. The means are float64, which autocast leaves alone.

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
            windows, self.objects.window_pixels(shown.tolist()), regions, strict=True
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
        if self.device.type == "cpu":
            shown, slots = self.index.unique(return_inverse=True)
            objects, canvas_pixels = shown.tolist(), CANVAS_PIXELS
        else:  # all objects, because the index is not known without a wait
            objects, slots = list(range(len(self.objects))), self.index
            canvas_pixels = GPU_CANVAS_PIXELS
        images_at_once = max(1, canvas_pixels // (height * width))
        align = ROIAlign((mask_size, mask_size), 1.0, 0, aligned=True)
        means = boxes.new_zeros(len(self), mask_size, mask_size)
        for first in range(0, len(objects), images_at_once):
            painted = objects[first : first + images_at_once]
            canvas = boxes.new_zeros(len(painted), 1, height, width)
            self.objects.paint_pixels(painted, canvas[:, 0])
            images = (slots - first)[:, None]
            rois = torch.cat((images.to(boxes), boxes), dim=1)  # (N, 5)
            if len(painted) < len(objects):  # regions of other images: 0, from an empty box
                rois = rois.masked_fill((images < 0) | (images >= len(painted)), 0)
            means += align(canvas, rois)[:, 0]
        return means


@torch.no_grad()
def crop_masks(masks: Sequence[SharedMasks], boxes: Sequence[Tensor], mask_size: int) -> Tensor:
    """Crop each mask to a box and resize it to S × S.

    The result equals Detectron2's bit for bit: for pixels that of :class:`BitMasks` (the mean over
    a cell, by RoIAlign, is at least 0.5), for polygons that of :class:`PolygonMasks` (rasterized at
    size S). A box that is not finite counts as empty. On a GPU pixels need no wait, and the
    polygons of all images one.

    Args:
        masks: of one or more images, N in total.
        boxes: per image the box of each mask, (N_i, 4).
        mask_size: S.

    Returns:
        (N, S, S) bool.

    Raises:
        ValueError: if the number of boxes is not that of the masks.
    """
    for of_image, around in zip(masks, boxes, strict=True):
        if len(around) != len(of_image):
            raise ValueError(f"crop_and_resize: expected {len(of_image)} boxes, got {len(around)}")
    rois = torch.cat([x.to(masks[0].device, torch.float32) for x in boxes])
    rois = rois.where(rois.isfinite().all(1, keepdim=True), 0)
    of_images = zip(masks, rois.split([len(x) for x in masks]), strict=True)
    crops = torch.cat([x._crop_pixels(around, mask_size) for x, around in of_images])
    if any(x.objects.has_polygons for x in masks):
        polygons = _crop_polygons(masks, rois, mask_size)
        crops |= polygons.to(crops.device, non_blocking=True)
    return crops


def _crop_polygons(masks: Sequence[SharedMasks], boxes: Tensor, mask_size: int) -> Tensor:
    """Crop the masks of polygons on the CPU; crops of pixels are empty."""
    index = torch.cat([x.index for x in masks])
    on_cpu = torch.cat((boxes, index[:, None].to(boxes)), dim=1).cpu()  # one wait for both
    objects = on_cpu[:, 4].long().split([len(x) for x in masks])
    parts = [
        x.objects.polygons.polygons[number]
        for x, chosen in zip(masks, objects, strict=True)
        for number in chosen.tolist()
    ]
    drawn = torch.tensor([len(x) > 0 for x in parts])
    crops = torch.zeros(len(boxes), mask_size, mask_size, dtype=torch.bool)
    polygons = PolygonMasks([x for x in parts if x])
    crops[drawn] = polygons.crop_and_resize(on_cpu[drawn, :4], mask_size)
    return crops


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
