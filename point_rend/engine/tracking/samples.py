"""Pictures of predictions for the first images of a test set, after each evaluation."""

import itertools
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
from point_rend.visualization.drawing import color_of
from point_rend.visualization.predictions import draw

MIN_SCORE = 0.5  # of instances that are shown
LONGEST_SIDE = 1024  # of a picture, in pixels


def put_samples(
    model: nn.Module,
    loader: Iterable[list[dict[str, Any]]],
    metadata: Metadata,
    *,
    count: int,
    pixel_format: PixelFormat,
) -> None:
    """Put pictures of predictions into the storage of the training, as "predictions/<image>".

    Args:
        model: The model; its mode is kept.
        loader: Batches of a test set.
        metadata: The classes of the test set.
        count: Number of images, from the first one.
        pixel_format: Pixels that the model expects.
    """
    metadata = with_colors(metadata)
    images = itertools.islice(itertools.chain.from_iterable(loader), count)
    with inference_context(model), torch.no_grad():
        for record in images:
            pixels = read_pixels(Path(record["file_name"]), pixel_format)
            output = shown(model([record])[0])
            picture = draw(to_view(pixels, pixel_format), output, metadata, by_class=True)
            name = f"predictions/{Path(record['file_name']).stem}"
            get_event_storage().put_image(name, to_storage(picture))


def shown(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result for an image without its least certain instances."""
    output = dict(output)
    if "instances" in output:
        found = output["instances"].to("cpu")
        output["instances"] = found[found.scores >= MIN_SCORE]
    return output


def to_storage(picture: np.ndarray) -> np.ndarray:
    """Turn a picture (H, W, 3) in BGR into one (3, h, w) in RGB, of at most the longest side."""
    scale = LONGEST_SIDE / max(picture.shape[:2])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture[:, :, ::-1].transpose(2, 0, 1))


def with_colors(metadata: Metadata) -> Metadata:
    """Return the metadata of a data set with a color, RGB, for each class that lacks one."""
    fields = metadata.as_dict()
    for kind in ("thing", "stuff"):
        names = fields.get(f"{kind}_classes") or ()
        fields.setdefault(f"{kind}_colors", [color_of(i)[::-1] for i in range(len(names))])
    return Metadata(**fields)
