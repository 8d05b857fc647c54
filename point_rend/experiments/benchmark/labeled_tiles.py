"""Proof of tiles for semantic models: label maps of huge images, exact, in bounded memory.

An image whose green values are labels is stored as a GeoTIFF. A predictor that reads them off sees
it tile by tile, and all labels are written, as `pointrend predict` does it, into a GeoTIFF; the
image is reduced for a picture, too. The second image is twice as high: its peak memory is that of
the first, if memory does not depend on the size of the image.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from point_rend.experiments.benchmark.memory import peak_memory
from point_rend.experiments.benchmark.planted_image import write_tiff
from point_rend.experiments.benchmark.semantic_cases import semantic_config
from point_rend.experiments.benchmark.settings import Settings
from point_rend.inference.large_outputs import LabelView, read_view, view_step, write_label_map
from point_rend.tiling.grid import Window
from point_rend.tiling.tiled import TiledPredictor
from point_rend.tiling.windows import open_windows

NUM_CLASSES = 19  # as Cityscapes
BAND = 512  # rows that are painted and compared at a time
HEADERS = ("image", "classes", "tiles", "wrong labels", "file MiB", "seconds", "peak MiB")


@dataclass(frozen=True)
class LabeledResult:
    """Results for an image in tiles.

    Attributes:
        size: Height and width.
        tiles: Number of tiles.
        wrong: Number of pixels whose labels differ from the planted ones.
        file_bytes: Bytes of the image's file.
        seconds: Time.
        peak_bytes: Peak memory of the run above that before it, if it can be measured.
    """

    size: tuple[int, int]
    tiles: int
    wrong: int
    file_bytes: int
    seconds: float
    peak_bytes: int | None


class LabelPredictor:
    """Reads the labels of an image off its green values.

    Args:
        cfg: Config of a semantic model.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def unpasted(self) -> "LabelPredictor":
        """Return this predictor, which has no masks."""
        return self

    def __call__(self, images: list[Any], *, batch_size: int = 1) -> list[dict[str, Any]]:
        """Return logits of images (h, w, 3) uint8; all at once, whatever the batch size."""
        del batch_size
        classes = torch.arange(NUM_CLASSES, dtype=torch.uint8)[:, None, None]
        return [{"sem_seg": (torch.from_numpy(x[..., 1]) == classes).float()} for x in images]


def label_images(settings: Settings) -> list[LabeledResult]:
    """Measure an image of the size of `tiled_image`, and one that is twice as high.

    Raises:
        ValueError: If rasterio is not installed.
    """
    height, width = settings.sizes.tiled_image
    return [_labeled((height, width), settings), _labeled((2 * height, width), settings)]


def format_labeled(results: Sequence[LabeledResult]) -> str:
    """Lay out results as a Markdown table."""
    rows = [HEADERS, ("---",) * len(HEADERS)]
    for x in results:
        peak = "–" if x.peak_bytes is None else f"{x.peak_bytes / 2**20:.0f}"
        numbers = (NUM_CLASSES, x.tiles, x.wrong, round(x.file_bytes / 2**20), f"{x.seconds:.1f}")
        rows.append((f"{x.size[0]}×{x.size[1]}", *map(str, numbers), peak))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def planted_labels(size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the labels (h, W) uint8 of the image, from top to bottom."""
    height, width = size
    columns = np.arange(width)
    for top in range(0, height, BAND):
        rows = np.arange(top, min(top + BAND, height))[:, None]
        values = 7 * (rows // 37) + 3 * (columns // 53) + rows * columns // 100_000
        yield (values % NUM_CLASSES).astype(np.uint8)


def _labeled(size: tuple[int, int], settings: Settings) -> LabeledResult:
    tiled = TiledPredictor(
        LabelPredictor(semantic_config(NUM_CLASSES)), settings.sizes.tile, settings.sizes.overlap
    )
    with tempfile.TemporaryDirectory() as folder:
        image, labels = Path(folder, "image.tif"), Path(folder, "labels.tif")
        _write_image(image, Path(folder, "pixels"), size)

        def run() -> None:
            with open_windows(image) as windows:
                view = LabelView(size, view_step(size))
                bands = view.collect(tiled.label_bands(windows))
                write_label_map(labels, bands, size, windows.georeference)
                read_view(windows, view_step(size))

        start = time.perf_counter()
        peak = peak_memory(run, settings.device)
        if not labels.exists():  # no memory is measured on this system
            run()
        seconds = time.perf_counter() - start
        wrong, top = 0, 0
        with open_windows(labels) as windows:
            for band in planted_labels(size):
                found = windows.read(Window(top, 0, *band.shape))
                wrong += int((found[..., 0] != band).sum())
                top += len(band)
        tiles = tiled.grid(size).num_tiles
        return LabeledResult(size, tiles, wrong, image.stat().st_size, seconds, peak)


def _write_image(path: Path, scratch: Path, size: tuple[int, int]) -> None:
    """Write the image, by way of a file that is mapped into memory."""
    pixels = np.memmap(scratch, np.uint8, "w+", shape=(*size, 3))
    top = 0
    for band in planted_labels(size):
        pixels[top : top + len(band)] = np.stack([13 * band, band, 255 - band], axis=-1)
        top += len(band)
    write_tiff(path, pixels)
    del pixels
    scratch.unlink()
