"""Masks for boxes that a model has not detected itself, such as those of another detector.

Detectron2's `GeneralizedRCNN.inference(…, detected_instances=…)` computes the same masks, of all
boxes at once. Here the features of an image are computed once, and its boxes follow in chunks, so
that thousands of them take no more memory at a time than a few hundred.

Shapes: N boxes of an image, S side of a mask.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from point_rend.config.schema import IMPLICIT_MASK_HEADS
from point_rend.rendering.box_masks import BoxMasks
from point_rend.runtime.exported_model import ExportedModel

BOXES_AT_ONCE = 256


def check_given_boxes(cfg: CfgNode, model: nn.Module) -> None:
    """Refuse a model that has no masks for given boxes.

    Raises:
        ValueError: If it is not a :class:`GeneralizedRCNN` with masks, or averages over variants of
            an image.
    """
    if isinstance(model, ExportedModel):
        raise ValueError(
            f"{model.session.path} is an exported model, which detects its own boxes: masks for "
            "given boxes need a checkpoint with its config, or a folder of save_pretrained"
        )
    heads = getattr(model, "roi_heads", None)
    own_inference = getattr(type(model), "inference", None) is not GeneralizedRCNN.inference
    if own_inference or not hasattr(heads, "forward_with_given_boxes"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: masks for given boxes need "
            "an instance model, GeneralizedRCNN with ROI heads"
        )
    if not cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is False: masks for given boxes need a model with masks")
    if cfg.TEST.AUG.ENABLED:
        raise ValueError(
            "TEST.AUG.ENABLED is True: masks for given boxes are rendered without test-time "
            "augmentation; set it to False"
        )


def is_class_agnostic(cfg: CfgNode) -> bool:
    """Return whether an instance model renders the same mask for every class of a box."""
    head, coarse = cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
    point = cfg.MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK
    if head in IMPLICIT_MASK_HEADS:
        return point
    renders = head == "PointRendMaskHead" and cfg.MODEL.ROI_MASK_HEAD.POINT_HEAD_ON
    return coarse and (point or not renders)


def as_boxes(boxes: Any) -> Tensor:
    """Convert boxes to a tensor (N, 4) of float64 on the CPU.

    Args:
        boxes: Array, tensor, nested list or `Boxes`: x0, y0, x1, y1 in pixels.

    Raises:
        ValueError: If the shape is another one, a number is not finite, or a box is reversed.
    """
    boxes = getattr(boxes, "tensor", boxes)
    if isinstance(boxes, Tensor):
        boxes = boxes.detach().cpu().double().numpy()  # NumPy has no bfloat16
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"boxes: expected numbers of shape (N, 4), got {boxes!r:.80}") from error
    if not array.size and array.ndim in (1, 2):
        array = array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes: expected shape (N, 4), got {array.shape}")
    _refuse(array, ~np.isfinite(array).all(axis=1), "finite numbers")
    is_reversed = (array[:, 2:] < array[:, :2]).any(axis=1)
    _refuse(array, is_reversed, "x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
    return torch.from_numpy(array.copy())


def _refuse(boxes: np.ndarray, is_wrong: Any, expected: str) -> None:
    if is_wrong.any():
        first, number = int(is_wrong.argmax()), int(is_wrong.sum())
        others = f" ({number} of {len(boxes)} boxes)" if number > 1 else ""
        raise ValueError(
            f"boxes: box {first} is {boxes[first].tolist()}{others}, expected {expected}"
        )


def as_classes(classes: Sequence[int] | Any, number: int, cfg: CfgNode) -> Tensor:
    """Convert the classes of boxes to a tensor (N,) of int64 on the CPU.

    Args:
        classes: Indices of the model's classes; None if all masks of the model are of one class.
        number: N.
        cfg: Config of the model.

    Raises:
        ValueError: If the model needs classes and there are none, or they do not fit.
    """
    known = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    agnostic = is_class_agnostic(cfg)
    if classes is None:
        if known > 1 and not agnostic:
            raise ValueError(
                f"classes: the masks of this model depend on the class: expected an index from 0 "
                f"to {known - 1} for each box"
            )
        return torch.zeros(number, dtype=torch.int64)
    if isinstance(classes, Tensor):
        classes = classes.detach().cpu().numpy()
    array = np.asarray(classes)
    if array.shape != (number,) or (number and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"classes: expected {number} integers, one for each box, got shape {array.shape} of "
            f"type {array.dtype}"
        )
    array = array.astype(np.int64)
    if number and not (array.min() >= 0 and (agnostic or array.max() < known)):
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"classes: expected indices from 0 to {known - 1}, got {wrong}")
    return torch.from_numpy(array)


def as_scores(scores: Any, number: int) -> Tensor:
    """Convert the scores of boxes to a tensor (N,) of float32 on the CPU.

    Raises:
        ValueError: If they are not N numbers.
    """
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().float().numpy()
    try:
        array = np.asarray(scores, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"scores: expected {number} numbers, got {scores!r:.80}") from error
    if array.shape != (number,):
        raise ValueError(f"scores: expected {number} numbers, got shape {array.shape}")
    return torch.from_numpy(array.copy())


@torch.no_grad()
def render_given_boxes(
    model: nn.Module, inputs: Mapping[str, Any], boxes: Tensor, classes: Tensor
) -> Iterator[BoxMasks]:
    """Yield the masks of the boxes of an image, a chunk of them at a time.

    A box that reaches beyond the image is rendered inside it. One without a part in the image has
    an empty mask.

    Args:
        model: One that :func:`check_given_boxes` accepts, in evaluation mode.
        inputs: The image as `Predictor.inputs` prepares it: "image" (C, h, w), resized, with the
            "height" and "width" of the frame in which boxes and masks are.
        boxes: (N, 4) float64, x0, y0, x1, y1.
        classes: (N,) int64, indices of the model's classes.

    Yields:
        Masks of up to 256 boxes each, in the order of the boxes.
    """
    rcnn: Any = model
    height, width = inputs["height"], inputs["width"]
    corners = torch.tensor([width, height, width, height], dtype=torch.float64)
    inside = boxes.clamp(min=0).minimum(corners).float()
    has_area = (inside[:, 2:] > inside[:, :2]).all(dim=1)
    features = None
    for start in range(0, len(boxes), BOXES_AT_ONCE):
        part = slice(start, start + BOXES_AT_ONCE)
        chosen = has_area[part]
        if features is None:
            images = rcnn.preprocess_image([inputs])
            features = rcnn.backbone(images.tensor)
            (resized,) = images.image_sizes
            scale = torch.tensor([resized[1], resized[0]] * 2, dtype=torch.float64) / corners
        given = Instances(
            resized,
            pred_boxes=Boxes((inside[part][chosen].double() * scale).float().to(rcnn.device)),
            pred_classes=classes[part][chosen].to(rcnn.device),
        )
        (found,) = rcnn.roi_heads.forward_with_given_boxes(features, [given])
        masks = found.pred_masks[:, 0]
        within = inside[part].clone()
        if not chosen.all():
            some = masks
            masks = some.new_zeros(len(chosen), *some.shape[1:])
            masks[chosen.to(some.device)] = some
            within[~chosen] = within.new_tensor([0, 0, 1, 1])  # of an empty mask
        yield BoxMasks(masks, within.to(rcnn.device), (height, width))
