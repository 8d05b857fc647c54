"""Windows of pictures that need not fit into memory.

A window has the pixels that the same part of the whole picture has after `utils.pictures`, bit for
bit. A TIFF is read window by window with the package rasterio, where its layout allows that; any
other picture is decoded once, when it is opened.

GDAL, the library below rasterio, opens URLs, follows references from one file to another, and knows
over a hundred formats. Here it gets regular local files only, through its driver GTiff only, and
sees neither their neighbors nor the network.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from point_rend.tiling.grid import Window
from point_rend.utils.bands import (
    TiffHeader,
    check_bands,
    map_array,
    open_raster,
    read_header,
    read_pixels,
)
from point_rend.utils.imports import not_installed
from point_rend.utils.pictures import HEAD, PictureError, is_raw, max_pixels, to_array
from point_rend.utils.pixel_format import EIGHT_BITS, PLAIN, PixelFormat, arrange, check_shape
from point_rend.utils.reading import open_regular_file

TIFF_SUFFIXES = (".tif", ".tiff")
# Bounds of files that are read window by window.
MAX_WINDOWED_PIXELS = 1 << 36  # the environment variable of pictures raises it, too
MAX_RATIO = 1 << 16  # of the bytes of the pixels to those of the file
MAX_BLOCK = 1 << 28  # bytes of a tile or strip, which is decoded as a whole

YCBCR = 6  # photometric interpretation; in a JPEG, GDAL smooths the colors, and Pillow does not
# Raw modes of Pillow, without the order of the bytes, whose bands are read as they are stored, and
# the number of them that is read.
LAYOUTS = dict.fromkeys(("L", "P", "I;16", "F;32F"), 1) | {"LA": 2}
LAYOUTS |= dict.fromkeys(("RGB", "RGBX", "RGBXX", "RGBXXX", "RGBA", "RGBAX", "RGBAXX"), 3)
LAYOUTS |= dict.fromkeys(("RGB;16", "RGBX;16", "RGBA;16"), 3)


class WindowedImage(Protocol):
    """A picture that is read part by part."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, as the picture is shown."""

    @property
    def georeference(self) -> Mapping[str, Any]:
        """Arguments of rasterio for a file of the same place; empty without a georeference."""

    def read(self, window: Window) -> np.ndarray:
        """Return the pixels of a window that lies within the picture.

        Returns:
            (h, w, 3) uint8 in BGR order; or as a model expects them, see
            :func:`~point_rend.utils.pixel_format.arrange`.

        Raises:
            PictureError: If this part of the file is broken, or its values fit no scale.
        """


class DecodedImage:
    """A picture that is in memory, or mapped into it.

    Args:
        pixels: (H, W, 3) uint8 in BGR order.
        georeference: As of :class:`WindowedImage`.
    """

    def __init__(
        self, pixels: np.ndarray, georeference: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.pixels = pixels
        self.georeference = georeference

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.pixels.shape[:2]
        return height, width

    def read(self, window: Window) -> np.ndarray:
        """Return the pixels of a window, as :class:`WindowedImage`."""
        return np.array(self.pixels[window.slices])


class TiffImage:
    """A TIFF that is read window by window, by one thread at a time.

    Args:
        path: The file, for messages.
        dataset: It, opened by rasterio.
        bands: Number of its bands that are read, from the first.
        palette: (256, 3) uint8 in RGB order, if the band has indices of it.
        georeference: As of :class:`WindowedImage`.
    """

    def __init__(
        self,
        path: str,
        dataset: Any,
        bands: int,
        palette: np.ndarray | None = None,
        georeference: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self.dataset = dataset
        self.bands = list(range(1, bands + 1))
        self.palette = palette
        self.georeference = georeference

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.dataset.height, self.dataset.width

    def read(self, window: Window) -> np.ndarray:
        """Return the pixels of a window, as :class:`WindowedImage`."""
        values = self._values(window)
        values = values[0] if len(values) == 1 else np.moveaxis(values, 0, 2)
        if self.palette is not None:
            values = self.palette[values]
        if values.ndim == 3 and values.dtype == np.uint16:
            values = (values >> 8).astype(np.uint8)
        return to_array(Image.fromarray(np.ascontiguousarray(values)), name=self.path)

    def _values(self, window: Window) -> np.ndarray:
        """Read the bands (B, h, w) of a window."""
        rows, columns = (window.top, window.bottom), (window.left, window.right)
        try:
            return self.dataset.read(self.bands, window=(rows, columns))
        except Exception as error:  # almost any, by the fault of the file
            raise PictureError(self.path, f"is truncated or broken ({_reason(error)})") from error


class BandsOfTiff(TiffImage):
    """A TIFF for a model of n channels or of more than 8 bits, read window by window.

    Args:
        path: The file, for messages.
        dataset: It, opened by rasterio.
        pixel_format: Pixels that the model expects.
        georeference: As of :class:`WindowedImage`.
    """

    def __init__(
        self,
        path: str,
        dataset: Any,
        pixel_format: PixelFormat,
        georeference: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__(path, dataset, dataset.count, georeference=georeference)
        self.pixel_format = pixel_format

    def read(self, window: Window) -> np.ndarray:
        """Return the pixels of a window, as `Predictor` takes them."""
        bands = np.moveaxis(self._values(window), 0, 2)
        return np.ascontiguousarray(arrange(bands, self.pixel_format, name=self.path))


class BandsOfArray(DecodedImage):
    """A `.npy` file for such a model, mapped into memory.

    Args:
        path: The file, for messages.
        pixels: (H, W, B).
        pixel_format: Pixels that the model expects.
    """

    def __init__(self, path: str, pixels: np.ndarray, pixel_format: PixelFormat) -> None:
        super().__init__(pixels)
        self.path = path
        self.pixel_format = pixel_format

    def read(self, window: Window) -> np.ndarray:
        """Return the pixels of a window, as `Predictor` takes them."""
        bands = np.array(self.pixels[window.slices])
        return np.ascontiguousarray(arrange(bands, self.pixel_format, name=self.path))


@contextmanager
def open_windows(
    source: str | os.PathLike[str] | np.ndarray, pixel_format: PixelFormat = PLAIN
) -> Iterator[WindowedImage]:
    """Open a picture for reading window by window.

    Args:
        source: A local file; or an array as `Predictor` takes it, such as a `numpy.memmap`.
        pixel_format: Pixels that the model expects.

    Yields:
        The picture.

    Raises:
        FileNotFoundError: If there is no such file.
        PictureError: If it is not a picture, broken, or too large: a TIFF that is read window by
            window may be larger than other pictures.
        ValueError: If an array has another shape or type, or rasterio is needed for a large TIFF
            and not installed.
    """
    if isinstance(source, np.ndarray):
        check_shape(source, pixel_format)
        yield DecodedImage(source)
        return
    path = os.fspath(source)
    mapped = None if pixel_format.is_plain else map_array(path)
    if mapped is not None:
        yield BandsOfArray(path, mapped, pixel_format)
        return
    header = read_header(path)
    if not isinstance(header, TiffHeader):
        yield DecodedImage(read_pixels(path, pixel_format))
        return
    with ExitStack() as stack:
        yield _open_tiff(path, header, pixel_format, stack)


def is_georeferenced(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a TIFF with a place on a map, and rasterio can read this place."""
    try:
        header = read_header(os.fspath(path))
    except (OSError, ValueError):
        return False
    return isinstance(header, TiffHeader) and header.is_georeferenced and _has_rasterio()


def _open_tiff(
    path: str, header: TiffHeader, pixel_format: PixelFormat, stack: ExitStack
) -> WindowedImage:
    layout = _layout(path) if pixel_format.is_plain else None
    has_windows = header.has_windows
    if pixel_format.is_plain:
        is_large = header.width * header.height > max_pixels()
        has_windows = layout is not None and (layout.is_exact or is_large)
        if has_windows and is_large and not _has_rasterio():
            raise PictureError(
                path,
                f"has {header.width} x {header.height} pixels, more than the limit of "
                f"{max_pixels()} for a picture that is decoded at once: "
                f"{not_installed('rasterio', 'geotiff')}",
            )
    dataset, place = None, dict[str, Any]()
    if _has_rasterio() and (has_windows or header.is_georeferenced):
        _check_amount(path, header)
        dataset = stack.enter_context(open_raster(path))
        if header.is_georeferenced:
            place = _place(path, dataset)
    if dataset is None or not has_windows:
        return DecodedImage(read_pixels(path, pixel_format), place)
    _check_blocks(path, dataset)
    if layout is None:
        return BandsOfTiff(path, dataset, pixel_format, place)
    return TiffImage(path, dataset, layout.bands, layout.palette, place)


def _place(path: str, dataset: Any) -> dict[str, Any]:
    """Return the georeference of a file that has one, as of :class:`WindowedImage`."""
    from rasterio.crs import CRS

    try:
        points, system = dataset.gcps
        if points:
            place = {"crs": system or CRS(), "gcps": points}
        else:
            place = {"crs": dataset.crs, "transform": dataset.transform}
        return place | ({"rpcs": dataset.rpcs} if dataset.rpcs else {})
    except Exception as error:  # almost any, by the fault of the file
        raise PictureError(path, f"has a broken georeference ({_reason(error)})") from error


def _has_rasterio() -> bool:
    return find_spec("rasterio") is not None


class _Layout(NamedTuple):
    """Bands of a TIFF from which the colors are computed as Pillow computes them.

    Attributes:
        bands: Number of bands to read, from the first.
        is_exact: Whether GDAL decodes the same values as Pillow.
        palette: As of :class:`TiffImage`.
    """

    bands: int
    is_exact: bool
    palette: np.ndarray | None


def _layout(path: str) -> _Layout | None:
    """Read the layout of a TIFF; return None where it takes Pillow to convert the bands."""
    if not path.lower().endswith(TIFF_SUFFIXES):
        return None
    try:
        with open_regular_file(path, what="image") as file:
            head = file.read(HEAD)
            file.seek(0)
            image = TiffImagePlugin.TiffImageFile(file)  # Image.open refuses large ones
            return None if is_raw(image, head) else _of_tags(image)
    except Exception:  # almost any, by the fault of the file, which `read_pixels` describes
        return None


def _of_tags(image: TiffImagePlugin.TiffImageFile) -> _Layout | None:
    tags: Any = image.tag_v2
    arguments: Any = image.tile[0].args
    raw_mode = re.sub(r"(?<=;16)[BLN]$", "", str(arguments[0]))
    if raw_mode == "R" and max(tags[TiffImagePlugin.BITSPERSAMPLE]) == EIGHT_BITS:
        raw_mode = image.mode  # band after band, uncompressed
    is_ycbcr = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == YCBCR
    is_ours = not is_ycbcr or image.info.get("compression") == "jpeg"
    if raw_mode not in LAYOUTS or not is_ours or tags.get(ExifTags.Base.Orientation, 1) != 1:
        return None
    palette = None
    if raw_mode == "P":
        palette = np.array(tags[TiffImagePlugin.COLORMAP]).reshape(3, -1).T // 256
        palette = palette.astype(np.uint8)
        if len(palette) != 1 << EIGHT_BITS:
            return None
    return _Layout(LAYOUTS[raw_mode], not is_ycbcr, palette)


def _check_amount(path: str, header: TiffHeader) -> None:
    """Refuse a file that declares more pixels than anybody has, or than it can hold."""
    check_bands(path, header.bands)
    size = f"{header.width} x {header.height} pixels"
    limit = max(MAX_WINDOWED_PIXELS, max_pixels())
    if header.width * header.height > limit:
        raise PictureError(path, f"is too large: it has {size}, the limit is {limit}")
    num_bytes = header.width * header.height * header.bands * -(-header.bits // EIGHT_BITS)
    found = os.path.getsize(path)
    if num_bytes > MAX_RATIO * found:
        raise PictureError(path, f"is broken: it declares {size}, but has {found} bytes")


def _check_blocks(path: str, dataset: Any) -> None:
    """Refuse tiles or strips so large that one of them takes much memory."""
    height, width = dataset.block_shapes[0]
    block = height * width * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    if block > MAX_BLOCK:
        raise PictureError(
            path,
            f"is stored in blocks of {width}×{height} pixels, which are decoded as a whole: "
            f"expected at most {MAX_BLOCK} bytes; store it in tiles, such as by `rio convert --co "
            "tiled=yes`",
        )


def _reason(error: BaseException) -> str:
    """Return the first cause of an error in one line, without the folder of the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
