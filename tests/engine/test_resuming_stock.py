"""Trainings that the stock project began go on with ours as if they had not been interrupted."""

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from point_rend import stock_heads
from point_rend.data.loader.loaders import build_train_loader
from point_rend.data.mapper import NamingDatasetMapper
from point_rend.engine.hooks import SeedEachIteration
from point_rend.engine.trainer import Trainer
from tests.engine.killing import command
from tests.runs import refusal, set_up
from tests.tiny_datasets import CocoSet

pytest.importorskip("detectron2.projects.point_rend")
pytestmark = pytest.mark.usefixtures("_restored")

IMPLICIT = "InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco"
GROUPS = [
    *("SOLVER.WEIGHT_DECAY_NORM", "0.0", "SOLVER.WEIGHT_DECAY_BIAS", "0.001"),
    *("SOLVER.BIAS_LR_FACTOR", "2.0"),
]


class StockTrainer(DefaultTrainer):
    """The trainer of the stock project, fed with the batches and random numbers of ours."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        with stock_heads():
            model = super().build_model(cfg)
        module = type(model.roi_heads.mask_head).__module__
        assert module == "detectron2.projects.point_rend.mask_head"
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_train_loader(cfg, NamingDatasetMapper(cfg, is_train=True))

    def build_hooks(self) -> list[Any]:
        return [SeedEachIteration(), *super().build_hooks()]


class Metrics(HookBase):
    """Keeps the losses and the learning rate of every iteration."""

    def __init__(self) -> None:
        self.by_iteration: dict[int, dict[str, float]] = {}

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        kept = {
            name: value for name, (value, _) in latest.items() if "loss" in name or name == "lr"
        }
        self.by_iteration[self.trainer.iter] = kept


class AdamW:
    """Replaces the optimizer of a trainer."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        groups = get_default_optimizer_params(model, cfg.SOLVER.BASE_LR, weight_decay_norm=0.0)
        # A small eps would amplify rounding in gradients that are almost 0.
        return torch.optim.AdamW(groups, cfg.SOLVER.BASE_LR, eps=1e-4)


class StockAdamWTrainer(AdamW, StockTrainer):
    """The trainer of the stock project with AdamW."""


class AdamWTrainer(AdamW, Trainer):
    """Our trainer with AdamW."""


TRAINERS = {"SGD": (StockTrainer, Trainer), "AdamW": (StockAdamWTrainer, AdamWTrainer)}


def config(mixed: CocoSet, output: Path, *more: str, implicit: bool = False) -> CfgNode:
    """Return the config of a training without evaluation, for both projects."""
    output.mkdir(exist_ok=True)
    argv = command(mixed, output, "DATASETS.TEST", "()", "MODEL.POINT_HEAD.NUM_CLASSES", "3", *more)
    if implicit:
        argv[argv.index("--config-file") + 1] = IMPLICIT
    return set_up(argv).cfg


def train(trainer: DefaultTrainer, *, until: int) -> dict[int, dict[str, float]]:
    """Train up to an iteration, save, and return the metrics of every iteration."""
    recorded = Metrics()
    trainer.register_hooks([recorded])
    trainer.max_iter = until  # the schedule goes on to MAX_ITER
    trainer.train()
    return recorded.by_iteration


@pytest.mark.parametrize(("optimizer", "implicit"), [("SGD", False), ("AdamW", True)])
def test_losses_and_rates_are_those_with_which_the_stock_project_would_have_gone_on(
    optimizer: str, implicit: bool, mixed: CocoSet, tmp_path: Path
) -> None:
    more = ["SOLVER.MAX_ITER", "6", "SOLVER.WARMUP_ITERS", "4", "SOLVER.BASE_LR", "0.001"]
    stock, ours = TRAINERS[optimizer]
    expected: dict[int, dict[str, float]] = {}
    for output, until in ((tmp_path / "whole", 6), (tmp_path / "stopped", 3)):
        torch.manual_seed(0)
        trainer = stock(config(mixed, output, *more, implicit=implicit))
        metrics = train(trainer, until=until)
        expected = expected or metrics
    assert metrics == {i: expected[i] for i in range(3)}  # an interruption alone changes nothing

    resumed = ours(config(mixed, tmp_path / "stopped", *more, implicit=implicit))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    metrics = train(resumed, until=6)
    assert list(metrics) == [3, 4, 5]
    for iteration, values in metrics.items():
        assert values.keys() == expected[iteration].keys() >= {"lr", "total_loss"}
        assert values == pytest.approx(expected[iteration], rel=1e-4)


def plant(trainer: DefaultTrainer) -> None:
    """Give every parameter a momentum that follows from its name."""
    for name, parameter in trainer.model.named_parameters():
        trainer.optimizer.state[parameter] = {"momentum_buffer": planted(name, parameter)}


def planted(name: str, parameter: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(parameter.shape, generator=generator)


def assert_planted(trainer: DefaultTrainer) -> None:
    for name, parameter in trainer.model.named_parameters():
        momentum = trainer.optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(momentum, planted(name, parameter)), name


def with_the_coarse_head_first(trainer: DefaultTrainer) -> None:
    """Give a trainer the order in which earlier versions registered the modules."""
    modules = trainer.model.roi_heads.mask_head._modules
    modules["point_head"] = modules.pop("point_head")
    optimizer = trainer.build_optimizer(trainer.cfg, trainer.model)
    trainer._trainer.optimizer = optimizer
    trainer.scheduler = trainer.build_lr_scheduler(trainer.cfg, optimizer)


def without_names(folder: Path) -> None:
    """Remove what earlier versions did not store from the last checkpoint of a folder."""
    path = folder / (folder / "last_checkpoint").read_text()
    checkpoint = torch.load(path, weights_only=True)
    for group in checkpoint["trainer"]["_trainer"]["optimizer"]["param_groups"]:
        del group["param_names"]
    torch.save(checkpoint, path)


def save(trainer: DefaultTrainer, iteration: int = 1) -> None:
    trainer.iter = iteration
    trainer.checkpointer.save("model_0000001", iteration=iteration)


@pytest.mark.parametrize("groups", [[], GROUPS], ids=["two-groups", "three-groups"])
@pytest.mark.parametrize("saver", ["stock", "ours", "ours of old"])
def test_every_momentum_lands_on_the_parameter_of_its_name(
    saver: str, groups: list[str], mixed: CocoSet, tmp_path: Path
) -> None:
    cfg = config(mixed, tmp_path / "run", *groups)
    trainer = StockTrainer(cfg) if saver == "stock" else Trainer(cfg)
    if saver == "ours of old":
        with_the_coarse_head_first(trainer)
    plant(trainer)
    save(trainer)
    if saver == "ours of old":
        without_names(tmp_path / "run")
    rates = {
        name: (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for name, parameter in trainer.model.named_parameters()
        if any(parameter is x for x in group["params"])
    }

    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    assert_planted(resumed)
    assert len(resumed.optimizer.param_groups) == (3 if groups else 2)
    for group, base in zip(resumed.optimizer.param_groups, resumed.scheduler.base_lrs, strict=True):
        assert base == group["initial_lr"]
        for name, parameter in resumed.model.named_parameters():
            if any(parameter is x for x in group["params"]):
                assert (group["lr"], group["weight_decay"]) == rates[name]


@pytest.mark.parametrize("groups", [[], GROUPS], ids=["two-groups", "three-groups"])
def test_the_stock_project_resumes_what_ours_saved(
    groups: list[str], mixed: CocoSet, tmp_path: Path
) -> None:
    cfg = config(mixed, tmp_path / "run", *groups)
    trainer = Trainer(cfg)
    plant(trainer)
    save(trainer)
    stock = StockTrainer(cfg)
    stock.resume_or_load(resume=True)
    assert stock.start_iter == 2
    assert_planted(stock)


def test_the_loss_scale_of_the_stock_project_goes_on(mixed: CocoSet, tmp_path: Path) -> None:
    cfg = config(mixed, tmp_path / "run")
    trainer = StockTrainer(cfg)
    save(trainer)
    path = tmp_path / "run" / "model_0000001.pth"
    checkpoint = torch.load(path, weights_only=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0).state_dict() | {"_growth_tracker": 7}
    checkpoint["trainer"]["_trainer"]["grad_scaler"] = scaler  # as on a GPU
    torch.save(checkpoint, path)

    amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"]
    resumed = Trainer(config(mixed, tmp_path / "run", *amp))
    resumed.resume_or_load(resume=True)
    assert resumed._trainer.grad_scaler.state_dict() == scaler


def test_a_contradiction_is_refused_in_one_line_that_names_a_parameter(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    trainer = StockTrainer(config(mixed, output))
    plant(trainer)
    bias = trainer.model.roi_heads.mask_head.coarse_head.prediction.bias
    trainer.optimizer.state[bias]["momentum_buffer"] = torch.zeros(96)
    save(trainer)
    argv = command(mixed, output, "DATASETS.TEST", "()")
    line = refusal(argv, capsys)
    name = "roi_heads.mask_head.coarse_head.prediction.bias"
    assert f"{output / 'model_0000001.pth'} cannot be resumed" in line
    assert f"momentum_buffer of shape (96,) instead of (147,) for {name}" in line

    line = refusal([*argv, "MODEL.BACKBONE.FREEZE_AT", "2"], capsys)
    assert "they differ from backbone.bottom_up.stem" not in line  # that one is frozen
    assert "parameters in groups of" in line
    assert "they differ from backbone." in line
