"""Images as users give them: arrays, PIL images and files."""

import os
from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image, ImageOps

from point_rend.data.checks.image_files import MODES_BEYOND_8_BITS

ImageLike = np.ndarray | Image.Image | str | os.PathLike[str]


def to_bgr(image: ImageLike) -> np.ndarray:
    """Convert an image to the array that OpenCV would read.

    Args:
        image: (H, W, 3) of type uint8 in BGR order, as Detectron2's `DefaultPredictor` takes it; a
            PIL image of 8 bits per channel, or its path. EXIF orientation is applied, an alpha
            channel is dropped.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError, ValueError: If the image is of another kind, or the file cannot be read.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                "expected an array (H, W, 3) of type uint8 in BGR order, got shape "
                f"{image.shape} of type {image.dtype}"
            )
        return image
    if isinstance(image, Image.Image):
        return _convert(image)
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    raise TypeError(
        "expected an image as an array (H, W, 3), a PIL image or a path, got "
        f"{type(image).__name__}"
    )


def read_image(file: Path) -> np.ndarray:
    """Read an image (H, W, 3) uint8, BGR, turned as its EXIF orientation asks.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    if not file.exists():
        raise FileNotFoundError(f"there is no image {file}")
    try:
        with Image.open(file) as image:
            return _convert(image)
    # Pillow reports a broken file as any of the first three, by format.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{file}: {reason}") from error


def _convert(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(MODES_BEYOND_8_BITS):
        raise ValueError(f"the image is of mode {image.mode}: expected 8 bits per channel")
    return np.ascontiguousarray(convert_PIL_to_numpy(ImageOps.exif_transpose(image), "BGR"))
