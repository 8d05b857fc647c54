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
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from point_rend.tiling.grid import Window
from point_rend.utils.bands import (
    RASTER_OPTIONS,
    TiffHeader,
    map_array,
    open_raster,
    read_header,
    read_pixels,
)
from point_rend.utils.imports import not_installed
from point_rend.utils.pictures import (
    HEAD,
    PictureError,
    is_raw,
    max_pixels,
    read_picture,
    to_array,
)
from point_rend.utils.pixel_format import PLAIN, PixelFormat, arrange, check_shape
from point_rend.utils.reading import open_regular_file

TIFF_SUFFIXES = (".tif", ".tiff")
# Bounds of files that are read window by window.
MAX_WINDOWED_PIXELS = 1 << 36  # the environment variable of pictures raises it, too
MAX_RATIO = 1 << 16  # of the bytes of the pixels to those of the file
MAX_BLOCK = 1 << 28  # bytes of a tile or strip, which is decoded as a whole

GEOREFERENCE = (33550, 33922, 34264)  # pixel scale, tie points, transformation; tags of a TIFF
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
    """

    georeference: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

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
    """

    def __init__(
        self, path: str, dataset: Any, bands: int, palette: np.ndarray | None = None
    ) -> None:
        self.path = path
        self.dataset = dataset
        self.bands = list(range(1, bands + 1))
        self.palette = palette

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.dataset.height, self.dataset.width

    @property
    def georeference(self) -> Mapping[str, Any]:
        """Coordinate reference system and transformation, for `rasterio.open`."""
        if self.dataset.transform.is_identity:
            return {}
        return {"crs": self.dataset.crs, "transform": self.dataset.transform}

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
    """

    def __init__(self, path: str, dataset: Any, pixel_format: PixelFormat) -> None:
        super().__init__(path, dataset, dataset.count)
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
    if not pixel_format.is_plain:
        if isinstance(source, np.ndarray):
            check_shape(source, pixel_format)
            yield DecodedImage(source)
        else:
            with _open_bands(os.fspath(source), pixel_format) as image:
                yield image
        return
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise ValueError(
                "expected an array (H, W, 3) of type uint8 in BGR order, got shape "
                f"{source.shape} of type {source.dtype}"
            )
        yield DecodedImage(source)
        return
    path = os.fspath(source)
    layout = _layout(path)
    if layout is not None and layout.bands and (layout.is_exact or layout.pixels > max_pixels()):
        try:
            import rasterio
        except ImportError as error:
            if layout.pixels > max_pixels():
                raise PictureError(
                    path,
                    f"has {layout.pixels} pixels, more than the limit of {max_pixels()} for a "
                    f"picture that is decoded at once: {not_installed('rasterio', 'geotiff')}",
                ) from error
        else:
            _check_amount(path, layout)
            with rasterio.Env(**RASTER_OPTIONS), _opened(rasterio, path) as dataset:
                _check_blocks(path, dataset)
                yield TiffImage(path, dataset, layout.bands, layout.palette)
            return
    yield DecodedImage(read_picture(path))


@contextmanager
def _open_bands(path: str, pixel_format: PixelFormat) -> Iterator[WindowedImage]:
    """Open a file for a model of n channels or of more than 8 bits."""
    mapped = map_array(path)
    if mapped is not None:
        yield BandsOfArray(path, mapped, pixel_format)
        return
    header = read_header(path)
    if isinstance(header, TiffHeader) and header.has_windows:
        limit = max(MAX_WINDOWED_PIXELS, max_pixels())
        if header.width * header.height * header.bands > limit:
            raise PictureError(
                path,
                f"is too large: it has {header.width} x {header.height} pixels of {header.bands} "
                f"channels, the limit is {limit} values",
            )
        with open_raster(path) as dataset:
            _check_blocks(path, dataset)
            yield BandsOfTiff(path, dataset, pixel_format)
        return
    yield DecodedImage(read_pixels(path, pixel_format))


def is_georeferenced(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a TIFF with a place on a map."""
    layout = _layout(os.fspath(path))
    return layout is not None and layout.is_georeferenced


class _Layout(NamedTuple):
    """The first picture of a TIFF, by its tags.

    Attributes:
        pixels: Number of pixels.
        bytes: Bytes of its pixels.
        file_bytes: Bytes of the file.
        bands: Number of bands to read; 0 if only Pillow can convert them.
        is_exact: Whether GDAL decodes the same values as Pillow.
        palette: As of :class:`TiffImage`.
        is_georeferenced: See :func:`is_georeferenced`.
    """

    pixels: int
    bytes: int
    file_bytes: int
    bands: int
    is_exact: bool
    palette: np.ndarray | None
    is_georeferenced: bool


def _layout(path: str) -> _Layout | None:
    """Read the tags of a TIFF; return None for another file, which `read_picture` judges."""
    if not path.lower().endswith(TIFF_SUFFIXES) or not os.path.isfile(path):
        return None
    try:
        with open_regular_file(path, what="image") as file:
            head = file.read(HEAD)
            file.seek(0)
            image = TiffImagePlugin.TiffImageFile(file)  # Image.open refuses large ones
            return None if is_raw(image, head) else _of_tags(image, os.path.getsize(path))
    except Exception:  # almost any, by the fault of the file
        return None


def _of_tags(image: TiffImagePlugin.TiffImageFile, file_bytes: int) -> _Layout:
    tags: Any = image.tag_v2
    arguments: Any = image.tile[0].args
    width, height = image.size
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    raw_mode = re.sub(r"(?<=;16)[BLN]$", "", str(arguments[0]))
    if raw_mode == "R" and max(bits) == 8:  # band after band, uncompressed
        raw_mode = image.mode
    is_upright = tags.get(ExifTags.Base.Orientation, 1) == 1
    is_ycbcr = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == YCBCR
    bands = LAYOUTS.get(raw_mode, 0) if is_upright else 0
    if is_ycbcr and image.info.get("compression") != "jpeg":
        bands = 0
    palette = None
    if raw_mode == "P":
        palette = np.array(tags[TiffImagePlugin.COLORMAP]).reshape(3, -1).T // 256
        palette = palette.astype(np.uint8)
        bands = bands if len(palette) == 256 else 0
    samples = max(len(bits), tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    return _Layout(
        pixels=width * height,
        bytes=width * height * samples * -(-max(bits) // 8),
        file_bytes=file_bytes,
        bands=bands,
        is_exact=not is_ycbcr,
        palette=palette,
        is_georeferenced=any(tag in tags for tag in GEOREFERENCE),
    )


def _check_amount(path: str, layout: _Layout) -> None:
    """Refuse a file that declares more pixels than anybody has, or than it can hold."""
    limit = max(MAX_WINDOWED_PIXELS, max_pixels())
    if layout.pixels > limit:
        raise PictureError(
            path, f"is too large: it has {layout.pixels} pixels, the limit is {limit}"
        )
    if layout.bytes > MAX_RATIO * layout.file_bytes:
        raise PictureError(
            path,
            f"is broken: it declares {layout.pixels} pixels, but has {layout.file_bytes} bytes",
        )


@contextmanager
def _opened(rasterio: Any, path: str) -> Iterator[Any]:
    """Open a TIFF that exists as a regular file."""
    try:
        with warnings.catch_warnings():  # about a picture without a georeference
            warnings.simplefilter("ignore")
            # An absolute path of a file is never a URL, or one of GDAL's own names.
            dataset = rasterio.open(Path(path).absolute(), driver="GTiff")
    except Exception as error:
        raise PictureError(path, f"is truncated or broken ({_reason(error)})") from error
    with dataset:
        yield dataset


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
