"""A benchmark case: two sides that do the same work."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AMP_TYPES = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
Run = Callable[[], Any]


@dataclass(frozen=True)
class Settings:
    """What a command asks for.

    Args:
        device: of torch.
        repeat: number of timed runs of each side.
        seed: of weights and inputs.
        boxes, classes: numbers that take the place of each case's own.
        amp: name in ``AMP_TYPES``; both sides run under it.
        opts: keys and values of the config, for our side only.
    """

    device: str = "cpu"
    repeat: int = 5
    seed: int = 0
    boxes: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    amp: str = "none"
    opts: tuple[str, ...] = ()

    def autocast(self) -> torch.autocast:
        """Return a context of the precision that was asked for, to be entered once."""
        dtype = AMP_TYPES[self.amp]
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of two sides agree.

    Args:
        largest: largest difference of two probabilities; of training, relative one of a loss or of
            the norm of a gradient.
        differing: share of the pixels, or points, that are decided otherwise.
        boundary: share of neighboring pixels in a row that the rival decides otherwise; near 0
            the outputs are flat, and their agreement says little.
    """

    largest: float
    differing: float | None = None
    boundary: float | None = None


@dataclass(frozen=True)
class Contest:
    """Two ways to the same end.

    Args:
        ours, rival: each returns an output of its own.
        compare: maps our output and the rival's to their agreement; None where the two are not
            meant to be equal.
        heads: ours and the rival's, where their share of the time is to be told.
        training: whether gradients are computed; then the runs enter autocast themselves, which
            is for the losses and not for their gradients.
        of_images: ours and the rival's for any number of images, where it is to be told how many
            fit into a GPU's memory.
    """

    ours: Run
    rival: Run
    compare: Callable[[Any, Any], Agreement] | None = None
    heads: tuple[nn.Module, nn.Module] | None = None
    training: bool = False
    of_images: tuple[Callable[[int], Any], Callable[[int], Any]] | None = None


@dataclass(frozen=True)
class Case:
    """A contest that has not been built yet.

    Args:
        name: for people.
        parameters: what distinguishes it from others of its kind.
        rival: name of the other side.
        build: makes the contest.
        rival_bytes: memory that the rival needs, where it is known to be large.
    """

    name: str
    parameters: Mapping[str, int]
    rival: str
    build: Callable[[Settings], Contest]
    rival_bytes: int = 0


# Agreement
def decided_agreement(
    ours: Tensor, theirs: Tensor, our_decision: Tensor, their_decision: Tensor
) -> Agreement:
    """Compare probabilities, and what is decided by them at each pixel (…, H, W)."""
    neighbors = their_decision[..., 1:] != their_decision[..., :-1]
    return Agreement(
        differing=(our_decision != their_decision).double().mean().item(),
        largest=(ours - theirs).abs().max().item(),
        boundary=neighbors.double().mean().item(),
    )


def mask_agreement(ours: Tensor, theirs: Tensor) -> Agreement:
    """Compare masks (N, 1, S, S) of probabilities, decided above 0.5.

    Ours are resized to the rival's side where an option gives them another.
    """
    if ours.shape != theirs.shape:
        ours = F.interpolate(ours, size=theirs.shape[-2:], mode="bilinear", align_corners=False)
    return decided_agreement(ours.float(), theirs.float(), ours > 0.5, theirs > 0.5)


def label_agreement(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Agreement:
    """Compare pairs of logits (K, H, W) and the label maps (H, W) that follow from them."""
    our_probabilities, their_probabilities = (x[0].float().softmax(dim=0) for x in (ours, theirs))
    return decided_agreement(our_probabilities, their_probabilities, ours[1], theirs[1])
