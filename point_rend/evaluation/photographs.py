"""Photographs of a data set, read only from its own folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from point_rend.utils.json_files import shown
from point_rend.utils.pictures import open_picture, read_picture

GRAY = 80  # in place of photographs


def photograph_path(image_root: Path, file_name: str) -> Path:
    """Return the path of an image; links within its folder are followed.

    Args:
        image_root: Folder of the images.
        file_name: Name in the annotations, relative to the folder or an absolute path in it.

    Raises:
        ValueError: If the name leaves the folder.
    """
    root = os.path.abspath(image_root)
    path = Path(os.path.abspath(os.path.join(root, file_name)))
    if not path.is_relative_to(root) or path == Path(root):
        raise ValueError(
            f"the annotations name the image {shown(file_name)}: expected a file in the image "
            f"folder {image_root}"
        )
    return path


def read_photograph(
    image_root: Path, record: Mapping[str, Any], *, without_photographs: bool = False
) -> np.ndarray:
    """Read an image of a data set, and check its size.

    Args:
        image_root: Folder of the images.
        record: The image in the annotations.
        without_photographs: Read nothing, and return plain gray.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is elsewhere, if it cannot be read, or if its size differs from that of
            its record.
    """
    size = (record["height"], record["width"])
    file = photograph_path(image_root, record["file_name"])
    if without_photographs:
        return np.full((*size, 3), GRAY, np.uint8)
    image = read_picture(file)
    if image.shape[:2] != size:
        with open_picture(file) as opened:
            turned = opened.size[::-1] == size
        hint = ", its size before its EXIF orientation turns it" if turned else ""
        raise ValueError(
            f"image {file} is of (height, width) {image.shape[:2]}, expected {size} as in the "
            f"annotations{hint}"
        )
    return image
