"""The color augmentation of SSD.

Source: Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation
from fvcore.transforms.transform import Transform


class ColorStep(NamedTuple):
    """One step of a distortion: a function of a BGR image (H, W, 3) uint8, and its drawn value."""

    function: Callable[[np.ndarray, float], np.ndarray]
    value: float


class ColorTransform(Transform):
    """A transform of colors: coordinates and labels stay as they are."""

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Return the coordinates as they are."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Return the labels as they are."""
        return segmentation


class DrawnColorTransform(ColorTransform):
    """A photometric distortion with fixed steps, the same for every image.

    Args:
        steps: the steps, applied in order to a BGR image.
        is_rgb: whether images are in RGB order.
    """

    def __init__(self, steps: Sequence[ColorStep], *, is_rgb: bool) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.is_rgb = is_rgb

    def apply_image(
        self,
        img: np.ndarray,
        interp: str | None = None,  # noqa: ARG002 (of the base class)
    ) -> np.ndarray:
        """Return a distorted copy of an (H, W, 3) uint8 image."""
        channels = [2, 1, 0] if self.is_rgb else [0, 1, 2]
        bgr = np.ascontiguousarray(img[:, :, channels])
        for step in self.steps:
            bgr = step.function(bgr, step.value)
        return np.ascontiguousarray(bgr[:, :, channels])


class ColorAugSSDTransform(ColorTransform):
    """The photometric distortion of SSD: random brightness, contrast, saturation and hue.

    Each of the four is applied with probability 1/2, brightness first, contrast either before or
    after the other two. New values are drawn from Python's ``random`` for every image;
    :class:`ColorAugSSD` draws one distortion per sample.

    Args:
        img_format: ``BGR`` or ``RGB``, the order of the channels of the (H, W, 3) uint8 images.
        brightness_delta: largest shift, in gray levels.
        contrast_low, contrast_high: range of the contrast factor.
        saturation_low, saturation_high: range of the saturation factor.
        hue_delta: largest shift of the hue, in units of 2 degrees.

    Raises:
        ValueError: if ``img_format`` is neither.
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

    def apply_image(
        self,
        img: np.ndarray,
        interp: str | None = None,  # noqa: ARG002 (of the base class)
    ) -> np.ndarray:
        """Return a distorted copy of an (H, W, 3) uint8 image."""
        return self.draw().apply_image(img)

    def draw(self) -> DrawnColorTransform:
        """Draw the steps of one distortion."""
        steps = self._with_probability_half(_shift_brightness, self._draw_brightness)
        rest: list[tuple[Callable[[np.ndarray, float], np.ndarray], Callable[[], float]]] = [
            (_scale_saturation, self._draw_saturation),
            (_shift_hue, self._draw_hue),
        ]
        rest.insert(0 if random.randrange(2) else 2, (_scale_and_shift, self._draw_contrast))
        for function, draw_value in rest:
            steps += self._with_probability_half(function, draw_value)
        return DrawnColorTransform(steps, is_rgb=self.is_rgb)

    @staticmethod
    def _with_probability_half(
        function: Callable[[np.ndarray, float], np.ndarray], draw_value: Callable[[], float]
    ) -> list[ColorStep]:
        return [ColorStep(function, draw_value())] if random.randrange(2) else []

    def _draw_brightness(self) -> float:
        return random.uniform(-self.brightness_delta, self.brightness_delta)

    def _draw_contrast(self) -> float:
        return random.uniform(*self.contrast_range)

    def _draw_saturation(self) -> float:
        return random.uniform(*self.saturation_range)

    def _draw_hue(self) -> float:
        return random.randint(-self.hue_delta, self.hue_delta)


class ColorAugSSD(Augmentation):
    """The distortion of :class:`ColorAugSSDTransform`, drawn once per sample.

    Args:
        img_format: ``BGR`` or ``RGB``, the order of the channels of the (H, W, 3) uint8 images.

    Raises:
        ValueError: if ``img_format`` is neither.
    """

    def __init__(self, img_format: str) -> None:
        super().__init__()
        self.img_format = img_format
        self.distribution = ColorAugSSDTransform(img_format)

    def get_transform(self, image: np.ndarray) -> Transform:  # noqa: ARG002 (of the base class)
        """Draw a distortion."""
        return self.distribution.draw()


def _scale_and_shift(values: np.ndarray, factor: float = 1, shift: float = 0) -> np.ndarray:
    return np.clip(values.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)


def _shift_brightness(bgr: np.ndarray, shift: float) -> np.ndarray:
    return _scale_and_shift(bgr, shift=shift)


def _scale_saturation(bgr: np.ndarray, factor: float) -> np.ndarray:
    hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
    hsv[..., 1] = _scale_and_shift(hsv[..., 1], factor)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def _shift_hue(bgr: np.ndarray, shift: float) -> np.ndarray:
    hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + int(shift)) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
