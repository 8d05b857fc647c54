"""Windows onto an image at a magnification."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from point_rend.rendering.sampling import point_sample


@dataclass(frozen=True)
class View:
    """An enlarged window of an image, with a frame that is covered by maps of other resolutions.

    Args:
        frame: Area of the maps in pixels of the image; it may lie partly outside the window.
        window: Visible area in pixels of the image.
        size: Height and width of the view.

    Raises:
        ValueError: If one of them is empty.
    """

    frame: tuple[float, float, float, float]
    window: tuple[float, float, float, float]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        for name, (x0, y0, x1, y1) in (("frame", self.frame), ("window", self.window)):
            if not (x0 < x1 and y0 < y1):
                raise ValueError(f"{name}: expected x0 < x1 and y0 < y1, got {(x0, y0, x1, y1)}")
        if min(self.size) < 1:
            raise ValueError(f"size: expected a height and a width of 1 or more, got {self.size}")

    @classmethod
    def around(
        cls,
        window: tuple[float, float, float, float],
        longest_side: int,
        frame: tuple[float, float, float, float] | None = None,
    ) -> "View":
        """Create the view of a window with its aspect ratio; the frame defaults to the window."""
        width, height = window[2] - window[0], window[3] - window[1]
        scale = longest_side / max(width, height, 1e-9)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return cls(frame or window, window, size)

    def of_map(
        self, values: np.ndarray, mode: Literal["bilinear", "nearest"] = "nearest"
    ) -> np.ndarray:
        """Show maps that cover the frame.

        Args:
            values: (C, h, w).
            mode: ``nearest`` shows the cells; ``bilinear`` interpolates and fades to 0 outside the
                frame, as in pasting masks into images.

        Returns:
            (C, H, W) float32.
        """
        return self._sample(values, self.frame, mode, "zeros")

    def of_image(self, image: np.ndarray) -> np.ndarray:
        """Show the window of an image (h, w, 3) uint8: (H, W, 3) uint8."""
        frame = (0, 0, image.shape[1], image.shape[0])
        shown = self._sample(image.transpose(2, 0, 1), frame, "bilinear", "border")
        return np.round(shown.transpose(1, 2, 0)).astype(np.uint8, order="C")

    def of_points(self, coords: np.ndarray) -> np.ndarray:
        """Convert points (P, 2) in [0, 1]² of the frame to pixels; keep those in the view."""
        x0, y0, x1, y1 = self.frame
        left, top, right, bottom = self.window
        in_image = coords * (x1 - x0, y1 - y0) + (x0, y0)
        in_window = (in_image - (left, top)) / (right - left, bottom - top)
        showing = ((in_window >= 0) & (in_window <= 1)).all(axis=1)
        return in_window[showing] * self.size[::-1]

    def zoomed(self, window: tuple[int, int, int, int], longest_side: int) -> "View":
        """Return the view of a part of this one, given in pixels of this view."""
        left, top, right, bottom = self.window
        scale = ((right - left) / self.size[1], (bottom - top) / self.size[0]) * 2
        x0, y0, x1, y1 = (v * s for v, s in zip(window, scale, strict=True))
        size = View.around(window, longest_side).size
        return View(self.frame, (left + x0, top + y0, left + x1, top + y1), size)

    def _sample(
        self,
        values: np.ndarray,
        frame: tuple[float, float, float, float],
        mode: str,
        padding_mode: str,
    ) -> np.ndarray:
        height, width = self.size
        left, top, right, bottom = self.window
        x0, y0, x1, y1 = frame
        x = (left + (np.arange(width) + 0.5) * (right - left) / width - x0) / (x1 - x0)
        y = (top + (np.arange(height) + 0.5) * (bottom - top) / height - y0) / (y1 - y0)
        coords = torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1))  # (H, W, 2)
        maps = torch.from_numpy(np.ascontiguousarray(values)).float()
        shown = point_sample(maps[None], coords[None].float(), mode=mode, padding_mode=padding_mode)
        return shown[0].numpy()
