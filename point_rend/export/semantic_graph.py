"""The graph of a semantic model: every image of a batch is rendered in a frame of its own.

The models crop an image out of its batch before they render it. A graph has one loop for all images
of a batch, so it renders them together, on grids of the padded size, and yet as if each were alone:
features are zero outside the frame of their image, cells outside are never chosen, and the last row
and column of a frame are repeated before a doubling reads beyond them.

Shapes: B images of H × W pixels, padding included; K classes; maps (B, C, h, w) of any resolution
at which frames are whole numbers of cells.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn

from point_rend.export.graph import ImageGraph, check_backbone, check_kind
from point_rend.meta_arch import PointRendSemanticSegmentor
from point_rend.rendering.features import FineGrainedFeatures
from point_rend.rendering.sampling import point_sample
from point_rend.rendering.subdivision import subdivide
from point_rend.runtime.description import SEM_SEG
from point_rend.semantic_seg import PointRendSemSegHead, coarse_logits, pooling_window


class Frames(NamedTuple):
    """The part of a batch that belongs to each image, at its top left.

    Attributes:
        sizes: (B, 2) int64, the height and width of each frame in pixels.
        padded: H and W.
    """

    sizes: Tensor
    padded: tuple[int, int]

    def cropped(self, maps: Tensor) -> Tensor:
        """Replace everything outside the frames by zero."""
        return self.filled(maps, 0)

    def filled(self, maps: Tensor, value: float) -> Tensor:
        """Replace everything outside the frames by a value."""
        rows, columns = self._beyond(maps)
        return torch.where((rows < 0) & (columns < 0), maps, maps.new_full((), value))

    def extended(self, maps: Tensor) -> Tensor:
        """Repeat the last row and column of each frame once, beyond it."""
        rows, columns = self._beyond(maps)
        maps = torch.where(rows == 0, maps.roll(1, dims=2), maps)
        return torch.where(columns == 0, maps.roll(1, dims=3), maps)

    def _beyond(self, maps: Tensor) -> list[Tensor]:
        """Return the distance of rows (B, 1, h, 1) and columns (B, 1, 1, w) to the frame's end."""
        distances = []
        for axis, pixels in enumerate(self.padded):
            cells = maps.shape[2 + axis]
            ends = torch.div(self.sizes[:, axis] * cells, pixels, rounding_mode="floor")
            distance = torch.arange(cells, device=maps.device) - ends[:, None]  # (B, cells)
            distances.append(distance[:, None, :, None] if axis == 0 else distance[:, None, None])
        return distances


class SemanticGraph(ImageGraph):
    """A semantic model as a graph from padded images to logits and labels.

    The results are ``logits`` (B, K, H, W), float32, and ``labels`` (B, H, W), int64. They are
    those of the model in the frame of each image, and arbitrary in the padding; H and W are rounded
    up to the stride of the coarse logits where a backbone without padding needs no such multiple.

    Args:
        model: ``PointRendSemanticSegmentor`` or Detectron2's ``SemanticSegmentor``, which renders
            the padded batch as one image; with ``PointRendSemSegHead`` or any head of Detectron2.

    Raises:
        ValueError: If the model is another one, its head a class derived from ours, which may
            render otherwise, or its backbone takes squares only.
    """

    task = SEM_SEG
    output_names = ("logits", "labels")

    head: nn.Module

    def __init__(self, model: Any) -> None:
        super().__init__(model, padding_divisor(model))
        self.head = model.sem_seg_head
        if isinstance(self.head, PointRendSemSegHead):
            check_kind("MODEL.SEM_SEG_HEAD.NAME", self.head, PointRendSemSegHead)
        self.has_frames = isinstance(model, PointRendSemanticSegmentor)
        coarse = getattr(model.sem_seg_head, "coarse_sem_seg_head", model.sem_seg_head)
        window = pooling_window(coarse)
        if window is not None:  # the graph serves the sizes that the model takes
            stride = model.backbone.output_shape()[coarse.in_features[-1]].stride
            rows, columns = (math.lcm(self.divisor, cells * stride) for cells in window)
            self.units = rows, columns

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, C, H, W) and sizes (B, 2) to logits and labels."""
        features = self.features(images, sizes)
        if not isinstance(self.head, PointRendSemSegHead):
            logits, _ = self.head(features)
        elif self.has_frames:
            height, width = images.shape[2:]
            stride = self.head.frame_stride
            whole = torch.div(sizes + (stride - 1), stride, rounding_mode="floor") * stride
            logits = _render(self.head, features, Frames(whole, (height, width)))
        else:
            logits = _render(self.head, features, None)
        return logits, logits.argmax(dim=1)


def _render(
    head: PointRendSemSegHead, features: Mapping[str, Tensor], frames: Frames | None
) -> Tensor:
    """Return the logits (B, K, H, W) of a batch; without frames it is rendered as a whole."""
    levels = [features[name] for name in head.in_features]
    coarse = seen = coarse_logits(head.coarse_sem_seg_head, features)
    if frames is not None:
        levels, seen = [frames.cropped(level) for level in levels], frames.cropped(coarse)
    fine = FineGrainedFeatures(levels, [1.0] * len(levels))

    def predict(coords: Tensor) -> Tensor:
        return head.point_head(fine.sample(coords), point_sample(seen, coords))

    def uncertainty(logits: Tensor) -> Tensor:
        values = head.uncertainty(logits)
        return values if frames is None else frames.filled(values, -torch.inf)

    return subdivide(
        coarse,
        predict,
        uncertainty,
        steps=head.steps,
        points_per_step=head.points_per_step,
        extend=None if frames is None else frames.extended,
    )


def padding_divisor(model: Any) -> int:
    """Return the number of which both sides of a batch are multiples.

    Raises:
        ValueError: if the model is no semantic one, or takes squares only.
    """
    check_kind("MODEL.META_ARCHITECTURE", model, PointRendSemanticSegmentor, SemanticSegmentor)
    check_backbone(model.backbone)
    constraints = model.backbone.padding_constraints
    divisor = constraints.get("size_divisibility", model.backbone.size_divisibility) or 1
    if isinstance(model, PointRendSemanticSegmentor):
        return math.lcm(divisor, getattr(model.sem_seg_head, "frame_stride", 1))
    return divisor
