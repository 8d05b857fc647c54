"""Recording of renderings: the logits after each step and the points that were predicted.

Shapes: N regions, C channels, P points, H and W rows and columns of a grid.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from point_rend.rendering.bound_head import BoundPointHead, bind_point_head, empty_in_broken_boxes
from point_rend.rendering.features import FineGrainedFeatures
from point_rend.rendering.subdivision import PointPredictor, subdivide
from point_rend.rendering.uncertainty import Uncertainty, select_class_channel


class Step(NamedTuple):
    """The first grid of a rendering, or the result of a step.

    Attributes:
        logits: (N, C, H, W) after the step.
        coords: (N, P, 2) the predicted points, in [0, 1]² of each region; P is 0 for a first grid
            that comes from the coarse head.
        uncertainty: (N, 1, H, W) by which the points were chosen; None for the first grid.
    """

    logits: Tensor
    coords: Tensor
    uncertainty: Tensor | None


class _Call(NamedTuple):
    coords: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Rendering:
    """All predictions of a point head for the regions that were rendered together.

    Args:
        coarse: output of the coarse head: logits (N, K, h, w), or the parameters of the point head
            (N, num_params).
        boxes: (N, 4) in pixels of the model's input; None for regions that are images.
        classes: (N,) the class whose mask was rendered; None for all classes.
        predict: maps points (N, P, 2) to logits (N, C, P), as in the rendering.
        uncertainty: rates logits, as in the rendering.
    """

    coarse: Tensor
    boxes: Tensor | None
    classes: Tensor | None
    predict: PointPredictor
    uncertainty: Uncertainty
    _calls: list[_Call] = field(default_factory=list)

    @property
    def coarse_logits(self) -> Tensor | None:
        """(N, C, h, w) of the rendered classes; None if the coarse head predicts parameters."""
        if self.coarse.dim() == 2:
            return None
        if self.classes is None:
            return self.coarse
        return select_class_channel(self.coarse, self.classes)

    def steps(self) -> Iterator[Step]:
        """Repeat the rendering step by step, from the recorded predictions.

        Yields:
            The first grid, then the result of each step. The last result equals the rendered one
            bit for bit, before any doublings without points (``SUBDIVISION_CELLS_PER_PIXEL``).
        """
        calls = self._calls
        if self.boxes is None:
            logits = self.coarse
            coords = logits.new_zeros(logits.shape[0], 0, 2)
        else:  # the first grid of a box is predicted at points of a regular grid
            (coords, predicted), *calls = calls
            side = math.isqrt(coords.shape[1])
            logits = predicted.unflatten(2, (side, side))
        yield Step(logits, coords, None)
        for call in calls:
            uncertainties: list[Tensor] = []

            def rate(logits: Tensor, recorded: list[Tensor] = uncertainties) -> Tensor:
                recorded.append(self.uncertainty(logits))
                return recorded[0]

            def repeat(coords: Tensor, call: _Call = call) -> Tensor:
                assert torch.equal(coords, call.coords)
                return call.logits

            logits = subdivide(logits, repeat, rate, steps=1, points_per_step=call.coords.shape[1])
            yield Step(logits, call.coords, uncertainties[0])

    def _predict_and_record(self, coords: Tensor) -> Tensor:
        logits = self.predict(coords)
        if self.boxes is not None:  # as rendered
            logits = empty_in_broken_boxes(logits, self.boxes)
        self._calls.append(_Call(coords, logits))
        return logits


@contextmanager
def recorded_renderings(head: nn.Module) -> Iterator[list[Rendering]]:
    """Record the renderings of a head.

    Args:
        head: one of the registered heads, in inference.

    Yields:
        A list, empty at first, that receives the renderings. A mask head adds one per chunk of
        boxes, image by image, in the order of the boxes (with ``SUBDIVISION_CELLS_PER_PIXEL`` those
        with fewer steps first); a semantic head adds one per rendering of images.

    Raises:
        ValueError: if the head has no point head.
    """
    point_head = getattr(head, "point_head", None)
    if point_head is None:
        raise ValueError(
            f"{type(head).__name__} has no point head, so it renders nothing: expected a PointRend "
            "head, with MODEL.ROI_MASK_HEAD.POINT_HEAD_ON True"
        )
    renderings: list[Rendering] = []
    uncertainty: Any = head.uncertainty
    head.point_head = _RecordingPointHead(point_head, uncertainty, renderings)
    try:
        yield renderings
    finally:
        head.point_head = point_head


class _RecordingPointHead(nn.Module):
    """A point head whose bound form records its predictions."""

    def __init__(
        self, point_head: nn.Module, uncertainty: Uncertainty, renderings: list[Rendering]
    ) -> None:
        super().__init__()
        self.point_head = point_head
        self.uncertainty = uncertainty
        self.renderings = renderings

    def bind(
        self, fine: FineGrainedFeatures, num_regions: int, points_per_region: int
    ) -> BoundPointHead:
        """Bind the point head."""
        bound = bind_point_head(self.point_head, fine, num_regions, points_per_region)
        return _RecordingBoundHead(bound, self.uncertainty, self.renderings)


class _RecordingBoundHead:
    def __init__(
        self, bound: BoundPointHead, uncertainty: Uncertainty, renderings: list[Rendering]
    ) -> None:
        self.bound = bound
        self.uncertainty = uncertainty
        self.renderings = renderings

    def at(
        self, coarse: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None
    ) -> PointPredictor:
        predict = self.bound.at(coarse, boxes, classes)
        rendering = Rendering(coarse, boxes, classes, predict, self.uncertainty)
        self.renderings.append(rendering)
        return rendering._predict_and_record
