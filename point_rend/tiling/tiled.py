"""A predictor for images of any size: it sees them tile by tile."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from os import PathLike
from typing import Any, Protocol

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from point_rend.config.defaults import pixel_format
from point_rend.config.tasks import PANOPTIC, SEM_SEG, meta_architecture, model_outputs
from point_rend.tiling.grid import DEFAULT_OVERLAP, TileGrid, Window, check_tiling, tiles_of
from point_rend.tiling.merging import InstanceMerger
from point_rend.tiling.semantic import label_bands
from point_rend.tiling.windows import DecodedImage, WindowedImage, open_windows
from point_rend.utils.bands import pixels_of
from point_rend.utils.pixel_format import PixelFormat

DEFAULT_TILE = 1024  # pixels

AnyImage = np.ndarray | Image.Image | str | PathLike[str] | WindowedImage
Output = dict[str, Any]


class TilePredictor(Protocol):
    """The part of a `Predictor` that tiles need."""

    @property
    def cfg(self) -> CfgNode:
        """The config of the model."""

    def __call__(self, images: list[Any], *, batch_size: int) -> list[Output]:
        """Segment images (h, w, 3) uint8 in BGR order."""

    def unpasted(self) -> "TilePredictor":
        """Return a predictor of the same masks, which need not be tensors."""


class TiledPredictor:
    """Segments images of any size, tile by tile.

        predictor = Predictor.from_checkpoint("output/model_final.pth")
        instances = TiledPredictor(predictor, tile=1024)("map.tif")["instances"]

    The model sees each tile as it sees an image: resized to INPUT.MIN_SIZE_TEST. With a shortest
    side of 800, a tile of 1024 pixels is reduced to 78 %, one of 512 is enlarged to 156 %. An image
    that is no larger than a tile has exactly the result of the predictor.

    TEST.DETECTIONS_PER_IMAGE limits the instances of a tile, not those of the image.

    Args:
        predictor: A `Predictor` of a model of instances with masks, or of semantic segmentation;
            also one of an exported file, or with test-time augmentation.
        tile: Side of a tile in pixels.
        overlap: Share of a tile, at least, that it has in common with the next one. An object that
            no tile sees whole is put together where two tiles see a part; without an overlap it
            stays in parts.
        batch_size: Number of tiles that the model sees at a time.
        on_tile: Is called after each tile of an image with its number from 1, and the number of
            tiles.

    Raises:
        ValueError: If a number is out of its range, or the model has other results.
    """

    def __init__(
        self,
        predictor: TilePredictor,
        tile: int = DEFAULT_TILE,
        overlap: float = DEFAULT_OVERLAP,
        *,
        batch_size: int = 1,
        on_tile: Callable[[int, int], None] | None = None,
    ) -> None:
        check_tiling(tile, overlap)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        check_tiled_model(predictor.cfg)
        self._is_semantic = model_outputs(predictor.cfg) == SEM_SEG
        self._nms_threshold = build_nms_threshold(predictor.cfg)
        self.predictor = predictor
        self.pixel_format = pixel_format(predictor.cfg)
        self._of_tiles = predictor.unpasted()
        self.tile = tile
        self.overlap = overlap
        self.batch_size = batch_size
        self.on_tile = on_tile

    def grid(self, image_size: tuple[int, int]) -> TileGrid:
        """Return the tiles of an image of this height and width."""
        return tiles_of(image_size, self.tile, self.overlap)

    @torch.no_grad()
    def __call__(self, image: AnyImage) -> Output:
        """Segment an image.

        Args:
            image: A path, of which a TIFF is read window by window if rasterio is installed; an
                array (H, W, 3) of type uint8 in BGR order, such as a `numpy.memmap`; a PIL image;
                or an image of :func:`point_rend.tiling.windows.open_windows`.

        Returns:
            `{"instances": Instances}`, whose `pred_masks` are
            :class:`~point_rend.rendering.mask_runs.RunMasks`: they take the memory of their
            outlines, and turn into pixels when they are read. Or `{"labels": labels}`, (H, W) uint8
            (int32 with more than 256 classes). The result of the predictor if one tile is enough.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError, ValueError: If it is no image, or cannot be read.
        """
        with _opened(image, self.pixel_format) as windows:
            grid = self.grid(windows.size)
            if grid.num_tiles == 1:
                (output,) = self.predictor([windows.read(next(grid.windows()))], batch_size=1)
                return output
            if self._is_semantic:
                bands = [torch.from_numpy(_signed(band)) for band in self.label_bands(windows)]
                return {"labels": torch.cat(bands)}
            merger = InstanceMerger(grid.image_size, self._nms_threshold)
            for tile, output in self._outputs(windows, grid):
                merger.add(tile, output["instances"])
            return {"instances": merger.merged()}

    def many(self, images: Sequence[AnyImage]) -> list[Output]:
        """Segment several images; those that are no larger than a tile share batches.

        Args:
            images: As of :meth:`__call__`, one or more.

        Returns:
            The result of each.

        Raises:
            FileNotFoundError, TypeError: As :meth:`__call__`.
            ValueError: As :meth:`__call__`, or if there are no images.
        """
        if not images:
            raise ValueError("expected one image or more, got an empty list")
        outputs: dict[int, Output] = {}
        small: dict[int, np.ndarray] = {}

        def finish_small() -> None:
            if small:
                found = self.predictor(list(small.values()), batch_size=self.batch_size)
                outputs.update(zip(small, found, strict=True))
                small.clear()

        for i, image in enumerate(images):
            with _opened(image, self.pixel_format) as windows:
                if self.grid(windows.size).num_tiles > 1:
                    outputs[i] = self(windows)
                else:
                    small[i] = windows.read(Window(0, 0, *windows.size))
            if len(small) == self.batch_size:
                finish_small()
        finish_small()
        return [outputs[i] for i in range(len(images))]

    def lazily(self, image: WindowedImage) -> Output:
        """Segment an image of several tiles; labels are computed when they are taken.

        Args:
            image: Of :func:`point_rend.tiling.windows.open_windows`.

        Returns:
            As of :meth:`__call__`, or for a semantic model `{"label_bands": bands}`, an iterator
            as of :meth:`label_bands`.
        """
        return {"label_bands": self.label_bands(image)} if self._is_semantic else self(image)

    def label_bands(self, image: WindowedImage) -> Iterator[np.ndarray]:
        """Label an image with a semantic model, from top to bottom.

        Args:
            image: Of :func:`point_rend.tiling.windows.open_windows`.

        Yields:
            Labels (rows, W) uint8, or uint16 with more than 256 classes.
        """
        grid = self.grid(image.size)
        return label_bands(grid, (x["sem_seg"] for _, x in self._outputs(image, grid)))

    def _outputs(self, image: WindowedImage, grid: TileGrid) -> Iterator[tuple[Window, Output]]:
        """Run the predictor on the tiles, row by row."""
        windows, number = grid.windows(), 0
        while batch := list(islice(windows, self.batch_size)):
            pixels = [image.read(tile) for tile in batch]
            outputs = self._of_tiles(pixels, batch_size=len(batch))
            for tile, output in zip(batch, outputs, strict=True):
                number += 1
                if self.on_tile is not None:
                    self.on_tile(number, grid.num_tiles)
                yield tile, output


def check_tiled_model(cfg: CfgNode) -> None:
    """Refuse a model whose results cannot be put together from tiles.

    Raises:
        ValueError: If it is panoptic, has no masks, or detects keypoints.
    """
    outputs = model_outputs(cfg)
    if outputs == PANOPTIC:
        raise ValueError(
            f"tiles: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} predicts panoptic "
            "segments, which are not merged across tiles: expected a model of instances or of "
            "semantic segmentation"
        )
    if outputs != SEM_SEG:
        for key, wanted in (("MASK_ON", True), ("KEYPOINT_ON", False)):
            if cfg.MODEL[key] != wanted:
                raise ValueError(
                    f"tiles: MODEL.{key} is {cfg.MODEL[key]}: expected {wanted}, since instances "
                    "are merged by their masks"
                )


def build_nms_threshold(cfg: CfgNode) -> float:
    """Return the IoU beyond which a config takes two detections for duplicates."""
    has_roi_heads = meta_architecture(cfg).has_roi_heads
    return (cfg.MODEL.ROI_HEADS if has_roi_heads else cfg.MODEL.RETINANET).NMS_THRESH_TEST


def _opened(image: AnyImage, pixel_format: PixelFormat) -> AbstractContextManager[WindowedImage]:
    """Open an image in windows; one that is open stays so."""
    if isinstance(image, Image.Image):
        return nullcontext(DecodedImage(pixels_of(image, pixel_format)))
    if isinstance(image, np.ndarray | str | PathLike):
        return open_windows(image, pixel_format)
    if hasattr(image, "read") and hasattr(image, "size"):
        return nullcontext(image)
    raise TypeError(
        "expected an image as an array (H, W, 3), a PIL image or a path, got "
        f"{type(image).__name__}"
    )


def _signed(labels: np.ndarray) -> np.ndarray:
    """Return labels of a type that torch computes with."""
    return labels if labels.dtype == np.uint8 else labels.astype(np.int32)
