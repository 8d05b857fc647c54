"""Checks of image files."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO, NamedTuple, overload

from PIL import Image

from point_rend.data.datasets.classes import describe
from point_rend.utils.bands import image_size, read_pixels
from point_rend.utils.pictures import (
    PictureError,
    is_deep,
    load,
    open_picture,
    read_picture,
    shown_size,
    stored_size,
    to_array,
)
from point_rend.utils.pixel_format import PLAIN, PixelFormat

logger = logging.getLogger(__name__)
MAX_LISTED = 5  # faults in a message; the others are counted
END_OF_FILE = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
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
    name: str,
    images: Sequence[ImageRecord],
    *,
    skip_broken: bool = False,
    pixel_format: PixelFormat = PLAIN,
) -> list[ImageRecord]:
    """Make sure that every image exists, is complete and has the size of its record.

    Images of n channels or of more than 8 bits are read as a whole, to check their values.

    Args:
        name: Name of the data set, for messages.
        images: Its images.
        skip_broken: Whether the loader skips unusable images: a warning names them.
        pixel_format: Pixels that the model expects.

    Returns:
        The usable images.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If files are truncated, not images or not of the size of their record; with
            `skip_broken` only if all of them are.
    """
    with ThreadPoolExecutor(FILE_THREADS) as threads:
        exists = list(threads.map(lambda image: os.path.exists(image.file_name), images))
        missing = [image for image, there in zip(images, exists, strict=True) if not there]
        if missing:
            raise FileNotFoundError(
                f"{describe(name)}: {len(missing)} of {len(images)} images do not exist"
                + shortlist([f"image {image.image_id}, {image.file_name}" for image in missing])
            )
        found = list(threads.map(partial(examine_file, pixel_format=pixel_format), images))
    faults = [fault for fault, _ in found]
    deep = [
        image.file_name for image, (_, is_16_bits) in zip(images, found, strict=True) if is_16_bits
    ]
    if deep:
        logger.warning(
            "%s: %d of %d images have 16 bits a channel", describe(name), len(deep), len(images)
        )
        read_picture(deep[0])  # logs the rule that applies to them, once
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


def examine_file(record: ImageRecord, *, pixel_format: PixelFormat) -> tuple[str | None, bool]:
    """Check a file; return its fault, and whether it is a picture of 16 bits a channel.

    Args:
        record: The image.
        pixel_format: Pixels that the model expects.
    """
    return _read_header(record) if pixel_format.is_plain else _read_values(pixel_format, record)


def _read_header(record: ImageRecord) -> tuple[str | None, bool]:
    """Check a file; return its fault, and whether it is a picture of 16 bits a channel."""
    try:
        with open_picture(record.file_name) as image:
            file: BinaryIO = getattr(image, "fp")  # noqa: B009  Pillow does not declare it
            deep = is_deep(image)
            return _fault(record, image, file), deep
    except PictureError as error:
        return error.fault, False
    except OSError as error:
        return f"cannot be read ({error})", False


def _read_values(pixel_format: PixelFormat, record: ImageRecord) -> tuple[str | None, bool]:
    """Read a file for a model of other pixels than 8-bit colors; return as `_read_header`."""
    try:
        height, width, _ = read_pixels(record.file_name, pixel_format).shape
        stored = (width, height)
        if (record.width, record.height) not in ((None, None), stored):
            stored = image_size(record.file_name, is_turned=False)
    except PictureError as error:
        return error.fault, False
    except OSError as error:
        return f"cannot be read ({error})", False
    return _fault_of_size(record, (width, height), stored), False


def _fault(record: ImageRecord, image: Image.Image, file: BinaryIO) -> str | None:
    """Check the header and the end of a file; decode the pixels only in case of doubt."""
    stored = stored_size(image)
    end = END_OF_FILE.get(image.format or "")
    # Some cameras write more after the end mark, and other formats have none.
    if image.mode in ("I", "F"):
        to_array(image, name=record.file_name)  # are the values in range?
    elif end is None or not _ends_with(file, end):
        load(image)
    if record.width is None:
        return None
    return _fault_of_size(record, shown_size(image), stored)


def _fault_of_size(
    record: ImageRecord, shown: tuple[int, int], stored: tuple[int, int]
) -> str | None:
    """Compare width and height, as shown and as stored, with those of the record."""
    expected = (record.width, record.height)
    if record.width is None or shown == expected:
        return None
    fault = f"is {shown[0]} x {shown[1]} pixels, expected {expected[0]} x {expected[1]}"
    if shown != stored == expected:
        fault += (
            ", which is its size before its EXIF orientation turns it; annotate the turned image, "
            "or remove the orientation (exiftool -Orientation= FILE)"
        )
    return fault


def _ends_with(file: BinaryIO, end: bytes) -> bool:
    """Return whether a file has an ending; its position stays."""
    position = file.tell()
    file.seek(-len(end), os.SEEK_END)
    found = file.read()
    file.seek(position)
    return found == end


class Examples(Sequence[str]):
    """The items of a message, of which only the first few are kept."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def add(self, describe: Callable[[], str]) -> None:
        """Add an item; it is described only if it is one of the first."""
        if self._count < MAX_LISTED:
            self._first.append(describe())
        self._count += 1

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> Any:
        return self._first[key]


def shortlist(items: Sequence[str]) -> str:
    """Return the end of a message: the first few items and the number of the others."""
    more = [f"and {len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []
    return ": " + "; ".join([*items[:MAX_LISTED], *more])
