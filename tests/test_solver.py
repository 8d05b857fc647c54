"""Clipping against Detectron2; the poly schedule against mmsegmentation and DeepLab."""

import math
import warnings

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_optimizer as build_d2_optimizer

from point_rend.config.defaults import add_pointrend_config
from point_rend.engine.trainer import Trainer
from point_rend.solver import WarmupPoly, build_lr_scheduler

BASE, FLOOR, ITERATIONS, WARMUP = 0.01, 1e-4, 80000, 200


def solver_cfg(**values: object) -> CfgNode:
    cfg = get_cfg()
    add_pointrend_config(cfg)
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.BASE_LR = BASE
    cfg.SOLVER.MAX_ITER = ITERATIONS
    for name, value in values.items():
        cfg.SOLVER[name] = value
    return cfg


def mmsegmentation_cfg(**values: object) -> CfgNode:
    recipe = {"BASE_LR_END": FLOOR, "WARMUP_ITERS": WARMUP, "WARMUP_FACTOR": 0.1}
    return solver_cfg(**(recipe | values))


def optimizer_of(rate: float = BASE) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def rate_at(cfg: CfgNode, iteration: int) -> float:
    """Return the learning rate of an iteration, as in a resumed training."""
    optimizer = optimizer_of(cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    if iteration:
        scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": iteration - 1})
        optimizer.step()
        scheduler.step()
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("iteration", [200, 201, 1000, 40000, 79999, 80000])
def test_after_the_warm_up_the_rate_is_mmsegmentations_poly_curve(iteration):
    expected = (BASE - FLOOR) * (1 - iteration / ITERATIONS) ** 0.9 + FLOOR
    assert rate_at(mmsegmentation_cfg(), iteration) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("iteration", [0, 1, 100, 199])
def test_the_warm_up_is_a_straight_factor_on_that_curve(iteration):
    curve = (BASE - FLOOR) * (1 - iteration / ITERATIONS) ** 0.9 + FLOOR
    factor = 0.1 + 0.9 * iteration / WARMUP
    assert rate_at(mmsegmentation_cfg(), iteration) == pytest.approx(factor * curve, rel=1e-9)


def test_the_first_and_the_last_rate_by_hand():
    assert rate_at(mmsegmentation_cfg(), 0) == pytest.approx(0.001)
    assert rate_at(mmsegmentation_cfg(), 80000) == pytest.approx(0.0001)


@pytest.mark.parametrize("ending", [0.0, 0.3])
@pytest.mark.parametrize("method", ["linear", "constant"])
def test_without_a_floor_the_schedule_is_that_of_detectron2s_deeplab(ending, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from detectron2.projects.deeplab import build_lr_scheduler as build_deeplab_scheduler
    cfg = solver_cfg(
        MAX_ITER=50, WARMUP_ITERS=10, POLY_LR_CONSTANT_ENDING=ending, WARMUP_METHOD=method
    )
    ours, deeplab = optimizer_of(), optimizer_of()
    schedulers = [build_lr_scheduler(cfg, ours), build_deeplab_scheduler(cfg, deeplab)]
    for _ in range(50):
        (our_group,), (expected_group,) = ours.param_groups, deeplab.param_groups
        assert our_group["lr"] == pytest.approx(expected_group["lr"], rel=1e-9, abs=1e-12)
        for optimizer, scheduler in zip((ours, deeplab), schedulers, strict=True):
            optimizer.step()
            scheduler.step()


def test_groups_keep_their_ratio():
    optimizer = optimizer_of()
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 3 * BASE})
    build_lr_scheduler(mmsegmentation_cfg(), optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[1] == pytest.approx(3 * rates[0])


def test_other_names_are_those_of_detectron2():
    cfg = solver_cfg(LR_SCHEDULER_NAME="WarmupMultiStepLR", STEPS=(100,), WARMUP_ITERS=0)
    assert rate_at(cfg, 99) == pytest.approx(BASE)
    assert rate_at(cfg, 100) == pytest.approx(BASE / 10)
    with pytest.raises(ValueError, match="NoSuchLR"):
        build_lr_scheduler(solver_cfg(LR_SCHEDULER_NAME="NoSuchLR"), optimizer_of())


def test_a_training_uses_the_schedule_and_resumes_it():
    cfg = mmsegmentation_cfg()
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer_of())
    assert scheduler.get_last_lr() == [pytest.approx(0.001)]
    assert scheduler.state_dict().keys() == {"base_lrs", "last_epoch"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"BASE_LR_END": 0.02}, r"BASE_LR_END / SOLVER.BASE_LR: expected 0 to 1, got 2.0"),
        ({"BASE_LR": 0.0}, "SOLVER.BASE_LR: expected more than 0, got 0.0"),
        ({"MAX_ITER": 0}, "SOLVER.MAX_ITER: expected 1 or more, got 0"),
        ({"POLY_LR_CONSTANT_ENDING": -0.1}, "POLY_LR_CONSTANT_ENDING: expected 0 to 1, got -0.1"),
        ({"POLY_LR_POWER": -1.0}, "POLY_LR_POWER: expected 0 or more, got -1.0"),
        ({"WARMUP_FACTOR": 2.0}, "WARMUP_FACTOR: expected 0 to 1, got 2.0"),
        (
            {"WARMUP_METHOD": "exponential"},
            "WARMUP_METHOD: expected linear or constant, got 'exponential'",
        ),
    ],
)
def test_a_number_that_cannot_work_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        build_lr_scheduler(mmsegmentation_cfg(**values), optimizer_of())


def test_the_multiplier_never_rises_after_the_warm_up():
    poly = WarmupPoly(floor=0.01, warmup_share=0.1, warmup_factor=0.1)
    multipliers = [poly(step / 100) for step in range(10, 101)]
    assert multipliers == sorted(multipliers, reverse=True)


@pytest.mark.parametrize(
    ("kind", "limit", "norm"), [("value", 0.01, 2.0), ("norm", 0.05, 2.0), ("norm", 0.02, math.inf)]
)
def test_gradients_are_clipped_as_by_detectron2(kind, limit, norm):
    cfg = solver_cfg()
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE = True, kind, limit, norm
    trained = []
    for build in (Trainer.build_optimizer, build_d2_optimizer):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
        start = [parameter.clone() for parameter in model.parameters()]
        optimizer = build(cfg, model)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).pow(3).sum().backward()
            optimizer.step()
        trained.append([*model.parameters()])
        assert not any(map(torch.equal, start, trained[-1]))
    assert all(map(torch.equal, *trained))


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_clipping_passes_over_a_parameter_without_a_gradient(kind):
    cfg = solver_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    used, unused = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    start = [parameter.clone() for parameter in unused.parameters()]
    optimizer = Trainer.build_optimizer(cfg, torch.nn.ModuleList([used, unused]))
    used(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert all(map(torch.equal, start, unused.parameters()))
