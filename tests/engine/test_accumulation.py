"""Several batches for one update, against one large batch and slow sums."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import Backbone, build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.utils.events import EventStorage
from fvcore.common.param_scheduler import ConstantParamScheduler
from torch import Tensor, nn

from point_rend import (
    PointRendSemanticSegmentor,
    PointRendSemSegHead,
    PointSampler,
    StandardPointHead,
)
from point_rend.engine.train_step import CheckedTrainer, NonFiniteError
from point_rend.engine.trainer import Trainer
from point_rend.solver import build_optimizer
from point_rend.utils.errors import TrainingStop
from tests.engine.ranks import DETERMINISTIC, shares, tiny_cfg
from tests.synthetic import CHANNELS
from tests.synthetic_semantic import (
    IGNORE,
    SHAPES,
    small_semantic_config,
    smooth_images,
)

Batch = list[dict[str, Any]]
UPDATES = 5


class Means(nn.Module):
    """Two layers, and two losses that are means over the images of a batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 2)
        self.register_buffer("seen", torch.zeros(4))
        self.norm = 1.0
        self.loss: Callable[[Tensor], Tensor] = lambda outputs: outputs.sin().mean()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        inputs = torch.stack([x["image"] for x in batch])
        self.seen += inputs.detach().mean(dim=0)
        outputs = self.outer(self.inner(inputs).tanh())
        return {"loss_square": outputs.square().mean(), "loss_planted": self.loss(outputs)}


def numbered(count: int, size: int = 2, dtype: torch.dtype = torch.float64) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(4, generator=generator, dtype=dtype) for _ in range(count * size)]
    records = [
        {"image": image, "image_id": number, "file_name": f"{number}.jpg"}
        for number, image in enumerate(images)
    ]
    return [records[first : first + size] for first in range(0, count * size, size)]


def joined(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Join every `count` batches to a large one."""
    firsts = range(0, len(batches), count)
    return [[*chain.from_iterable(batches[first : first + count])] for first in firsts]


def solver_cfg(*, clip: float = 0.0) -> CfgNode:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 0.05, 0.9, 1e-3
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE = clip > 0, "norm", clip or 1.0
    return cfg


def build(model: nn.Module, batches: Sequence[Batch], cfg: CfgNode, **options: Any) -> Any:
    return CheckedTrainer(model, batches, build_optimizer(cfg, model), **options)


def train(trained: CheckedTrainer, updates: int = UPDATES) -> EventStorage:
    """Take updates whose learning rate rises from a fifth to the whole."""
    multiplier = WarmupParamScheduler(ConstantParamScheduler(1.0), 0.2, 0.8)
    schedule = LRMultiplier(trained.optimizer, multiplier, max_iter=UPDATES + 1)
    with EventStorage() as storage:
        for _ in range(updates):
            torch.manual_seed(trained.iter)
            trained.run_step()
            trained.iter += 1
            schedule.step()
            storage.step()
    return storage


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in model.named_parameters()}


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare weights, each relative to its largest value."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        difference = (got[name] - value).abs().max()
        assert difference <= tolerance * value.abs().max(), name


# Equality with one large batch


@pytest.mark.parametrize("clip", [0.0, 0.01], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("count", [2, 3])
def test_batches_for_an_update_equal_one_large_batch_where_losses_are_means_over_equally_many(
    count: int, clip: float
) -> None:
    batches = numbered(UPDATES * count)
    small, large = Means().double(), Means().double()
    start = weights(small)
    train(build(small, batches, solver_cfg(clip=clip), accumulation_steps=count))
    train(build(large, joined(batches, count), solver_cfg(clip=clip)))
    assert_close(weights(small), weights(large), 1e-12)
    moved = [(weights(small)[name] - value).abs().max() for name, value in start.items()]
    assert min(moved) > 1e-4


def test_clipping_acts_on_the_sum_of_the_batches_not_on_each() -> None:
    """Of two opposite gradients the clipped ones would cancel out."""
    model, (batch,) = Means().double(), numbered(1)
    signs = iter((3000.0, -1000.0))
    model.loss = lambda outputs: next(signs) * outputs.sum()
    before = weights(model)
    cfg = solver_cfg(clip=1.0)
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    train(build(model, [batch, batch], cfg, accumulation_steps=2), 1)
    moved = weights(model)["outer.bias"] - before["outer.bias"]
    assert moved.norm().item() == pytest.approx(0.05 * 0.2)  # the warm-up's rate


@contextmanager
def doubles() -> Iterator[None]:
    """Make new tensors, such as drawn points, of float64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class TwoLevels(Backbone):
    """A backbone of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 4, stride=4)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 2, stride=2)
        self._out_features = list(SHAPES)
        self._out_feature_channels = {name: x.channels for name, x in SHAPES.items()}
        self._out_feature_strides = {name: x.stride for name, x in SHAPES.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(images).relu()
        return {"p2": first, "p3": self.second(first)}


def semantic_pointrend() -> PointRendSemanticSegmentor:
    head = PointRendSemSegHead(
        coarse_sem_seg_head=SemSegFPNHead(small_semantic_config(), SHAPES),
        point_head=StandardPointHead(in_channels=CHANNELS, coarse_channels=6, num_classes=6),
        in_features={"p2": 4},
        # Each batch draws its points in one go.
        sampler=PointSampler(num_points=40, importance_sample_ratio=1.0),
        steps=2,
        points_per_step=150,
        ignore_value=IGNORE,
    )
    return PointRendSemanticSegmentor(
        backbone=TwoLevels(),
        sem_seg_head=head,
        pixel_mean=[127.5] * 3,
        pixel_std=[64.0] * 3,
    )


@pytest.mark.parametrize("clip", [0.0, 0.1], ids=["unclipped", "clipped"])
def test_a_semantic_pointrend_with_several_batches_equals_one_with_large_batches(
    clip: float,
) -> None:
    """All images have equally many labeled pixels."""
    batches = [[image] for image in smooth_images([(32, 64)] * 2 * UPDATES)]
    with doubles():
        torch.manual_seed(0)
        small = semantic_pointrend()
        large = copy.deepcopy(small)
        start = weights(small)
        logged = train(build(small, batches, solver_cfg(clip=clip), accumulation_steps=2))
        expected = train(build(large, joined(batches, 2), solver_cfg(clip=clip)))
    assert_close(weights(small), weights(large), 1e-6)
    assert min((weights(small)[name] - value).abs().max() for name, value in start.items()) > 1e-5
    for name in ("loss_sem_seg", "loss_sem_seg_point", "total_loss"):
        assert logged.latest()[name][0] == pytest.approx(expected.latest()[name][0], rel=1e-5)


def test_an_instance_pointrend_with_several_batches_equals_one_with_a_large_batch() -> None:
    """Both batches have equally many regions of interest, objects and points."""
    batches = list(shares("equal"))
    torch.manual_seed(0)
    small = build_model(tiny_cfg(*DETERMINISTIC))
    large = copy.deepcopy(small)
    train(build(small, batches, solver_cfg(), accumulation_steps=2), 1)
    train(build(large, joined(batches, 2), solver_cfg()), 1)
    found, expected = ({n: x.grad for n, x in m.named_parameters()} for m in (small, large))
    assert_close(
        {name: x for name, x in found.items() if x is not None},
        {name: x for name, x in expected.items() if x is not None},
        1e-4,
    )


# Checks, logs, precision


def test_logged_losses_are_means_over_the_batches_and_the_time_for_data_is_their_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = numbered(3)
    alone = []
    for batch in batches:
        storage = train(build(Means().double(), [batch], solver_cfg()), 1)
        alone.append({name: value for name, (value, _) in storage.latest().items()})
    ticks = iter((0.0, 1.0, 10.0, 12.0, 20.0, 23.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    trained = build(Means().double(), batches, solver_cfg(), accumulation_steps=3)
    logged = train(trained, 1).latest()
    for name in ("loss_square", "loss_planted", "total_loss"):
        mean = sum(losses[name] for losses in alone) / 3
        assert logged[name][0] == pytest.approx(mean, rel=1e-6)
    assert logged["data_time"][0] == pytest.approx(6.0)


def nth(number: int, planted: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a loss that is planted in the call of a number, counted from 0."""
    calls: list[Tensor] = []

    def loss(outputs: Tensor) -> Tensor:
        calls.append(outputs)
        return planted(outputs) if len(calls) == number + 1 else outputs.sin().mean()

    return loss


def breaking_off(_: Tensor) -> Tensor:
    raise FloatingPointError("scores contain Inf/NaN")


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "loss": lambda outputs: outputs.sum() * float("nan"),
    "gradient": lambda outputs: (outputs - outputs.detach()).sqrt().sum(),
    "error": breaking_off,
}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_value_that_is_not_finite_in_any_batch_undoes_the_step_and_names_the_batch(
    number: int, kind: str
) -> None:
    model = Means().double()
    trained = build(model, numbered(9), solver_cfg(), accumulation_steps=3)
    train(trained, 1)
    before = copy.deepcopy((model.state_dict(), trained.optimizer.state_dict()))
    model.loss = nth(number, FAULTS[kind])
    with pytest.raises(NonFiniteError) as ended:
        train(trained, 1)
    after = copy.deepcopy((model.state_dict(), trained.optimizer.state_dict()))
    before[1]["param_groups"][0].pop("lr"), after[1]["param_groups"][0].pop("lr")
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    head, line = str(ended.value).splitlines()
    assert "the weights are unchanged" in head
    first = 6 + 2 * number
    assert f"rank 0: batch {number + 1} of 3; " in line
    assert line.endswith(f"images {first} ({first}.jpg), {first + 1} ({first + 1}.jpg)")


def test_without_a_further_batch_the_step_is_undone() -> None:
    """Such as by a signal while the batch was awaited."""
    model = Means().double()

    def loader() -> Iterator[Batch]:
        yield from numbered(5)
        raise TrainingStop("stopped by SIGTERM", exit_code=143)

    trained = build(model, [], solver_cfg(), accumulation_steps=3)
    trained._data_loader_iter_obj = loader()
    train(trained, 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingStop):
        train(trained, 1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_with_several_batches_is_that_of_float32_up_to_rounding(
    precision: torch.dtype,
) -> None:
    batches = numbered(2 * UPDATES, dtype=torch.float32)
    mixed, full = Means(), Means()
    options = {"accumulation_steps": 2, "precision": precision}
    trained = build(mixed, batches, solver_cfg(clip=0.1), **options)
    fitting = {"scale": 2.0**8, "_growth_tracker": 0} if precision == torch.float16 else {}
    trained.grad_scaler.load_state_dict(trained.grad_scaler.state_dict() | fitting)
    train(trained)
    train(build(full, joined(batches, 2), solver_cfg(clip=0.1)))
    assert_close(weights(mixed), weights(full), 0.02)


@pytest.mark.parametrize("number", [0, 1])
def test_in_float16_an_overflow_in_any_batch_skips_the_step_and_halves_the_scale(
    number: int,
) -> None:
    model = Means()
    batches = numbered(4, dtype=torch.float32)
    options = {"accumulation_steps": 2, "precision": torch.float16}
    trained = build(model, batches, solver_cfg(), **options)
    before = weights(model)
    model.loss = nth(number, lambda outputs: 1e34 * outputs.float().sum())
    with EventStorage():
        trained.run_step()
        assert_close(weights(model), before, 0)
        assert trained.grad_scaler.get_scale() == 2.0**15
        trained.run_step()
    assert not torch.equal(weights(model)["outer.bias"], before["outer.bias"])


def test_more_processes_than_the_reference_keep_the_number_of_batches() -> None:
    cfg = tiny_cfg("SOLVER.REFERENCE_WORLD_SIZE", "2", "SOLVER.IMS_PER_BATCH", "4")
    cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.BASE_LR = 3, 0.01
    solver = Trainer.auto_scale_workers(cfg, 4).SOLVER
    assert [solver[name] for name in ("IMS_PER_BATCH", "ACCUMULATION_STEPS")] == [8, 3]
    assert solver["BASE_LR"] == pytest.approx(0.02)
