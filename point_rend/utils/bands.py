"""Reading of images for models of n channels or of more than 8 bits, and of other models alike.

Files and their readers:

- `.npy` arrays (H, W) or (H, W, B): NumPy, without pickles.
- TIFF with several channels that are not 8-bit colors, such as GeoTIFF: rasterio (optional extra).
- PNG of colors with 16 bits: OpenCV, since Pillow keeps 8 of them.
- All others: Pillow.

The meaning of the values for a model is defined by :mod:`point_rend.utils.pixel_format`. EXIF
is applied as by :mod:`point_rend.utils.pictures`, whose limit holds for four channels.
"""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from point_rend.utils.imports import not_installed
from point_rend.utils.pictures import (
    IMAGE_SUFFIXES,
    LIMIT_VARIABLE,
    PictureError,
    exif_orientation,
    is_deep,
    load,
    max_pixels,
    open_file,
    open_picture,
    read_picture,
    shown_size,
    stored_size,
    to_array,
    turned,
)
from point_rend.utils.pixel_format import (
    COLORS,
    EIGHT_BITS,
    MOST_BANDS,
    PixelFormat,
    arrange,
    to_model,
    to_view,
)

ARRAY_SUFFIX = ".npy"
ARRAY_MAGIC = b"\x93NUMPY"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are BigTIFF
BIG_TIFF = 43
LONGEST_HEADER = 10_000  # bytes
FULL_CHANNELS = 4  # of a picture with as many pixels as the limit
TURNS = {2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (3, 1), 6: (3, 0), 7: (1, 1), 8: (1, 0)}
# Of GDAL: no neighboring files (.aux.xml, .ovr, .msk, world files), no network, a small cache, and
# every error of reading, whatever is in the environment.
RASTER_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",
    "PROJ_NETWORK": "OFF",
    "GDAL_CACHEMAX": 1 << 27,
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GTIFF_DIRECT_IO": "NO",
    "GTIFF_VIRTUAL_MEM_IO": "NO",
}
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS = 256, 257, 258
TIFF_INTERPRETATION, TIFF_ORIENTATION, TIFF_BANDS = 262, 274, 277
TIFF_PLACES = (33550, 33922, 34264, 50844)  # pixel scale, tie points, transformation, RPCs
BLACK_IS_ZERO, RGB = 1, 2  # interpretations
PILLOW_BITS = 32  # of a channel, at most


class ArrayHeader(NamedTuple):
    """Header of a `.npy` file."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype


class TiffHeader(NamedTuple):
    """Header of the first picture of a TIFF file, as it is stored."""

    width: int
    height: int
    bands: int
    bits: int
    orientation: int
    interpretation: int
    is_georeferenced: bool = False  # and not turned

    @property
    def is_of_pillow(self) -> bool:
        """Whether Pillow reads all of it: one channel of up to 32 bits, or colors of 8 bits."""
        if self.bands == 1:
            return self.bits <= PILLOW_BITS
        return self.bands == COLORS and self.bits <= EIGHT_BITS

    @property
    def has_windows(self) -> bool:
        """Whether rasterio reads the same values, and can read a part of them."""
        deep = self.bits % EIGHT_BITS == 0 and self.orientation == 1
        return deep and self.interpretation in (BLACK_IS_ZERO, RGB)


Header = ArrayHeader | TiffHeader


def image_suffixes(pixel_format: PixelFormat) -> tuple[str, ...]:
    """Return the suffixes of the files that are images for a model."""
    return IMAGE_SUFFIXES if pixel_format.is_plain else (*IMAGE_SUFFIXES, ARRAY_SUFFIX)


def read_pixels(path: str | Path, pixel_format: PixelFormat, *, what: str = "image") -> np.ndarray:
    """Read an image as `Predictor` takes it.

    Args:
        path: A local file.
        pixel_format: Pixels that the model expects.
        what: Role of the file for messages.

    Returns:
        As of :func:`~point_rend.utils.pixel_format.arrange`.

    Raises:
        FileNotFoundError: If it does not exist.
        PictureError: If it cannot be read, or does not fit the model.
        ValueError: If a package is not installed that it needs.
    """
    if pixel_format.is_plain:
        return _read_plain(path, "BGR", what)
    return arrange(read_bands(path, what=what), pixel_format, name=str(path))


def read_input(path: str | Path, pixel_format: PixelFormat, *, what: str = "image") -> np.ndarray:
    """Read an image as the model takes it: (H, W, C), values from 0 to 255.

    Arguments and errors are those of :func:`read_pixels`.
    """
    if pixel_format.is_plain:
        return _read_plain(path, pixel_format.order, what)
    return to_model(read_pixels(path, pixel_format, what=what), pixel_format, name=str(path))


def _read_plain(path: str | Path, order: str, what: str) -> np.ndarray:
    """Read a picture of gray or colors; name the key for a TIFF with more channels."""
    try:
        return read_picture(path, order, what=what)
    except PictureError as error:
        header = read_header(path, what=what)
        if isinstance(header, TiffHeader) and header.bands > FULL_CHANNELS:
            fault = f"has {header.bands} channels: expected gray or colors, or INPUT.CHANNELS"
            raise PictureError(path, fault) from error
        raise


def read_view(path: str | Path, *, what: str = "image") -> np.ndarray:
    """Read an image of any kind to look at it, without a model.

    A `.npy` file and a TIFF of more than 4 channels, or of 4 with more than 8 bits, are shown by
    their first three channels (red, green, blue), the largest value white.

    Args:
        path: A local file.
        what: Role of the file for messages.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: As :func:`read_pixels`.
        PictureError: As :func:`read_pixels`.
        ValueError: As :func:`read_pixels`.
    """
    header = read_header(path, what=what)
    if isinstance(header, TiffHeader):
        deep = header.bands == FULL_CHANNELS and header.bits > 8
        if header.bands <= FULL_CHANNELS and not deep:
            header = None
    if header is None:
        return read_picture(path, what=what)
    bands = read_bands(path, what=what)
    return to_view(bands, PixelFormat("RGB", bands.shape[2]))


def image_size(path: str | Path, *, what: str = "image", is_turned: bool = True) -> tuple[int, int]:
    """Return width and height of an image of any kind without decoding it.

    Args:
        path: A local file.
        what: Role of the file for messages.
        is_turned: Whether after EXIF's orientation, as the image is shown, or before.

    Raises:
        FileNotFoundError: As :func:`read_pixels`.
        PictureError: As :func:`read_pixels`.
    """
    header = read_header(path, what=what)
    if isinstance(header, ArrayHeader):
        return header.shape[1], header.shape[0]
    if header is not None and not header.is_of_pillow:
        sideways = is_turned and TURNS.get(header.orientation, (0, 0))[0] % 2
        return (header.height, header.width) if sideways else (header.width, header.height)
    with open_picture(path, what=what) as image:
        return shown_size(image) if is_turned else stored_size(image)


def read_bands(path: str | Path, *, what: str = "image") -> np.ndarray:
    """Read all channels of an image as they are stored.

    Args:
        path: A local file.
        what: Role of the file for messages.

    Returns:
        (H, W, B), of the type of the file. Palettes become colors.

    Raises:
        FileNotFoundError: As :func:`read_pixels`.
        PictureError: If it cannot be read.
        ValueError: If rasterio is not installed, and the file is a TIFF that needs it.
    """
    with open_file(path, what=what) as file:
        header = _header(file, path)
        if isinstance(header, ArrayHeader):
            _check_extent(path, header.shape[1], header.shape[0], *header.shape[2:])
            return _read_array(file, header, path)
    if header is not None and not header.is_of_pillow:
        _check_extent(path, header.width, header.height, header.bands)
        with open_raster(path, what=what) as raster:
            bands = np.ascontiguousarray(np.moveaxis(raster.read(), 0, -1))
        return _turned_bands(bands, header.orientation)
    with open_picture(path, what=what) as image:
        if not is_deep(image) or image.mode.startswith("I"):
            return bands_of(image)
        orientation = exif_orientation(image)
        load(image)  # notices a file that is not whole
    colors = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    if colors is None:
        raise PictureError(path, "is truncated or broken (OpenCV cannot decode it)")
    order = [2, 1, 0, 3][: colors.shape[2]] if colors.ndim == 3 else [0]
    return _turned_bands(np.atleast_3d(colors)[:, :, order], orientation)


def pixels_of(image: Image.Image, pixel_format: PixelFormat) -> np.ndarray:
    """Return a picture of Pillow as `Predictor` takes it; see :func:`read_pixels`."""
    if pixel_format.is_plain:
        return to_array(image)
    return arrange(bands_of(image), pixel_format)


def bands_of(image: Image.Image) -> np.ndarray:
    """Return the channels (H, W, B) of a picture of Pillow, which keeps 8 bits of colors."""
    load(image)
    image = turned(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode in ("LAB", "HSV", "YCbCr"):
        image = image.convert("RGB")
    values = np.atleast_3d(np.asarray(image))
    if values.dtype == np.bool_:
        return values * np.uint8(255)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


@contextmanager
def open_raster(path: str | Path, *, what: str = "image") -> Iterator[Any]:
    """Open a TIFF with rasterio, which can read parts of it; errors, also in the block, name it.

    Args:
        path: A local file.
        what: Its role for messages.

    Yields:
        The dataset of rasterio.

    Raises:
        FileNotFoundError: If it does not exist.
        PictureError: If it cannot be read.
        ValueError: If rasterio is not installed.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError as error:
        raise not_installed("rasterio, which reads this TIFF", "geotiff") from error
    warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture need not be a map
    open_file(path, what=what).close()
    try:
        with (
            rasterio.Env(**RASTER_OPTIONS),
            rasterio.open(os.path.abspath(path), driver="GTiff") as dataset,
        ):
            yield dataset
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise PictureError(path, f"is truncated or broken ({reason})") from error


def read_header(path: str | Path, *, what: str = "image") -> Header | None:
    """Read the header of a `.npy` file or a TIFF; return None for other files and a broken TIFF.

    Args:
        path: A local file.
        what: Its role for messages.

    Raises:
        FileNotFoundError: If it does not exist.
        PictureError: If it cannot be read, or is a `.npy` file that holds no image.
    """
    with open_file(path, what=what) as file:
        return _header(file, path)


def _header(file: BufferedReader, path: str | Path) -> Header | None:
    """Read a header, as :func:`read_header`; the file stands behind that of an array then."""
    magic = file.read(len(ARRAY_MAGIC))
    file.seek(0)
    if magic == ARRAY_MAGIC:
        return _array_header(file, path)
    return _tiff_header(file) if magic.startswith(TIFF_MAGICS) else None


def _tiff_header(file: BufferedReader) -> TiffHeader | None:
    """Read the header of a TIFF; None if it is broken, which Pillow describes."""
    try:
        start = file.read(8)
        start += file.read(8) if BIG_TIFF in start[2:4] else b""
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(TIFF_BITS, 1)
        orientation = int(tags.get(TIFF_ORIENTATION, 1))
        return TiffHeader(
            int(tags[TIFF_WIDTH]),
            int(tags[TIFF_HEIGHT]),
            int(tags.get(TIFF_BANDS, 1)),
            max(bits) if isinstance(bits, tuple) else int(bits),
            orientation,
            int(tags.get(TIFF_INTERPRETATION, BLACK_IS_ZERO)),
            orientation == 1 and any(tag in tags for tag in TIFF_PLACES),
        )
    except MemoryError:
        raise
    except Exception:  # of Pillow, by the kind of damage
        return None


def _array_header(file: BufferedReader, path: str | Path) -> ArrayHeader:
    """Read and check the header of a `.npy` file."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        header = ArrayHeader(*read(file, max_header_size=LONGEST_HEADER))
    except KeyError as error:
        raise PictureError(path, f"is a .npy file of version {version}, expected 1 or 2") from error
    except Exception as error:  # of NumPy's parser, by the kind of damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PictureError(path, f"is a broken .npy file ({reason:.200})") from error
    shape, dtype = header.shape, header.dtype
    if dtype.kind not in "uif":
        kind = "Python objects" if dtype.hasobject else f"values of type {dtype}"
        raise PictureError(path, f"holds {kind}: expected an array of numbers")
    if len(shape) not in (2, 3) or not all(type(side) is int and side > 0 for side in shape):
        raise PictureError(path, f"has shape {shape}: expected (H, W) or (H, W, channels)")
    return header


def _read_array(file: BufferedReader, header: ArrayHeader, path: str | Path) -> np.ndarray:
    """Read the values behind the header of a `.npy` file."""
    _check_length(file, header, path)
    values = np.fromfile(file, header.dtype, math.prod(header.shape))
    values = values.reshape(header.shape, order="F" if header.is_fortran else "C")
    return np.atleast_3d(values.astype(header.dtype.newbyteorder("="), copy=False))


def map_array(path: str | Path, *, what: str = "image") -> np.ndarray | None:
    """Map the values (H, W, B) of a `.npy` file into memory; return None for another file.

    Args:
        path: A local file.
        what: Its role for messages.

    Raises:
        FileNotFoundError: As :func:`read_header`.
        PictureError: As :func:`read_header`.
    """
    with open_file(path, what=what) as file:
        header = _header(file, path)
        if not isinstance(header, ArrayHeader):
            return None
        _check_length(file, header, path)
        values = np.memmap(
            file,
            header.dtype,
            "r",
            offset=file.tell(),
            shape=header.shape,
            order="F" if header.is_fortran else "C",
        )
    return values if values.ndim == 3 else values[:, :, None]


def _check_length(file: BufferedReader, header: ArrayHeader, path: str | Path) -> None:
    """Refuse a `.npy` file that has fewer or more values than its header announces."""
    expected = math.prod(header.shape) * header.dtype.itemsize
    found = os.fstat(file.fileno()).st_size - file.tell()
    if found != expected:
        raise PictureError(
            path, f"is truncated or broken: its values take {found} bytes, expected {expected}"
        )


def check_bands(path: str | Path, bands: int) -> None:
    """Refuse an image whose header announces too many channels.

    Raises:
        PictureError: If it does.
    """
    if bands > MOST_BANDS:
        raise PictureError(path, f"has {bands} channels, expected {MOST_BANDS} at most")


def _check_extent(path: str | Path, width: int, height: int, bands: int = 1) -> None:
    """Refuse an image whose header announces too many values, before they are read."""
    check_bands(path, bands)
    limit = max_pixels()
    if width * height * max(bands, FULL_CHANNELS) > limit * FULL_CHANNELS:
        raise PictureError(
            path,
            f"is too large: it has {width} x {height} pixels of {bands} channels, the limit is "
            f"{limit} of {FULL_CHANNELS}; cut it into tiles, or raise the limit with the "
            f"environment variable {LIMIT_VARIABLE}",
        )


def _turned_bands(bands: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF's orientation to an array (H, W, B)."""
    quarters, is_flipped = TURNS.get(orientation, (0, 0))
    turned_by = np.rot90(bands, quarters)
    return np.ascontiguousarray(turned_by[:, ::-1] if is_flipped else turned_by)
