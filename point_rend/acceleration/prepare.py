"""Preparation of a model for inference."""

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.layers import Conv2d
from detectron2.modeling.backbone import FPN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from torch import nn

from point_rend.acceleration.convolution import FastConv2d
from point_rend.acceleration.inference import forget_derived
from point_rend.acceleration.pooling import FastRCNNHead, FastROIPooler
from point_rend.acceleration.proposals import FastRPN
from point_rend.acceleration.pyramid import FastFPN

FASTER: dict[type[nn.Module], type[nn.Module]] = {
    Conv2d: FastConv2d,
    FPN: FastFPN,
    RPN: FastRPN,
    ROIPooler: FastROIPooler,
    FastRCNNConvFCHead: FastRCNNHead,
}


def prepare_for_inference(model: nn.Module) -> nn.Module:
    """Let a model's modules compute their results in a faster way on a CPU.

    The results are the same up to the rounding of float32. Each module of a class in ``FASTER``,
    but none of its subclasses, becomes one of the faster class with the same parameters, buffers,
    submodules and hooks; state dict and training stay as they were. What a module derives from its
    weights is computed at the first image, and again after the weights have changed. A layer with
    hooks is not merged into another one.

    Training, gradients, accelerators, mixed precision, traces and exports still take the original
    way, see :func:`is_accelerated`.

    Args:
        model: A model; it is changed.

    Returns:
        The same model.
    """
    _prepare(model)
    return model


@contextmanager
def prepared_for_inference(model: nn.Module) -> Iterator[None]:
    """Prepare a model, such as one that is being trained, for the length of a context.

    Afterwards, its modules have their classes again, and what they derived is forgotten.
    """
    prepared = _prepare(model)
    try:
        yield
    finally:
        for module, original in prepared:
            module.__class__ = original
        for module in model.modules():
            forget_derived(module)


def _prepare(model: nn.Module) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Replace the classes of modules; return the modules with their former classes."""
    found = [(module, type(module)) for module in model.modules() if type(module) in FASTER]
    for module, original in found:
        module.__class__ = FASTER[original]
    return found
