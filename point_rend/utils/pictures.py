"""Reading of pictures and label maps by the rule for models of gray or color of 8 bits.

Other models read images by :mod:`point_rend.utils.bands`.

The rule for every picture of a user:

- Integers of 16 bits keep their high byte, so 65535 becomes 255; so do 32-bit integers up to 65535.
  Floating-point numbers from 0 to 1 are multiplied by 255. Other values are an error, since no
  scale is right for all of them.
- Palettes become colors, an alpha channel is dropped, CMYK, YCbCr and CIELAB become RGB.
- EXIF's orientation is applied; one that cannot be read is ignored.
- Of a file with several frames the first one is read.

For 8-bit pictures the result is that of Detectron2's `read_image`, except for TIFF files with an
orientation, which it turns twice. The number of pixels is bounded; the environment variable
`POINT_REND_MAX_PIXELS` raises the bound.
"""

import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from point_rend.utils.reading import open_regular_file

logger = logging.getLogger(__name__)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Orders of the channels: Detectron2's, and modes of Pillow with 8 bits a channel.
ORDERS = ("BGR", "RGB", "L", "YUV-BT.601", "LA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
LIMIT_VARIABLE = "POINT_REND_MAX_PIXELS"
MAX_PIXELS = 178_956_970  # of a picture; Pillow refuses more
LARGE = 1 << 24  # pixels of a picture beyond which a process decodes one at a time
STRIP = 1 << 22  # pixels that are converted at a time

RAW = "a raw file of a camera"
# Their suffixes. Pillow takes many of them for a TIFF, and reads the thumbnail.
RAW_SUFFIXES = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
}
# Of further pictures that are not looked for in folders; some can be read if they are named.
OTHER_SUFFIXES = RAW_SUFFIXES | {
    *(".avif", ".exr", ".gif", ".hdr", ".heic", ".heif", ".hif", ".jfif", ".jp2", ".jxl", ".pgm"),
    *(".ppm", ".psd", ".tga"),
}
TIFF_IS_REDUCED = 254  # tag of a picture that is the thumbnail of another one
TIFF_DNG_VERSION = 50706
CANON_RAW = rb"II\*\0....CR"
# Formats of Pillow that start another program, or need one.
FOREIGN_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}
# Beginnings of files that are often found in place of a picture.
SIGNATURES = (
    (rb"version https://git-lfs", "a pointer of Git LFS (fetch the file with `git lfs pull`)"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|error)", "a web page"),
    (rb"(\xef\xbb\xbf)?\s*<(?=.*svg)", "SVG"),
    (rb"....ftyp(hei|hev|mif|msf)", "HEIC"),
    (rb"....ftypavi[fs]", "AVIF"),
    (rb"....ftypcrx", RAW),
    (rb"....ftyp", "a video"),
    (rb"\x1aE\xdf\xa3|RIFF....AVI |OggS", "a video"),
    (rb"FUJIFILMCCD-RAW|IIRO|IIU\0|FOVb", RAW),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?RADIANCE", "Radiance HDR"),
    (
        rb"\x89HDF|PK\x03\x04|\x1f\x8b|BZh|7z\xbc\xaf|Rar!",
        "an archive",
    ),
    (rb"\x93NUMPY", "an array, which is read for models with INPUT.CHANNELS or INPUT.BITS"),
    (rb".{128}DICM", "DICOM"),
)
HEAD = 512  # bytes that are compared with them

TIFF_SIZE = "_tile_size"  # attribute of a TIFF that Pillow itself turns; `size` is that after it
PNG_TEXTS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks that may hold EXIF's orientation
STRAY_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"}
STRAY_FOLDERS = {".ipynb_checkpoints", "__macosx", "@eadir", ".appledouble", "$recycle.bin"}

ROTATED_SIDEWAYS = (5, 6, 7, 8)  # values of EXIF's orientation
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Luma and color differences of BT.601, as rows of R, G, B.
RGB_TO_YUV = ((0.299, 0.587, 0.114), (-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))

# This module has a limit of its own, with an error.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
_decoding_large = threading.Lock()
_noted: set[str] = set()


class PictureError(ValueError):
    """A file is not a picture that can be used.

    Args:
        path: The file.
        fault: What is wrong, such as "is empty".
    """

    def __init__(self, path: str | Path, fault: str) -> None:
        super().__init__(f"{path} {fault}")
        self.path = str(path)
        self.fault = fault


def is_stray_file(path: Path) -> bool:
    """Return whether an operating system or a program has left a file among the user's.

    Args:
        path: A file, best relative to the folder that is read: names of folders count, too.
    """
    name = path.name.lower()
    return (
        name.startswith("._")
        or name in STRAY_NAMES
        or (name.startswith(".") and ".tmp" in name)  # as utils.files.LEFTOVERS
        or any(part.lower() in STRAY_FOLDERS for part in path.parts)
    )


def max_pixels() -> int:
    """Return the largest number of pixels that a picture may have.

    Raises:
        ValueError: If the environment variable is not a number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    if text and not (text.isdecimal() and int(text)):
        raise ValueError(f"environment variable {LIMIT_VARIABLE}: expected a number, got {text!r}")
    return int(text) if text else MAX_PIXELS


def open_file(path: str | Path, *, what: str = "image") -> BufferedReader:
    """Open the file of a picture.

    Args:
        path: A local file.
        what: Its role for messages.

    Raises:
        FileNotFoundError: If it does not exist.
        PictureError: If it is not a local and regular file, or cannot be read.
    """
    if "://" in str(path):
        raise PictureError(path, f"is a URL: the {what} has to be a local file, so download it")
    try:
        return open_regular_file(path, what=what)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no {what} {path}") from error
    except OSError as error:
        raise PictureError(path, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    except ValueError as error:  # not a regular file
        raise PictureError(path, f"cannot be read: {str(error).rpartition(': ')[2]}") from error


@contextmanager
def open_picture(path: str | Path, *, what: str = "image") -> Iterator[Image.Image]:
    """Open a picture with Pillow; its errors, also those within the block, name the file.

    Args:
        path: A local file.
        what: Its role for messages.

    Yields:
        The picture, not yet decoded.

    Raises:
        FileNotFoundError: If it does not exist.
        PictureError: If it is not a picture, not whole, too large or not a regular file, or cannot
            be read.
    """
    limit = max_pixels()
    if Image.MAX_IMAGE_PIXELS is not None and limit > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)
    if Path(path).suffix.lower() in RAW_SUFFIXES and os.path.isfile(path):
        raise PictureError(path, _of_format(RAW))
    with open_file(path, what=what) as file:
        head = b""
        try:
            head = file.read(HEAD)
            file.seek(0)
            with Image.open(file, formats=_formats()) as image:
                width, height = image.size
                if width * height > limit:
                    raise Image.DecompressionBombError(f"{width} x {height} pixels")
                if not width * height:
                    raise PictureError(path, f"has {width} x {height} pixels")
                if is_raw(image, head):
                    raise PictureError(path, _of_format(RAW))
                yield image
        except PictureError:
            raise
        except Image.DecompressionBombError as error:
            size = re.search(r"\d+( x \d+)? pixels", str(error))
            if Image.MAX_IMAGE_PIXELS is not None:
                limit = min(limit, 2 * Image.MAX_IMAGE_PIXELS)
            raise PictureError(
                path,
                f"is too large: it has {size.group() if size else 'more pixels'}, the limit is "
                f"{limit}; cut it into tiles, or raise the limit with the environment variable "
                f"{LIMIT_VARIABLE}",
            ) from error
        except MemoryError as error:
            raise PictureError(path, "is too large for the memory of this machine") from error
        # For a broken file Pillow raises almost any error, by format.
        except Exception as error:
            raise PictureError(path, _fault(head, error)) from error


def read_picture(path: str | Path, order: str = "BGR", *, what: str = "image") -> np.ndarray:
    """Read a picture.

    Args:
        path: A local file.
        order: As of :func:`to_array`.
        what: Role of the file for messages.

    Returns:
        As of :func:`to_array`.

    Raises:
        FileNotFoundError: As :func:`open_picture`.
        PictureError: As :func:`open_picture`, or if its values fit no scale.
    """
    with open_picture(path, what=what) as image:
        return to_array(image, order, name=str(path))


def read_gray_thumbnail(path: str | Path, side: int) -> np.ndarray:
    """Read the brightness of a picture, reduced to a square; a JPEG is decoded at a reduced size.

    Args:
        path: A local file.
        side: Side of the square in pixels.

    Returns:
        (side, side) uint8.

    Raises:
        FileNotFoundError: As :func:`open_picture`.
        PictureError: As :func:`read_picture`.
    """
    with open_picture(path) as image:
        image.draft("L", (side, side))
        load(image)
        gray = _converted(_eight_bits(turned(image), str(path)), "L")
        return np.asarray(gray.resize((side, side), Image.Resampling.BOX))


def read_label_map(path: str | Path, *, what: str = "label map") -> np.ndarray:
    """Read the values of a grayscale picture, or the indices of one with a palette.

    Args:
        path: A local file.
        what: Role of the file for messages.

    Returns:
        (H, W) uint8 if the values fit, else uint16 or int32.

    Raises:
        FileNotFoundError: As :func:`open_picture`.
        PictureError: As :func:`open_picture`, or if it has colors or fractions.
    """
    with open_picture(path, what=what) as image:
        return label_values(image, path)


def label_values(image: Image.Image, path: str | Path) -> np.ndarray:
    """Return the values of an open label map, as :func:`read_label_map`."""
    indexed = image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16")
    raw_mode = re.search(r"\bL;[24]\b", str(getattr(image, "tile", "")))
    load(image)
    if not indexed:
        raise PictureError(path, f"is of mode {image.mode}{_advice_on_labels(image)}")
    values = np.asarray(turned(image))
    if raw_mode:  # Pillow spreads fewer than 8 bits over the range up to 255
        values = values // {"L;2": 85, "L;4": 17}[raw_mode.group()]
    values = values.astype(values.dtype.newbyteorder("=") if values.dtype != bool else np.uint8)
    if values.dtype != np.uint8:
        low, high = values.min(), values.max()
        if low < 0:
            raise PictureError(path, f"has negative values, down to {low}")
        values = values.astype(next(t for t in (np.uint8, np.uint16, np.int32) if high <= _top(t)))
    return values


def to_array(image: Image.Image, order: str = "BGR", *, name: str = "the image") -> np.ndarray:
    """Convert a picture of Pillow by the rule of this module.

    Args:
        image: A picture of any mode; it may not be decoded yet.
        order: One of `ORDERS`, as INPUT.FORMAT; L is gray.
        name: Its file for messages.

    Returns:
        (H, W, C) uint8; floating-point numbers for YUV-BT.601.

    Raises:
        PictureError: If its values fit no scale.
    """
    if is_deep(image):
        _note("16 bits", "%s has 16 bits a channel, of which the upper 8 are used", name)
    if image.format != "MPO" and _has_more_frames(image):  # those of an MPO are previews
        _note("frames", "%s has several frames, of which the first is read", name)
    load(image)
    image = _eight_bits(turned(image), name)
    if order not in ("BGR", "RGB", "YUV-BT.601"):
        pixels = np.array(_converted(image, order))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]
    image = _converted(image, "RGB")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        whole = bottom - top == image.height
        strip = image if whole else image.crop((0, top, image.width, bottom))
        pixels[top:bottom] = np.asarray(strip)[:, :, :: -1 if order == "BGR" else 1]
    if order == "YUV-BT.601":
        return np.dot(pixels / 255.0, np.array(RGB_TO_YUV).T)
    return pixels


def from_bgr(pixels: np.ndarray, order: str) -> np.ndarray:
    """Convert a picture (H, W, 3) uint8 from BGR to another order, as of :func:`to_array`."""
    if order in ("BGR", "RGB"):
        return pixels if order == "BGR" else pixels[:, :, ::-1]
    return to_array(Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1])), order)


def is_deep(image: Image.Image) -> bool:
    """Return whether a picture that is not yet decoded has integers of more than 8 bits."""
    return image.mode.startswith("I") or ";16" in str(getattr(image, "tile", ""))


def exif_orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1 without one. This decodes a PNG that may have one."""
    try:
        if hasattr(image, TIFF_SIZE) or not _may_have_exif(image):
            return 1
        value = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # of broken EXIF data
        return 1
    return value if isinstance(value, int) and value in TRANSPOSITIONS else 1


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of a picture after EXIF's orientation."""
    width, height = image.size
    is_rotated = exif_orientation(image) in ROTATED_SIDEWAYS
    return (height, width) if is_rotated else (width, height)


def _may_have_exif(image: Image.Image) -> bool:
    """Return False for a PNG without chunks that may hold an orientation, else True.

    Pillow decodes a whole PNG to find out, since such chunks may follow the pixels.
    """
    file = getattr(image, "fp", None)
    if image.format != "PNG" or file is None or not getattr(image, "tile", ()):
        return True
    position = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            if head[4:] in PNG_TEXTS:
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(position)


def turned(image: Image.Image) -> Image.Image:
    """Return a decoded picture after EXIF's orientation."""
    orientation = exif_orientation(image)
    return image if orientation == 1 else image.transpose(TRANSPOSITIONS[orientation])


def _has_more_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is broken
        image.seek(0)
        return True


def load(image: Image.Image) -> None:
    """Decode a picture; large ones one at a time, for the sake of the memory."""
    if image.format == "TIFF":
        _check_strips(image)
    with _decoding_large if image.width * image.height > LARGE else nullcontext():
        image.load()


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of a picture before EXIF's orientation."""
    size: tuple[int, int] = getattr(image, TIFF_SIZE, image.size)
    return size


def _check_strips(image: Image.Image) -> None:
    """Refuse a TIFF whose parts do not cover the picture; the rest would be black."""
    extents = [tile[1] for tile in getattr(image, "tile", ())]
    if extents:
        covered = max(x[2] for x in extents), max(x[3] for x in extents)
        if min(np.subtract(covered, stored_size(image))) < 0:
            raise OSError(f"it has {covered[0]} x {covered[1]} of its pixels")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Convert a picture of one channel of 16 or 32 bits to 8 bits; return others unchanged."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray(to_eight_bits(np.asarray(image), name))


def to_eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Convert values by the rule of this module; those of 8 bits stay as they are.

    Args:
        values: (H, W) or (H, W, C), of integers or floating-point numbers.
        name: Their file, for messages.

    Returns:
        uint8, of the same shape.

    Raises:
        PictureError: If they fit no scale.
    """
    if values.dtype in (np.uint8, np.bool_):
        return values if values.dtype == np.uint8 else values * np.uint8(255)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise PictureError(
                name,
                f"has floating-point values from {low:g} to {high:g}: expected 0 to 1; save it "
                "with 8 bits a channel",
            )
        return _by_rows(values, lambda rows: rows * 255 + 0.5)
    if low < 0 or high > _top(np.uint16):
        raise PictureError(
            name,
            f"has {8 * values.dtype.itemsize}-bit values from {low} to {high}: expected 0 to "
            f"{_top(np.uint16)}; save it with 8 or 16 bits a channel",
        )
    if high < 1 << 12:
        _note(
            "12 bits",
            "%s is almost black: its values end at %d of 65535; scale 10 or 12 bits to 16 or 8, or "
            "set INPUT.BITS",
            name,
            high,
        )
    return _by_rows(values, lambda rows: rows >> 8)


def _by_rows(values: np.ndarray, to_8_bits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Convert values (H, W, ...) to uint8 without a second copy of all of them."""
    pixels = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // values.shape[1])
    for top in range(0, len(values), rows):
        pixels[top : top + rows] = to_8_bits(values[top : top + rows])
    return pixels


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if isinstance(image.info.get("transparency"), bytes) and mode in ("RGB", "L"):
        image = image.copy()  # the colors do not depend on it, but Pillow warns
        del image.info["transparency"]
    if image.mode in ("LAB", "La") and mode != "RGB":
        image = _converted(image, "RGB")
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert(mode)


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in FOREIGN_FORMATS]


def is_raw(image: Image.Image, head: bytes) -> bool:
    """Return whether a TIFF is a camera's raw file, of which Pillow reads the thumbnail."""
    tags: Any = getattr(image, "tag_v2", {})
    is_canon = re.match(CANON_RAW, head, re.DOTALL) is not None
    return is_canon or TIFF_DNG_VERSION in tags or tags.get(TIFF_IS_REDUCED) == 1


def _fault(head: bytes, error: Exception) -> str:
    """Describe why a file cannot be read as a picture."""
    if not head:
        return "is empty (0 bytes)"
    if not isinstance(error, UnidentifiedImageError):
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        return f"is truncated or broken ({reason or type(error).__name__})"
    for signature, name in SIGNATURES:
        if re.match(signature, head, re.DOTALL):
            return _of_format(name)
    if not any(head):
        return "is not an image: it begins with zeros"
    if all(byte >= 0x20 or byte in b"\t\n\r\f" for byte in head):
        return "is not an image, but a text"
    return "is truncated or not an image"


def _of_format(name: str) -> str:
    if name.startswith(("a pointer", "a web page", "an archive", "an array", "a video")):
        return f"is not an image, but {name}"
    return f"is {name}, which is not supported: convert it to JPEG or PNG"


def _advice_on_labels(image: Image.Image) -> str:
    expected = "expected 8-bit grayscale, whose values are the indices of the classes"
    if image.mode == "F":
        return f", with floating-point values: {expected}"
    bands = [np.asarray(band) for band in image.split()]
    colors = bands[:3] if len(bands) >= 3 else bands[:1]
    if all(np.array_equal(color, colors[0]) for color in colors):
        return f": {expected}; its colors are gray, so save it with one channel"
    return f", which codes classes by colors: {expected}; replace each color by an index"


def _top(dtype: Any) -> int:
    return int(np.iinfo(dtype).max)


def _note(kind: str, message: str, *values: Any) -> None:
    """Log a warning, once per kind and process."""
    if kind not in _noted:
        _noted.add(kind)
        logger.warning(message, *values)
