"""Pictures of predictions for the first images of a test set, after each evaluation."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.evaluation import inference_context
from detectron2.utils.events import get_event_storage
from torch import nn

from point_rend.utils.bands import read_pixels
from point_rend.utils.pixel_format import PixelFormat, to_view
from point_rend.visualization.predictions import draw

MIN_SCORE = 0.5  # of instances that are shown
LONGEST_SIDE = 1024  # of a picture, in pixels

logger = logging.getLogger(__name__)


def put_samples(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    metadata: Metadata,
    *,
    count: int,
    pixel_format: PixelFormat,
) -> None:
    """Put pictures of predictions into the storage of the training, as "predictions/<image>".

    An image that cannot be drawn ends the pictures, with a warning, and never the training.

    Args:
        model: The model; its mode is kept.
        loader: Batches of a test set.
        metadata: The classes of the test set.
        count: Number of images, from the first one.
        pixel_format: Pixels that the model expects.
    """
    images = itertools.islice(itertools.chain.from_iterable(loader), count)
    names: Counter[str] = Counter()
    with inference_context(model), torch.no_grad():
        for record in images:
            output = shown(model([record])[0])
            try:
                picture = to_picture(record, output, metadata, pixel_format)
            except Exception as error:  # of any kind: data sets and models of users may lack a part
                logger.warning(
                    "LOGGING.PICTURES: no more pictures of this evaluation, for %s cannot be drawn "
                    "(%s: %s); the training goes on",
                    record.get("file_name", "an image without file_name"),
                    *(type(error).__name__, error),
                )
                return
            stem = Path(record["file_name"]).stem
            names[stem] += 1
            number = f" ({names[stem]})" if names[stem] > 1 else ""
            get_event_storage().put_image(f"predictions/{stem}{number}", picture)


def to_picture(
    record: Mapping[str, Any],
    output: Mapping[str, Any],
    metadata: Metadata,
    pixel_format: PixelFormat,
) -> np.ndarray:
    """Draw a result over its image, for the storage."""
    pixels = read_pixels(Path(record["file_name"]), pixel_format)
    return to_storage(draw(to_view(pixels, pixel_format), output, metadata, by_class=True))


def shown(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result for an image without its least certain instances; boxes serve as masks."""
    output = dict(output)
    if "instances" in output:
        found = output["instances"].to("cpu")
        found = output["instances"] = found[found.scores >= MIN_SCORE]
        if not found.has("pred_masks"):
            found.pred_masks = filled(found.pred_boxes.tensor, found.image_size)
    return output


def filled(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return boxes (N, 4) as masks (N, H, W) of the pixels whose centers they hold."""
    ys, xs = (torch.arange(side) + 0.5 for side in size)
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    rows, columns = (y0 <= ys) & (ys < y1), (x0 <= xs) & (xs < x1)
    return rows[:, :, None] & columns[:, None, :]


def to_storage(picture: np.ndarray) -> np.ndarray:
    """Turn a picture (H, W, 3) in BGR into one (3, h, w) in RGB, of at most the longest side."""
    scale = LONGEST_SIDE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture[:, :, ::-1].transpose(2, 0, 1))
