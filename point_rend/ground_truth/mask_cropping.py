"""RoIAlign over masks, one axis at a time: bin weights and bounds on their rounding error.

Shapes: N boxes, S bins per axis, L pixels of the axis.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# RoIAlign computes in float32. If a compiler fuses its products and sums, a sample moves by at most
# this fraction of its coordinate; each sample that is added up rounds the mean of a cell.
POSITION_ROUNDING = 3e-7
SAMPLE_ROUNDING = 1e-7


class AxisBins(NamedTuple):
    """The bins into which RoIAlign divides one axis of the boxes.

    Attributes:
        weights: (N, S, L) float64, the weight of each pixel in the mean of a bin; they sum to at
            most 1 along L.
        num_samples: (N,) samples per bin.
        error_bounds: (N,) bounds on the difference between the means of RoIAlign and those of the
            weights; infinite if a sample lies, up to rounding, on the limit beyond which RoIAlign
            ignores it.
    """

    weights: Tensor
    num_samples: Tensor
    error_bounds: Tensor


def axis_bins(extents: Tensor, length: int, bins: int) -> AxisBins:
    """Compute the bins of boxes along one axis.

    Convention: a bin has one sample per pixel of its extent, rounded up; a sample interpolates
    between the centers of two pixels. Up to one pixel beyond the first and the last center the
    outermost pixels are repeated; samples further out are ignored.

    Args:
        extents: (N, 2) float32, start and end of each box in pixels, finite.
        length: L.
        bins: S.
    """
    first, last = (extents - 0.5).unbind(1)  # in pixels from the center of the first one
    # Not by a number: on a GPU torch would multiply by its reciprocal, which may add a sample.
    bin_length = (last - first) / torch.full_like(first, bins)
    num_samples = bin_length.ceil().clamp(min=0)
    numbers = torch.arange(int(num_samples.max()) if len(extents) else 0, device=extents.device)
    edges = first[:, None] + torch.arange(bins, device=extents.device) * bin_length[:, None]
    within = (numbers + 0.5) * bin_length[:, None] / num_samples[:, None]
    positions = edges[:, :, None] + within[:, None]  # (N, S, samples)
    exists = (numbers < num_samples[:, None])[:, None]
    error_bounds = POSITION_ROUNDING * torch.maximum(first.abs(), last.abs())
    to_limit = torch.minimum((positions + 1).abs(), (positions - length).abs())
    on_limit = (exists & (to_limit <= error_bounds[:, None, None])).flatten(1).any(1)
    counted = exists & (positions >= -1) & (positions <= length)
    positions = positions.where(counted, 0).clamp(0, length - 1)
    lower = positions.long()
    upper = (lower + 1).clamp(max=length - 1)
    upper_weight = (positions - lower).double()
    share = counted / num_samples.clamp(min=1)[:, None, None].double()
    weights = share.new_zeros(*edges.shape, length)
    weights.scatter_add_(2, lower, (1 - upper_weight) * share)
    weights.scatter_add_(2, upper, upper_weight * share)
    return AxisBins(weights, num_samples, error_bounds.masked_fill(on_limit, torch.inf))
