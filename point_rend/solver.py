"""SGD and AdamW with clipped gradients; the poly schedule of DeepLab and mmsegmentation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import LRMultiplier, LRScheduler
from detectron2.solver import build_lr_scheduler as build_d2_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from point_rend.config.defaults import with_defaults

ADAMW = "ADAMW"  # of SOLVER.OPTIMIZER


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER``, with ``SOLVER.CLIP_GRADIENTS`` for each parameter by itself.

    Unlike Detectron2's clipping, it passes over parameters without a gradient.

    Args:
        cfg: The config of the run; one of Detectron2 may lack our keys.
        model: The model, not wrapped.
    """
    cfg = with_defaults(cfg)
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=build_lr_factors(cfg) if solver.LAYER_DECAY != 1 else None,
        overrides={name: {"weight_decay": 0.0} for name in solver.NO_WEIGHT_DECAY},
    )
    optimizer: torch.optim.Optimizer
    if solver.OPTIMIZER == ADAMW:
        optimizer = torch.optim.AdamW(groups, solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    else:
        optimizer = torch.optim.SGD(
            groups,
            solver.BASE_LR,
            momentum=solver.MOMENTUM,
            nesterov=solver.NESTEROV,
            weight_decay=solver.WEIGHT_DECAY,
            foreach=True,
        )
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        clip = build_clipping(cfg)

        def clip_all(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        clip(parameter)

        optimizer.register_step_pre_hook(clip_all)
    return optimizer


def build_lr_factors(cfg: CfgNode) -> Callable[[str], float]:
    """Build the function that maps the name of a parameter to a factor of its learning rate.

    ViTDet's: SOLVER.LAYER_DECAY to the power of the number of layers above the parameter's, with
    the blocks of the vision transformer as layers; 1 for all that is not in its blocks or below.
    """
    decay, depth = cfg.SOLVER.LAYER_DECAY, cfg.MODEL.VIT.DEPTH
    return partial(get_vit_lr_decay_rate, lr_decay_rate=decay, num_layers=depth)


def build_clipping(cfg: CfgNode) -> Callable[[Tensor], object]:
    """Build the function that clips the gradient of a parameter in place."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    kind, limit, norm = clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE
    if kind == "value":
        return lambda parameter: clip_grad_value_(parameter, limit)
    return lambda parameter: clip_grad_norm_(parameter, limit, norm)


@dataclass(frozen=True)
class WarmupPoly(ParamScheduler):
    """Learning-rate multiplier at a fraction t of the training, 0 to 1.

    Convention: warm-up(t) · ((1 - floor) · (1 - t)^power + floor), where the warm-up rises from
    ``warmup_factor`` to 1 over the first ``warmup_share`` of the training. After the warm-up the
    multiplier never falls below ``constant_ending``.

    Args:
        power: exponent of the decay, 0 or more.
        floor: multiplier at the end of the decay, 0 to 1.
        constant_ending: lower limit of the multiplier after the warm-up, 0 to 1.
        warmup_factor: factor of the first iteration, 0 to 1.
        warmup_share: length of the warm-up as a fraction of the training, 0 to 1; 0 for none.
        warmup_method: "linear", or "constant", which stays at ``warmup_factor``.

    Raises:
        ValueError: if a number is out of range or the method is unknown.
    """

    power: float = 0.9
    floor: float = 0.0
    constant_ending: float = 0.0
    warmup_factor: float = 0.001
    warmup_share: float = 0.0
    warmup_method: str = "linear"

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"SOLVER.POLY_LR_POWER: expected 0 or more, got {self.power}")
        for name, value in {
            "SOLVER.BASE_LR_END / SOLVER.BASE_LR": self.floor,
            "SOLVER.POLY_LR_CONSTANT_ENDING": self.constant_ending,
            "SOLVER.WARMUP_FACTOR": self.warmup_factor,
        }.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {value}")
        if self.warmup_method not in ("linear", "constant"):
            raise ValueError(
                f"SOLVER.WARMUP_METHOD: expected linear or constant, got {self.warmup_method!r}"
            )

    def __call__(self, where: float) -> float:
        """Return the multiplier at a fraction of the training."""
        decay = (1 - self.floor) * max(0.0, 1 - where) ** self.power + self.floor
        if where >= self.warmup_share:
            return max(decay, self.constant_ending)
        done = where / self.warmup_share if self.warmup_method == "linear" else 0.0
        return decay * (self.warmup_factor * (1 - done) + done)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names.

    ``WarmupPolyLR`` is DeepLab's schedule, or with ``SOLVER.BASE_LR_END`` that of mmsegmentation:
    lr = (BASE_LR - BASE_LR_END) · (1 - i / MAX_ITER)^POLY_LR_POWER + BASE_LR_END. All other names
    are those of Detectron2.

    Args:
        cfg: the config of the run.
        optimizer: the optimizer, whose groups all get the same multiplier.

    Returns:
        A scheduler that is stepped once per iteration.

    Raises:
        ValueError: if the name is unknown or a number is out of range.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_d2_lr_scheduler(cfg, optimizer)
    if solver.MAX_ITER < 1:
        raise ValueError(f"SOLVER.MAX_ITER: expected 1 or more, got {solver.MAX_ITER}")
    if solver.BASE_LR <= 0:
        raise ValueError(f"SOLVER.BASE_LR: expected more than 0, got {solver.BASE_LR}")
    multiplier = WarmupPoly(
        power=solver.POLY_LR_POWER,
        floor=solver.BASE_LR_END / solver.BASE_LR,
        constant_ending=solver.POLY_LR_CONSTANT_ENDING,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_share=solver.WARMUP_ITERS / solver.MAX_ITER,
        warmup_method=solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)
