"""Training augmentation of PointRend's recipes."""

import random
from collections.abc import Callable

import cv2
import numpy as np
from fvcore.transforms.transform import Transform


class ColorAugSSDTransform(Transform):
    """The photometric distortion of SSD: random brightness, contrast, saturation and hue.

    Each of the four is applied with probability 1/2, brightness first, contrast either before the
    other two or after them. The values are drawn anew for every image, from Python's ``random``.

    Args:
        img_format: ``BGR`` or ``RGB``, the order of the channels of the (H, W, 3) uint8 images.
        brightness_delta: largest shift, in grey levels.
        contrast_low, contrast_high: range of the contrast's factor.
        saturation_low, saturation_high: range of the saturation's factor.
        hue_delta: largest turn of the hue, in units of 2 degrees.

    Raises:
        ValueError: for another ``img_format``.

    Source: Liu et al., "SSD: Single Shot MultiBox Detector".
    """

    def __init__(
        self,
        img_format: str,
        brightness_delta: float = 32,
        contrast_low: float = 0.5,
        contrast_high: float = 1.5,
        saturation_low: float = 0.5,
        saturation_high: float = 1.5,
        hue_delta: int = 18,
    ) -> None:
        super().__init__()
        if img_format not in ("BGR", "RGB"):
            raise ValueError(f"img_format (INPUT.FORMAT): expected BGR or RGB, got {img_format!r}")
        self.is_rgb = img_format == "RGB"
        self.brightness_delta = brightness_delta
        self.contrast_range = (contrast_low, contrast_high)
        self.saturation_range = (saturation_low, saturation_high)
        self.hue_delta = hue_delta

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the coordinates as they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the labels as they are."""
        return segmentation

    def apply_image(
        self,
        img: np.ndarray,
        interp: str | None = None,  # noqa: ARG002 (of the base class)
    ) -> np.ndarray:
        """Return a distorted copy of an (H, W, 3) uint8 image."""
        channels = [2, 1, 0] if self.is_rgb else [0, 1, 2]
        bgr = np.ascontiguousarray(img[:, :, channels])
        bgr = self._sometimes(self._shift_brightness, bgr)
        steps = [self._scale_saturation, self._turn_hue]
        steps.insert(0 if random.randrange(2) else 2, self._scale_contrast)
        for step in steps:
            bgr = self._sometimes(step, bgr)
        return np.ascontiguousarray(bgr[:, :, channels])

    @staticmethod
    def _sometimes(step: Callable[[np.ndarray], np.ndarray], bgr: np.ndarray) -> np.ndarray:
        return step(bgr) if random.randrange(2) else bgr

    @staticmethod
    def _linear(values: np.ndarray, factor: float = 1, shift: float = 0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)

    def _shift_brightness(self, bgr: np.ndarray) -> np.ndarray:
        delta = self.brightness_delta
        return self._linear(bgr, shift=random.uniform(-delta, delta))

    def _scale_contrast(self, bgr: np.ndarray) -> np.ndarray:
        return self._linear(bgr, factor=random.uniform(*self.contrast_range))

    def _scale_saturation(self, bgr: np.ndarray) -> np.ndarray:
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = self._linear(hsv[..., 1], factor=random.uniform(*self.saturation_range))
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    def _turn_hue(self, bgr: np.ndarray) -> np.ndarray:
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        turn = random.randint(-self.hue_delta, self.hue_delta)
        hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
