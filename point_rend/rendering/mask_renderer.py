"""Rendering of the masks of detected boxes, in chunks of bounded memory.

Shapes: N boxes over all images, N_i in image i, S side of a mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from point_rend.rendering.bound_head import (
    BoundPointHead,
    bind_point_head,
    empty_in_broken_boxes,
)
from point_rend.rendering.constants import is_tracing
from point_rend.rendering.coordinates import regular_grid
from point_rend.rendering.features import FineGrainedFeatures
from point_rend.rendering.subdivision import SubdivisionPlan, subdivide
from point_rend.rendering.uncertainty import Uncertainty, foreground_uncertainty

# On a CPU more boxes at a time gain nothing. An accelerator should get all of an image, as every
# chunk repeats all launches; 256 boxes with 784 points a step and 256 channels take 0.8 GiB.
BOXES_PER_CHUNK_ON_CPU = 64
BOXES_PER_CHUNK_ON_ACCELERATOR = 256


@dataclass(frozen=True)
class MaskRenderer:
    """Renders the masks of boxes, chunk by chunk.

    A box with a coordinate that is not finite gets an empty mask.

    Args:
        plan: the grids and the points of each mask.
        boxes_per_chunk: maximum number of boxes that are rendered together, which bounds the
            memory; 0 for all boxes of an image, None for 64 on a CPU and 256 elsewhere.
        cells_per_pixel: once a mask has this many cells per pixel along the longer side of its
            box, further steps only interpolate it; 0 predicts points in all steps. Traces always
            do, because they must serve boxes of any size.

    Raises:
        ValueError: if ``boxes_per_chunk`` or ``cells_per_pixel`` is negative.
    """

    plan: SubdivisionPlan
    boxes_per_chunk: int | None = None
    cells_per_pixel: float = 0.0

    def __post_init__(self) -> None:
        if self.cells_per_pixel < 0:
            raise ValueError(
                "MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL: expected a positive number, or 0 "
                f"for all steps in every box, got {self.cells_per_pixel}"
            )
        if self.boxes_per_chunk is not None and self.boxes_per_chunk < 0:
            raise ValueError(
                "MODEL.POINT_HEAD.SUBDIVISION_BOXES_PER_CHUNK: expected 1 or more, 0 for all, or "
                f"None for a number that suits the device, got {self.boxes_per_chunk}"
            )

    def bind(
        self,
        point_head: nn.Module,
        images: Sequence[FineGrainedFeatures],
        instances: Sequence[Instances],
    ) -> list[BoundPointHead]:
        """Bind a point head to the features of each image, for rendering its detections."""
        return [
            bind_point_head(point_head, fine, len(detected), self.plan.num_points)
            for fine, detected in zip(images, instances, strict=True)
        ]

    def render(
        self,
        bound: Sequence[BoundPointHead],
        instances: Sequence[Instances],
        coarse: Tensor,
        uncertainty: Uncertainty = foreground_uncertainty,
    ) -> list[Tensor]:
        """Render the mask of each detected box, for its class.

        Args:
            bound: per image the bound point head.
            instances: per image its detections; N in total.
            coarse: (N, ...) output of the coarse head, see :meth:`BoundPointHead.at`.
            uncertainty: rates the logits (N, 1, H, W) of the class of each box.

        Returns:
            Per image the foreground probabilities (N_i, 1, S, S), float32.
        """
        coarse_of_images = coarse.split([x.pred_boxes.tensor.size(0) for x in instances])
        return [
            self._render_image(*image, uncertainty)
            for image in zip(bound, instances, coarse_of_images, strict=True)
        ]

    def _render_image(
        self,
        bound: BoundPointHead,
        detected: Instances,
        coarse: Tensor,
        uncertainty: Uncertainty,
    ) -> Tensor:
        boxes, classes = detected.pred_boxes.tensor, detected.pred_classes
        if is_tracing():
            # A trace must serve any number of boxes of any size: no loop over them.
            steps = self.plan.steps
            logits = self._render_together(bound, coarse, boxes, classes, uncertainty, steps=steps)
            return logits.sigmoid()
        chunks = list(self._chunks(boxes))
        if len(chunks) == 1:
            steps = chunks[0][0]
            logits = self._render_together(bound, coarse, boxes, classes, uncertainty, steps=steps)
            return logits.sigmoid_()
        side = self.plan.output_side
        logits = coarse.new_empty((boxes.size(0), 1, side, side), dtype=torch.float32)
        for steps, chosen in chunks:
            chunk = coarse[chosen], boxes[chosen], classes[chosen]
            logits[chosen] = self._render_together(bound, *chunk, uncertainty, steps=steps)
        return logits.sigmoid_()

    def _chunks(self, boxes: Tensor) -> Iterator[tuple[int, slice | Tensor]]:
        """Split boxes (N, 4) into chunks: yield the number of steps and the indices of each."""
        num_boxes = boxes.shape[0]
        limit = self.boxes_per_chunk
        if limit is None:
            on_cpu = boxes.device.type == "cpu"
            limit = BOXES_PER_CHUNK_ON_CPU if on_cpu else BOXES_PER_CHUNK_ON_ACCELERATOR
        num_chunks = -(-num_boxes // limit) if limit else 1
        size = max(-(-num_boxes // max(num_chunks, 1)), 1)  # chunks of equal size
        if not self.cells_per_pixel:
            for first in range(0, num_boxes, size):
                yield self.plan.steps, slice(first, first + size)
            return
        longer_sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1).nan_to_num(0)
        doublings = longer_sides * self.cells_per_pixel / self.plan.start_side
        needed = doublings.clamp(min=1).log2().ceil().clamp(max=self.plan.steps)
        all_steps = torch.arange(self.plan.steps + 1, device=boxes.device)
        counts = (needed[:, None] == all_steps).sum(dim=0).tolist()  # waits for the device
        groups = needed.argsort(stable=True).split(counts)
        for steps, group in enumerate(groups):
            if len(group):
                yield from ((steps, chosen) for chosen in group.split(size))

    def _render_together(
        self,
        bound: BoundPointHead,
        coarse: Tensor,
        boxes: Tensor,
        classes: Tensor,
        uncertainty: Uncertainty,
        *,
        steps: int,
    ) -> Tensor:
        at_points = bound.at(coarse, boxes, classes)

        def predict(coords: Tensor) -> Tensor:
            return empty_in_broken_boxes(at_points(coords), boxes)

        side = self.plan.start_side
        return subdivide(
            predict(regular_grid(boxes.size(0), side, boxes.device)).unflatten(2, (side, side)),
            predict,
            uncertainty,
            steps=steps,
            points_per_step=self.plan.points_per_step,
            plain_steps=self.plan.steps - steps,
        ).float()
