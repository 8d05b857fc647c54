"""Checks of image files."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from point_rend.data.datasets.classes import describe

logger = logging.getLogger(__name__)
MAX_LISTED = 5  # faults in a message; the others are counted
END_OF_FILE = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
MODES_BEYOND_8_BITS = ("I", "F")  # first letters of Pillow modes that it would clip at 255
ROTATED_SIDEWAYS = (5, 6, 7, 8)  # values of EXIF's orientation
FILE_THREADS = 16
Annotation = dict[str, Any]


class ImageRecord(NamedTuple):
    """One image of a data set; the sides are None if the data set does not give them."""

    file_name: str
    image_id: int | str
    height: int | None
    width: int | None
    annotations: Sequence[Annotation]


def check_image_files(
    name: str, images: Sequence[ImageRecord], *, skip_broken: bool = False
) -> list[ImageRecord]:
    """Make sure that every image exists, is complete and has the size of its record.

    Args:
        name: Name of the data set, for messages.
        images: Its images.
        skip_broken: Whether the loader skips unusable images: a warning names them.

    Returns:
        The usable images.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If files are truncated, not images or not of the size of their record; with
            `skip_broken` only if all of them are.
    """
    with ThreadPoolExecutor(FILE_THREADS) as threads:
        exists = list(threads.map(lambda image: os.path.isfile(image.file_name), images))
        missing = [image for image, there in zip(images, exists, strict=True) if not there]
        if missing:
            raise FileNotFoundError(
                f"{describe(name)}: {len(missing)} of {len(images)} images do not exist"
                + shortlist([f"image {image.image_id}, {image.file_name}" for image in missing])
            )
        faults = list(threads.map(_image_fault, images))
    broken = [
        f"image {image.image_id}, {image.file_name} {fault}"
        for image, fault in zip(images, faults, strict=True)
        if fault
    ]
    if broken:
        message = f"{describe(name)}: {len(broken)} of {len(images)} images cannot be used"
        if not skip_broken or len(broken) == len(images):
            raise ValueError(message + shortlist(broken))
        logger.warning("%s and are skipped%s", message, shortlist(broken))
    return [image for image, fault in zip(images, faults, strict=True) if not fault]


def _image_fault(record: ImageRecord) -> str | None:
    """Check the header and the end of an image file; decode the pixels only in case of doubt."""
    try:
        with open(record.file_name, "rb") as file, Image.open(file) as image:
            if image.mode.startswith(MODES_BEYOND_8_BITS):
                return f"is of mode {image.mode}: expected 8 bits per channel"
            width, height = image.size
            if record.width is not None and is_rotated_sideways(image):
                width, height = height, width
            end = END_OF_FILE.get(image.format or "")
            if end is not None:
                file.seek(-len(end), os.SEEK_END)
                whole = file.read() == end
            if end is None or not whole:
                # Some cameras write more after the end mark, and other formats have none.
                file.seek(0)
                with Image.open(file) as decoded:
                    decoded.load()
    except Image.DecompressionBombError as error:
        return f"is too large: cut it into tiles ({error})"
    except (OSError, ValueError, SyntaxError) as error:
        return f"is truncated or not an image ({error})"
    if record.width is not None and (width, height) != (record.width, record.height):
        return f"is {width} x {height} pixels, expected {record.width} x {record.height}"
    return None


def is_rotated_sideways(image: Image.Image) -> bool:
    """Return whether reading an image rotates it by 90 degrees; this decodes a PNG."""
    return image.getexif().get(ExifTags.Base.Orientation) in ROTATED_SIDEWAYS


def shortlist(items: Sequence[str]) -> str:
    """Return the end of a message: the first few items and the number of the others."""
    more = [f"and {len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []
    return ": " + "; ".join([*items[:MAX_LISTED], *more])
