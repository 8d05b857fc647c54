"""RoIAlign that reads whole positions of feature maps, and the box head behind it.

Torchvision's RoIAlign visits each channel by itself, and copies maps in channels-last format. Here
each bin is a weighted sum of rows, a row being all channels of a position. The weights of the
samples along one axis add up to one weight per row or column before they are multiplied.

Shapes: N boxes, C channels, S side of the pooled grid, G samples of a bin along an axis.
"""

import functools
import math

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.structures import Boxes
from torch import Tensor, nn

from point_rend.acceleration.inference import derived, has_hooks, is_accelerated
from point_rend.rendering.bilinear_gather import weighted_sums

CELLS_AT_ONCE = 1 << 21  # whose indices and weights take 32 MiB, with copies


class FastROIPooler(ROIPooler):
    """Detectron2's pooler, whose RoIAlign reads whole positions.

    Other pooling types and a fixed number of samples take the original way.
    """

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool boxes from their levels: (N, C, S, S), in channels-last format."""
        poolers = list(self.level_poolers)
        if (
            not box_lists
            or not all(type(p) is ROIAlign and p.sampling_ratio <= 0 for p in poolers)
            or not all(type(boxes) is Boxes for boxes in box_lists)
            or not is_accelerated(self, x[0])
        ):
            return super().forward(x, box_lists)
        boxes = convert_boxes_to_pooler_format(box_lists)
        levels = torch.zeros(len(boxes), dtype=torch.int64)
        if len(poolers) > 1:
            range_of_levels = self.min_level, self.max_level
            canonical = self.canonical_box_size, self.canonical_level
            levels = assign_boxes_to_levels(box_lists, *range_of_levels, *canonical)
        height, width = self.output_size
        # Boxes whose area is not a number belong to no level.
        pooled = boxes.new_zeros(len(boxes), height, width, x[0].shape[1])
        for number, (features, pooler) in enumerate(zip(x, poolers, strict=True)):
            chosen = (levels == number).nonzero()[:, 0]
            align_boxes(features, boxes[chosen], pooler, pooled, chosen)
        return pooled.permute(0, 3, 1, 2)


def align_boxes(
    features: Tensor, boxes: Tensor, pooler: ROIAlign, pooled: Tensor, places: Tensor
) -> None:
    """Write RoIAlign of some boxes into the rows of a tensor.

    Args:
        features: (images, C, H, W).
        boxes: (N, 5) image and corners (x0, y0, x1, y1) in pixels.
        pooler: Scale and grid; it takes as many samples as a bin has cells.
        pooled: (…, S, S, C).
        places: (N,) rows of ``pooled``.
    """
    channels, height, width = features.shape[1:]
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    offset = 0.5 if pooler.aligned else 0.0
    corners = boxes[:, 1:] * pooler.spatial_scale - offset
    first, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not pooler.aligned:
        sides = sides.clamp(min=1)
    bins = torch.tensor(pooler.output_size[::-1], dtype=sides.dtype)
    bin_sides = sides / bins
    counts = bin_sides.ceil().nan_to_num(0, posinf=0, neginf=0).clamp(min=0).to(torch.int64)
    image_rows = (boxes[:, 0] * height).to(torch.int32)
    groups, group_of_box = counts.unique(dim=0, return_inverse=True)
    for number, (count_x, count_y) in enumerate(groups.tolist()):
        members = (group_of_box == number).nonzero()[:, 0]
        if not count_x * count_y:  # without samples the bins are 0
            pooled[places[members]] = 0
            continue
        cells_of_box = math.prod(pooler.output_size) * (count_x + 1) * (count_y + 1)
        for group in members.split(max(1, CELLS_AT_ONCE // cells_of_box)):
            axes = [
                _weights_along(first[group, axis], bin_sides[group, axis], count, side, size)
                for axis, (count, side, size) in enumerate(
                    (
                        (count_x, pooler.output_size[1], width),
                        (count_y, pooler.output_size[0], height),
                    )
                )
            ]
            (columns, weights_x), (rows, weights_y) = axes
            rows = (rows + image_rows[group, None, None]) * width
            # (N, rows of bins, columns of bins, rows of cells, columns of cells)
            cells = rows[:, :, None, :, None] + columns[:, None, :, None, :]
            weights = weights_y[:, :, None, :, None] * weights_x[:, None, :, None, :]
            per_bin = cells.shape[3] * cells.shape[4]
            offsets = torch.arange(0, cells.numel(), per_bin, dtype=cells.dtype)
            sums = weighted_sums(table, cells.flatten(), weights.flatten(), offsets)
            pooled[places[group]] = sums.view(-1, *pooled.shape[1:])


def _weights_along(
    first: Tensor, bin_side: Tensor, count: int, num_bins: int, size: int
) -> tuple[Tensor, Tensor]:
    """Return the cells that the bins of boxes read along one axis, and their weights.

    Args:
        first: (N,) position of the box, in cells; the center of cell 0 is at 0.
        bin_side: (N,) length of a bin.
        count: G, at least the length of each bin, so that samples are at most one cell apart.
        num_bins: S.
        size: Number of cells.

    Returns:
        Indices (int32) and weights, (N, S, G + 1) each.
    """
    starts = first[:, None] + torch.arange(num_bins) * bin_side[:, None]
    samples = (torch.arange(count) + 0.5) * bin_side[:, None] / count
    samples = starts[:, :, None] + samples[:, None]  # (N, S, G)
    is_inside = (samples >= -1) & (samples <= size)
    samples = samples.clamp(0, size - 1)
    cells = samples[:, :, :1].floor() + torch.arange(count + 1)
    shares = (1 - (samples[:, :, :, None] - cells[:, :, None]).abs()).clamp(min=0)
    weights = (shares * is_inside[:, :, :, None]).sum(dim=2) / count
    return cells.clamp(max=size - 1).to(torch.int32), weights


class FastRCNNHead(FastRCNNConvFCHead):
    """Detectron2's box head, whose first fully connected layer reads channels-last features."""

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled features (N, C, S, S) to (N, outputs)."""
        layers = list(self)
        flat = next((k for k, layer in enumerate(layers) if isinstance(layer, nn.Flatten)), -1)
        # A layer that somebody has replaced or observes takes its own way.
        linear = layers[flat + 1] if flat >= 0 else None
        if type(linear) is not nn.Linear or has_hooks(linear) or not is_accelerated(self, x):
            return super().forward(x)
        for layer in layers[:flat]:
            x = layer(x)
        make = functools.partial(_by_position, linear.weight, x.shape[1:])
        weight = derived(linear, [linear.weight, *x.shape[1:]], make)
        x = F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, linear.bias)
        for layer in layers[flat + 2 :]:
            x = layer(x)
        return x


def _by_position(weight: Tensor, shape: torch.Size) -> Tensor:
    return weight.unflatten(1, shape).permute(0, 2, 3, 1).flatten(1)
