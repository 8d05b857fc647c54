"""Images as users give them: arrays, PIL images and files."""

import os

import numpy as np
from PIL import Image

from point_rend.utils.pictures import from_bgr, read_picture, to_array

ImageLike = np.ndarray | Image.Image | str | os.PathLike[str]


def to_pixels(image: ImageLike, order: str = "BGR") -> np.ndarray:
    """Convert an image to an array by the rule of `point_rend.utils.pictures`.

    Args:
        image: (H, W, 3) of type uint8 in BGR order, as Detectron2's `DefaultPredictor` takes it; a
            PIL image, or a path.
        order: Order of the colors, as INPUT.FORMAT.

    Returns:
        (H, W, C) uint8, of one channel for the order L.

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
        return from_bgr(image, order)
    if isinstance(image, Image.Image):
        return to_array(image, order)
    if isinstance(image, str | os.PathLike):
        return read_picture(os.fspath(image), order)
    raise TypeError(
        "expected an image as an array (H, W, 3), a PIL image or a path, got "
        f"{type(image).__name__}"
    )
