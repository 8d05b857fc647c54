"""Photographs of a data set for reports and comparisons."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from point_rend.utils.bands import image_size, read_view

GRAY = 80  # in place of photographs


def read_photograph(
    image_root: Path, record: Mapping[str, Any], *, without_photographs: bool = False
) -> np.ndarray:
    """Read an image of a data set to look at it, and check its size.

    Args:
        image_root: Folder of the images.
        record: The image in the annotations, its name checked by `check_file_names`.
        without_photographs: Read nothing, and return plain gray.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it cannot be read, or if its size differs from that of its record.
    """
    size = (record["height"], record["width"])
    if without_photographs:
        return np.full((*size, 3), GRAY, np.uint8)
    file = image_root / record["file_name"]
    image = read_view(file)
    if image.shape[:2] != size:
        turned = image_size(file, is_turned=False)[::-1] == size
        hint = ", its size before its EXIF orientation turns it" if turned else ""
        raise ValueError(
            f"image {file} is of (height, width) {image.shape[:2]}, expected {size} as in the "
            f"annotations{hint}"
        )
    return image
