"""Label maps and pictures of images that need not fit into memory.

A label map is written row by row: as a PNG, or as a GeoTIFF of the same place if the image has a
georeference. A picture of a large image is a smaller view, in which each pixel is the mean of a
square of the image; masks and labels are those at the middle of the square.
"""

import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from detectron2.structures import Boxes, Instances

from point_rend.rendering.mask_runs import MaskRuns, RunMasks, union_of
from point_rend.tiling.grid import Window
from point_rend.tiling.windows import WindowedImage
from point_rend.utils.bands import RASTER_OPTIONS, open_raster
from point_rend.utils.files import atomic_file, atomic_path
from point_rend.utils.imports import not_installed
from point_rend.utils.pictures import PictureError
from point_rend.utils.png import GrayPngWriter

VIEW = 4096  # pixels of the longer side of a view, at most
CHUNK = 1 << 22  # pixels of an image that become part of a view at a time
BLOCK = 512  # pixels of a side of a GeoTIFF's tiles


def view_step(size: tuple[int, int]) -> int:
    """Return the side of the squares that become pixels of a view.

    Args:
        size: Height and width of the image.
    """
    return max(1, min(-(-max(size) // VIEW), *size))


def read_view(image: WindowedImage, step: int) -> np.ndarray:
    """Read an image at reduced size; the last pixels that make no whole square are left out.

    Args:
        image: The image (H, W).
        step: Side of the squares.

    Returns:
        (H // step, W // step, C), of the type of the image.
    """
    height, width = (side // step for side in image.size)
    first = image.read(Window(0, 0, 1, 1))
    view = np.empty((height, width, first.shape[2]), first.dtype)
    columns = max(1, min(width, CHUNK // step**2))
    rows = max(1, CHUNK // (step**2 * columns))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            part = view[top : top + rows, left : left + columns]
            h, w, channels = part.shape
            pixels = image.read(Window(top * step, left * step, h * step, w * step))
            means = pixels.reshape(h, step, w, step, channels).mean((1, 3), dtype=np.float32)
            part[:] = means if first.dtype.kind == "f" else np.rint(means)
    return view


def mask_bands(mask: MaskRuns, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the rows (h, W) of a mask from top to bottom, 255 where it is set.

    Args:
        mask: The mask.
        size: Height and width of its image.
    """
    height, width = size
    for top in range(0, height, BLOCK):
        band = np.zeros((min(BLOCK, height - top), width), np.uint8)
        crop = mask.clipped(top, 0, BLOCK, width).moved(-top, 0).crop()
        band[crop.window] = crop.mask * np.uint8(255)
        yield band


def instances_in_view(found: Instances, step: int) -> Instances:
    """Sample the masks of instances for a view; those without a pixel there are left out.

    Args:
        found: Instances whose masks are :class:`RunMasks`.
        step: Side of the squares of the view.

    Returns:
        Instances of the size of the view.
    """
    height, width = (side // step for side in found.image_size)
    masks = [_sampled(mask, step).clipped(0, 0, height, width) for mask in found.pred_masks.masks]
    kept = [i for i, mask in enumerate(masks) if mask.columns.size]
    part = found[kept] if kept else found[:0]
    view = Instances((height, width), **part.get_fields())
    view.remove("pred_masks")
    view.pred_masks = RunMasks([masks[i] for i in kept], (height, width))
    if view.has("pred_boxes"):
        view.pred_boxes = Boxes(part.pred_boxes.tensor / step)
    return view


class LabelView:
    """Samples the labels of an image for a view while they pass.

    Args:
        size: Height and width of the image.
        step: Side of the squares of the view.
    """

    def __init__(self, size: tuple[int, int], step: int) -> None:
        self.size = size
        self.step = step
        self.rows: list[np.ndarray] = []

    def collect(self, bands: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the rows of a label map (h, W), from top to bottom, as they come."""
        height, width = (side // self.step for side in self.size)
        middle = self.step // 2
        top = 0
        for band in bands:
            first = len(self.rows) * self.step + middle
            for row in range(first - top, len(band), self.step):
                if len(self.rows) < height:
                    self.rows.append(band[row, middle :: self.step][:width].copy())
            top += len(band)
            yield band

    @property
    def labels(self) -> np.ndarray:
        """Labels of the view, once all have passed."""
        return np.stack(self.rows)


def write_label_map(
    path: Path,
    bands: Iterable[np.ndarray],
    size: tuple[int, int],
    georeference: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a label map band by band; the file appears complete or not at all.

    Args:
        path: A .png file, or a .tif file with the georeference.
        bands: Rows (h, W) from top to bottom, all uint8 or all uint16.
        size: Height and width of the image.
        georeference: As of :class:`WindowedImage`.

    Raises:
        NotSavedError: If the operating system refuses.
        ValueError: If there are fewer or more rows, or rasterio is needed and not installed.
    """
    bands = iter(bands)
    first = next(bands)
    open_writer = _geotiff_writer if path.suffix == ".tif" else _png_writer
    with open_writer(path, size, first.dtype, georeference) as write:
        write(first)
        for band in bands:
            write(band)


@contextmanager
def _png_writer(
    path: Path, size: tuple[int, int], dtype: np.dtype, georeference: Mapping[str, Any]
) -> Iterator[Callable[[np.ndarray], None]]:
    del georeference
    with atomic_file(path) as file:
        writer = GrayPngWriter(file, size, dtype)
        yield writer.write
        writer.close()


@contextmanager
def _geotiff_writer(
    path: Path, size: tuple[int, int], dtype: np.dtype, georeference: Mapping[str, Any]
) -> Iterator[Callable[[np.ndarray], None]]:
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError as error:
        raise not_installed("rasterio, which writes GeoTIFF", "geotiff") from error
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    height, width = size
    blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate"}
    waiting: list[np.ndarray] = []  # rows that do not fill blocks yet
    top = checksum = 0

    def write(band: np.ndarray) -> None:
        nonlocal top, checksum
        waiting.append(band)
        ready = sum(map(len, waiting))
        if top + ready < height:
            ready -= ready % BLOCK
        if ready:
            rows = np.concatenate(waiting)
            waiting[:] = [rows[ready:]]
            file.write(rows[:ready], 1, window=((top, top + ready), (0, width)))
            checksum = zlib.crc32(rows[:ready].tobytes(), checksum)
            top += ready

    with atomic_path(path) as unfinished, rasterio.Env(**RASTER_OPTIONS):
        try:
            with rasterio.open(
                unfinished.absolute(),
                "w",
                driver="GTiff",
                height=height,
                width=width,
                count=1,
                dtype=dtype.name,
                BIGTIFF="IF_SAFER",
                **blocks,
                **georeference,
            ) as file:
                yield write
            if top != height:
                raise ValueError(f"expected {height} rows of the label map, got {top}")
        except RasterioError as error:
            raise _not_saved(path, error) from error
        # GDAL ignores errors of the last writes, such as of a full disk.
        read = 0
        try:
            with open_raster(unfinished) as saved:
                for row in range(0, height, BLOCK):
                    window = ((row, min(row + BLOCK, height)), (0, width))
                    read = zlib.crc32(saved.read(1, window=window).tobytes(), read)
        except PictureError as error:
            raise _not_saved(path, error) from error
        if read != checksum:
            raise _not_saved(path, "other values than were written")


def _not_saved(path: Path, reason: Exception | str) -> OSError:
    cause = reason.__cause__ if isinstance(reason, Exception) else None
    text = " ".join(str(cause or reason).split())
    return OSError(f"{path} could not be saved ({text}): is the disk full?")


def _sampled(mask: MaskRuns, step: int) -> MaskRuns:
    """Return the pixels of a mask in the middle of squares, numbered by the squares."""
    middle = step // 2
    # The first square whose middle is not above a row.
    tops, bottoms = (-((middle - rows) // step) for rows in (mask.tops, mask.bottoms))
    kept = (mask.columns % step == middle) & (tops < bottoms)
    runs = MaskRuns(mask.columns[kept] // step, tops[kept], bottoms[kept])
    return union_of([runs]) if runs.columns.size else runs
