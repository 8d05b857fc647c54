"""Benchmark cases: two sides that do the same work, and how far their outputs agree.

Shapes: N masks, K classes, S side of a mask, H and W of an image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from point_rend.experiments.benchmark.settings import Settings

Run = Callable[[], Any]


@dataclass(frozen=True)
class Agreement:
    """Agreement of the outputs of two sides.

    Attributes:
        largest: Largest absolute difference of two probabilities; of a training step, largest
            relative difference of a loss or of the norm of a gradient.
        differing: Share, from 0 to 1, of the pixels or points that are decided differently.
        boundary: Share, from 0 to 1, of horizontally neighboring pixels that the baseline decides
            differently; near 0 the outputs are flat, and agreement means little.
    """

    largest: float
    differing: float | None = None
    boundary: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two ways to compute the same result.

    Attributes:
        ours, baseline: Functions that return an output each.
        compare: Maps our output and the baseline's to their agreement; None where the two are not
            meant to be equal.
        heads: Our head and the baseline's, where their share of the time is measured.
        training: Whether gradients are computed. The runs then enter autocast themselves, for the
            losses and not for their gradients.
        batch_steps: Our training step and the baseline's, as functions of the number of images,
            where the largest batch that fits on a GPU is measured.
    """

    ours: Run
    baseline: Run
    compare: Callable[[Any, Any], Agreement] | None = None
    heads: tuple[nn.Module, nn.Module] | None = None
    training: bool = False
    batch_steps: tuple[Callable[[int], Any], Callable[[int], Any]] | None = None


@dataclass(frozen=True)
class Case:
    """A comparison that is still to be built.

    Attributes:
        name: Title in the table.
        parameters: What distinguishes the case from others of its kind.
        baseline: Name of the baseline.
        build: Builds the comparison.
        baseline_bytes: Estimated peak memory of the baseline, where it is large.
    """

    name: str
    parameters: Mapping[str, int]
    baseline: str
    build: Callable[[Settings], Comparison]
    baseline_bytes: int = 0


def mask_agreement(ours: Tensor, baseline: Tensor) -> Agreement:
    """Compare mask probabilities (N, 1, S, S), decided at 0.5.

    Our masks are resized to the baseline's side where an option gives them another one.
    """
    if ours.shape != baseline.shape:
        ours = F.interpolate(ours, size=baseline.shape[-2:], mode="bilinear", align_corners=False)
    return _decided_agreement(ours.float(), baseline.float(), ours > 0.5, baseline > 0.5)


def label_agreement(ours: tuple[Tensor, Tensor], baseline: tuple[Tensor, Tensor]) -> Agreement:
    """Compare pairs of logits (K, H, W) and the label map (H, W) that follows from them."""
    our_probabilities, probabilities = (x[0].float().softmax(dim=0) for x in (ours, baseline))
    return _decided_agreement(our_probabilities, probabilities, ours[1], baseline[1])


def _decided_agreement(
    ours: Tensor, baseline: Tensor, our_decision: Tensor, baseline_decision: Tensor
) -> Agreement:
    """Compare probabilities, and the decision that follows from them at each pixel (…, H, W)."""
    neighbors_differ = baseline_decision[..., 1:] != baseline_decision[..., :-1]
    return Agreement(
        differing=(our_decision != baseline_decision).double().mean().item(),
        largest=(ours - baseline).abs().max().item(),
        boundary=neighbors_differ.double().mean().item(),
    )
