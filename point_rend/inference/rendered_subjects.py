"""Recorded renderings of the instances and regions of an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from point_rend.inference.predictor import Predictor
from point_rend.rendering.recording import recorded_renderings
from point_rend.utils.pixel_format import to_view
from point_rend.visualization.drawing import Color
from point_rend.visualization.rendering_figures import Subject, Window


def find_instances(
    predictor: Predictor, image: np.ndarray, given: tuple[Window, int] | None = None
) -> list[Subject]:
    """Render the masks of all instances, best first; arguments as of :func:`detect`."""
    return detect(predictor, image, given)[1]


@torch.no_grad()
def detect(
    predictor: Predictor, image: np.ndarray, given: tuple[Window, int] | None = None
) -> tuple[Instances, list[Subject]]:
    """Detect instances and render their masks, best first.

    Args:
        predictor: With an instance model.
        image: An array as the predictor takes it.
        given: A box in pixels of the image and its class, instead of all detections.

    Returns:
        The detections in the frame of the model's input, with masks (N, 1, S, S) of probabilities,
        and for each its rendering.

    Raises:
        ValueError: If the model has no point head for masks.
    """
    inputs = predictor.inputs(image)
    scale = _scale(inputs)
    detected = None
    if given is not None:
        box, category = given
        boxes = Boxes(torch.tensor([box]) / torch.tensor(scale * 2))
        detected = Instances(tuple(inputs["image"].shape[1:]), pred_boxes=boxes)
        detected.pred_classes = torch.tensor([category])
        detected = [detected.to(predictor.model.device)]
    model: Any = predictor.model
    with recorded_renderings(model.roi_heads.mask_head) as renderings:
        if detected is None:
            found = model.inference([inputs], do_postprocess=False)
        else:
            found = model.inference([inputs], detected, do_postprocess=False)
    # A panoptic model returns its labels, too.
    (found,) = found[0] if isinstance(found, tuple) else found
    subjects = {}
    view = to_view(image, predictor.pixel_format)
    for rendering in renderings:
        assert rendering.boxes is not None
        assert rendering.classes is not None
        for region, key in enumerate(_keys(rendering.boxes, rendering.classes)):
            x0, y0, x1, y1 = key[0]
            frame = (x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1])
            subjects[key] = Subject(view, rendering, region, frame, frame, ())
    # Boxes that need equally many steps are rendered together (SUBDIVISION_CELLS_PER_PIXEL).
    return found, [subjects[key] for key in _keys(found.pred_boxes.tensor, found.pred_classes)]


def _keys(boxes: Tensor, classes: Tensor) -> list[tuple[Window, int]]:
    """Name boxes (N, 4) of classes (N,)."""
    return list(zip(map(tuple, boxes.tolist()), classes.tolist(), strict=True))


def find_instance(
    predictor: Predictor, image: np.ndarray, number: int, given: tuple[Window, int] | None
) -> Subject:
    """Render the mask of an instance.

    Args:
        predictor: With an instance model.
        image: An array as the predictor takes it.
        number: Number of the detection, best first.
        given: A box in pixels of the image and its class, instead of all detections.

    Raises:
        ValueError: If there are fewer detections, or the model has no point head for masks.
    """
    subjects = find_instances(predictor, image, given)
    if number >= len(subjects):
        raise ValueError(
            f"--instance {number}: the model finds {len(subjects)} in this image, counted from "
            "0; a lower --confidence-threshold keeps more of them"
        )
    return subjects[number]


@torch.no_grad()
def find_region(
    predictor: Predictor, image: np.ndarray, window: Window | None, colors: Sequence[Color]
) -> Subject:
    """Render the labels of an image for a figure of a part of it.

    Args:
        predictor: With a semantic or panoptic model.
        image: An array as the predictor takes it.
        window: The part in pixels of the image; all of it if None.
        colors: Colors of the classes, BGR.
    """
    inputs = predictor.inputs(image)
    scale = _scale(inputs)
    model: Any = predictor.model
    with recorded_renderings(model.sem_seg_head) as renderings:
        model([inputs])
    (rendering,) = renderings
    *_, last = rendering.steps()
    height, width = last.logits.shape[-2:]  # a cell is a pixel of the input
    frame = (0.0, 0.0, width * scale[0], height * scale[1])
    full_window = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    view = to_view(image, predictor.pixel_format)
    return Subject(view, rendering, 0, frame, window or full_window, colors)


def _scale(inputs: dict[str, Any]) -> tuple[float, float]:
    """Return the ratios of width and height of the image to those of the model's input."""
    height, width = inputs["image"].shape[1:]
    return inputs["width"] / width, inputs["height"] / height
