"""Bin boundaries of RoIAlign over ground-truth masks, and bounds on its rounding."""

from typing import NamedTuple

import torch
from torch import Tensor

# RoIAlign computes in float32. A compiler that fuses its products and sums moves a sample by this
# share of the coordinates at most; each sample that is added up rounds a cell's mean.
ROUNDING_OF_A_PLACE = 3e-7
ROUNDING_OF_A_SAMPLE = 1e-7


class _Bins(NamedTuple):
    """How RoIAlign divides an axis of N boxes into S bins each.

    Attributes:
        weights: (N, S, L) float64, what each of the L pixels counts for a bin's mean; they sum up
            to at most 1 along L.
        samples: (N,) samples of a bin.
        doubts: (N,) how far RoIAlign's means may be from those of the weights; infinite where a
            sample is as good as on the limit beyond which it counts nothing.
    """

    weights: Tensor
    samples: Tensor
    doubts: Tensor


def _bins(extents: Tensor, length: int, bins: int) -> _Bins:
    """Compute what each pixel of an axis counts for the means that RoIAlign makes.

    A bin has a sample per pixel of its extent, rounded up; a sample interpolates between the
    centers of two pixels. Up to one pixel outside the first and the last center they are repeated,
    beyond that is nothing.

    Args:
        extents: (N, 2) float32, from where to where the bins reach, in pixels; what is not finite
            counts as empty.
        length: L, pixels of the axis.
        bins: S.
    """
    extents = extents.where(extents.isfinite().all(1, keepdim=True), 0)
    first, last = (extents - 0.5).unbind(1)  # in pixels from the center of the first one
    # Not by a number: on a GPU torch would multiply by its reciprocal, which may add a sample.
    bin_length = (last - first) / torch.full_like(first, bins)
    samples = bin_length.ceil().clamp(min=0)
    numbers = torch.arange(int(samples.max()) if len(samples) else 0, device=extents.device)
    edges = first[:, None] + torch.arange(bins, device=extents.device) * bin_length[:, None]
    within = (numbers + 0.5) * bin_length[:, None] / samples[:, None]
    places = edges[:, :, None] + within[:, None]  # (N, S, samples)
    exists = (numbers < samples[:, None])[:, None]
    doubts = ROUNDING_OF_A_PLACE * torch.maximum(first.abs(), last.abs())
    to_limit = torch.minimum((places + 1).abs(), (places - length).abs())
    on_limit = (exists & (to_limit <= doubts[:, None, None])).flatten(1).any(1)
    counted = exists & (places >= -1) & (places <= length)
    places = places.where(counted, 0).clamp(0, length - 1)
    lower = places.long()
    upper = (lower + 1).clamp(max=length - 1)
    of_upper = (places - lower).double()
    share = counted / samples.clamp(min=1)[:, None, None].double()
    weights = share.new_zeros(*edges.shape, length)
    weights.scatter_add_(2, lower, (1 - of_upper) * share)
    weights.scatter_add_(2, upper, of_upper * share)
    return _Bins(weights, samples, doubts.masked_fill(on_limit, torch.inf))
