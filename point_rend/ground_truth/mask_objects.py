"""The masks of the objects of an image: windows of pixels, or polygons.

Shapes: M objects, N regions, T pixels in all windows, H and W sides of the image in pixels. A
window is (x0, y0, x1, y1). Sizes are kept on the CPU, so that no shape waits for a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.structures import PolygonMasks
from torch import Tensor


@dataclass(frozen=True)
class MaskObjects:
    """The masks of M objects, each stored as a window of pixels or as polygons.

    Args:
        image_size: (H, W).
        pixels: (T + 1,) bool on any device, window after window in row-major order; the last value
            is False and represents all pixels outside the windows.
        windows: (M, 4) int64 on the CPU, the tightest window around the pixels of each mask; zeros
            without pixels, as for an object with polygons.
        polygons: of M objects, without parts for an object with pixels.
    """

    image_size: tuple[int, int]
    pixels: Tensor
    windows: Tensor
    polygons: PolygonMasks

    @classmethod
    def of_bitmaps(cls, bitmaps: Tensor) -> "MaskObjects":
        """Store the masks (M, H, W) bool; on a GPU their windows are the only wait."""
        height, width = bitmaps.shape[1:]
        windows = _tight_windows(bitmaps).cpu()
        if bitmaps.is_cpu:
            pieces = [
                bitmap[y0:y1, x0:x1].flatten()
                for bitmap, (x0, y0, x1, y1) in zip(bitmaps, windows.tolist(), strict=True)
            ]
        else:
            pieces = [bitmaps.flatten()[_image_positions(windows, height, width, bitmaps.device)]]
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
        return cls(
            image_size=stores[0].image_size,
            pixels=cat_pixels(stores),
            windows=torch.cat([store.windows for store in stores]),
            polygons=PolygonMasks.cat([store.polygons for store in stores]),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle eight pixels per byte."""
        bits = torch.from_numpy(np.packbits(self.pixels.cpu().numpy()))
        state = (self.image_size, bits, self.windows, self.polygons, self.pixels.device)
        return _unpack, state

    def __len__(self) -> int:
        return len(self.windows)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MaskObjects":
        """Move the pixels; windows and polygons stay on the CPU."""
        # A copy from the CPU is in order with all that follows, so nothing needs to wait for it.
        non_blocking |= self.pixels.is_cpu
        pixels = self.pixels.to(device, non_blocking=non_blocking)
        return MaskObjects(self.image_size, pixels, self.windows, self.polygons)

    def pin_memory(self) -> "MaskObjects":
        """Return a copy with pixels in pinned memory."""
        pixels = self.pixels.pin_memory()
        return MaskObjects(self.image_size, pixels, self.windows, self.polygons)

    @cached_property
    def has_pixels(self) -> bool:
        """Whether any object has pixels."""
        return bool((self.areas() > 0).any())

    @cached_property
    def has_polygons(self) -> bool:
        """Whether any object has polygons."""
        return any(len(parts) > 0 for parts in self.polygons.polygons)

    def areas(self) -> Tensor:
        """Return the number of pixels in each window, (M,) int64 on the CPU."""
        x0, y0, x1, y1 = self.windows.unbind(1)
        return (x1 - x0) * (y1 - y0)

    @cached_property
    def places(self) -> Tensor:
        """The place of each object's window in the image and in ``pixels``.

        (9, M) int64 on the device of the pixels: x0, y0, x1, y1; the distances 1 and x1 − x0 in
        ``pixels`` between the columns and rows of a window; W, H; the first pixel in ``pixels``.
        """
        height, width = self.image_size
        x0, _, x1, _ = self.windows.unbind(1)
        areas = self.areas()
        ones = torch.ones_like(areas)
        more = (ones, x1 - x0, ones * width, ones * height, areas.cumsum(0) - areas)
        places = torch.cat((self.windows.T, torch.stack(more)))
        return places.to(self.pixels.device, non_blocking=True)

    def window_pixels(self, objects: Sequence[int]) -> list[Tensor]:
        """Return views of the windows of the chosen objects, each (h, w) bool."""
        areas = self.areas()
        starts = (areas.cumsum(0) - areas).tolist()
        windows = self.windows.tolist()
        views = []
        for number in objects:
            x0, y0, x1, y1 = windows[number]
            h, w = y1 - y0, x1 - x0
            views.append(self.pixels[starts[number] : starts[number] + h * w].view(h, w))
        return views

    def paint_pixels(self, objects: Sequence[int], canvas: Tensor) -> None:
        """Write the windows of the n chosen objects into the images of a canvas (n, H, W)."""
        if self.pixels.is_cpu:
            windows = self.windows.tolist()
            for image, number, pixels in zip(
                canvas, objects, self.window_pixels(objects), strict=True
            ):
                x0, y0, x1, y1 = windows[number]
                image[y0:y1, x0:x1] = pixels
            return
        # A GPU copies all windows together.
        pixels = torch.cat([x.flatten() for x in self.window_pixels(objects)])
        positions = _image_positions(self.windows[objects], *self.image_size, canvas.device)
        canvas.view(-1)[positions] = pixels.to(canvas.dtype)


def cat_pixels(stores: Sequence[MaskObjects]) -> Tensor:
    """Join the pixels of one or more stores, followed by the False of pixels outside."""
    if len(stores) == 1:
        return stores[0].pixels
    return torch.cat([*(store.pixels[:-1] for store in stores), stores[-1].pixels[-1:]])


def _unpack(
    image_size: tuple[int, int],
    bits: Tensor,
    windows: Tensor,
    polygons: PolygonMasks,
    device: torch.device,
) -> MaskObjects:
    """Undo :meth:`MaskObjects.__reduce__`."""
    objects = MaskObjects(image_size, bits, windows, polygons)
    pixels = np.unpackbits(bits.numpy(), count=int(objects.areas().sum()) + 1).view(bool)
    return MaskObjects(image_size, torch.from_numpy(pixels).to(device), windows, polygons)


def _tight_windows(bitmaps: Tensor) -> Tensor:
    """Return the tightest windows around the pixels of masks (M, H, W) bool: (M, 4) int64."""
    pixels = bitmaps.view(torch.uint8)  # the maximum of bytes is many times as fast as any()
    sides = []
    for used in (pixels.amax(1), pixels.amax(2)):  # (M, W) and (M, H)
        sides.append((used.argmax(1), used.shape[1] - used.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = sides
    has_pixels = used.amax(1) > 0
    return torch.stack((x0, y0, x1, y1), dim=1) * has_pixels[:, None]


def _image_positions(windows: Tensor, height: int, width: int, device: torch.device) -> Tensor:
    """Return where the pixels of M windows lie in images (M, H, W): (T,) int64, window by window.

    Args:
        windows: (M, 4) int64 on the CPU.
        height, width: H, W.
        device: the device of the result, which does not wait.
    """
    x0, y0, x1, y1 = windows.unbind(1)
    widths = x1 - x0
    areas = widths * (y1 - y0)
    starts = areas.cumsum(0) - areas
    corners = (torch.arange(len(windows)) * height + y0) * width + x0
    table = torch.stack((areas, starts, widths, width - widths, corners - starts))
    table = table.to(device, non_blocking=True)
    total = int(areas.sum())
    owners = torch.repeat_interleave(table[0], output_size=total)
    starts, widths, gaps, shifts = table[1:, owners]  # (T,) each
    order = torch.arange(total, device=device)
    return order + shifts + (order - starts) // widths * gaps
