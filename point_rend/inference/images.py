"""Images as users give them: arrays, PIL images and files."""

import os

import numpy as np
from PIL import Image

from point_rend.utils.bands import bands_of, read_input
from point_rend.utils.pictures import to_array
from point_rend.utils.pixel_format import PLAIN, PixelFormat, arrange, to_model

ImageLike = np.ndarray | Image.Image | str | os.PathLike[str]


def to_pixels(image: ImageLike, pixel_format: PixelFormat = PLAIN) -> np.ndarray:
    """Convert an image to the values that a model reads.

    Args:
        image: (H, W, 3) of type uint8 in BGR order, as Detectron2's `DefaultPredictor` takes it; a
            PIL image, or a path. For a model of gray images, also (H, W). For other models, (H, W,
            C) with their number of channels, of type uint8 or, with INPUT.BITS above 8, uint16, or
            of floating-point numbers from 0 to 1.
        pixel_format: Pixels that the model expects.

    Returns:
        (H, W, C), from 0 to 255: uint8, or floating-point numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError, ValueError: If the image is of another kind, or the file cannot be read.
    """
    if isinstance(image, np.ndarray):
        return to_model(image, pixel_format)
    if isinstance(image, Image.Image):
        if pixel_format.is_plain:
            return to_array(image, pixel_format.order)
        return to_model(arrange(bands_of(image), pixel_format), pixel_format)
    if isinstance(image, str | os.PathLike):
        return read_input(os.fspath(image), pixel_format)
    raise TypeError(
        "expected an image as an array (H, W, 3), a PIL image or a path, got "
        f"{type(image).__name__}"
    )
