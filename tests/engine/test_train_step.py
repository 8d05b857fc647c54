"""The training step on small models whose losses and gradients are planted."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from point_rend.engine.train_step import CheckedTrainer, NonFiniteError

LowPrecision = pytest.mark.parametrize(
    "precision", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"]
)


class Planted(nn.Module):
    """A batch normalization and a linear layer, with a planted loss."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 2)
        self.loss = loss
        self.seen: list[torch.dtype] = []

    def forward(self, batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        outputs = self.linear(self.norm(torch.stack([x["image"] for x in batch])))
        self.seen.append(outputs.dtype)
        return {"loss_plain": outputs.float().square().mean(), "loss_planted": self.loss(outputs)}


def no_loss(outputs: Tensor) -> Tensor:
    return outputs.float().sum() * 0


def nan_loss(outputs: Tensor) -> Tensor:
    return outputs.float().sum() * float("nan")


def infinite_loss_of_finite_gradient(outputs: Tensor) -> Tensor:
    return outputs.float().sum() + float("inf")


def finite_loss_of_infinite_gradient(outputs: Tensor) -> Tensor:
    return (outputs - outputs.detach()).float().sqrt().sum()  # the slope of the root at 0


def breaking_off(_: Tensor) -> Tensor:
    raise FloatingPointError("scores contain Inf/NaN")


def batches(count: int = 20) -> list[list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [
            {"image": torch.randn(4, generator=generator), "image_id": i, "file_name": f"{i}.jpg"}
            for i in range(3 * number, 3 * number + 3)
        ]
        for number in range(count)
    ]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def trainer(loss: Callable[[Tensor], Tensor], **options: Any) -> CheckedTrainer:
    model = Planted(loss)
    return CheckedTrainer(model, batches(), sgd(model), **options)


def step(trained: SimpleTrainer, count: int = 1) -> EventStorage:
    with EventStorage() as storage:
        for _ in range(count):
            trained.run_step()
            trained.iter += 1
    return storage


def everything(trained: SimpleTrainer) -> list[Tensor]:
    """Return copies of weights, floating-point buffers and momenta."""
    state = [x.clone() for x in trained.model.state_dict().values() if x.is_floating_point()]
    momenta = [x["momentum_buffer"].clone() for x in trained.optimizer.state.values()]
    return state + momenta


def test_without_mixed_precision_steps_are_those_of_detectron2() -> None:
    checked = trainer(no_loss)
    model = Planted(no_loss)
    plain = SimpleTrainer(model, batches(), sgd(model))
    logged = [step(trained, 3).latest() for trained in (checked, plain)]
    torch.testing.assert_close(everything(checked), everything(plain), rtol=0, atol=0)
    for name in ("total_loss", "loss_plain", "loss_planted"):
        assert logged[0][name] == logged[1][name]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nan_loss, "the loss is infinite or NaN"),
        (infinite_loss_of_finite_gradient, "the loss is infinite or NaN"),
        (finite_loss_of_infinite_gradient, "the gradient of norm.weight, norm.bias, linear.weight"),
        (breaking_off, "scores contain Inf/NaN"),
    ],
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_non_finite_values_end_the_step_before_anything_changes(
    loss: Callable[[Tensor], Tensor], message: str, precision: torch.dtype
) -> None:
    trained = trainer(no_loss, precision=precision)
    step(trained, 2)
    before = everything(trained)
    trained.model.loss = loss
    with pytest.raises(NonFiniteError, match=message) as ended:
        step(trained)
    torch.testing.assert_close(everything(trained), before, rtol=0, atol=0)
    assert "in iteration 2" in str(ended.value)


def test_a_non_finite_image_does_not_change_the_running_statistics() -> None:
    trained = trainer(no_loss)
    step(trained)
    trained.model.norm.running_mean = torch.ones(4)  # as PreciseBN replaces it
    before = everything(trained)
    next(trained._data_loader_iter)[0]["image"].fill_(float("nan"))
    trained._data_loader_iter_obj = iter(trained.data_loader[1:])
    with pytest.raises(NonFiniteError):
        step(trained)
    torch.testing.assert_close(everything(trained), before, rtol=0, atol=0)


def test_the_error_lists_all_losses_and_images() -> None:
    trained = trainer(nan_loss)
    with pytest.raises(NonFiniteError) as ended:
        step(trained)
    report = str(ended.value)
    assert "rank 0: loss_plain 0." in report
    assert "loss_planted nan" in report
    assert "images 0 (0.jpg), 1 (1.jpg), 2 (2.jpg)" in report


@LowPrecision
def test_mixed_precision_computes_in_it_and_keeps_weights_and_gradients_in_float32(
    precision: torch.dtype,
) -> None:
    trained = trainer(no_loss, precision=precision)
    step(trained, 3)
    assert set(trained.model.seen) == {precision}
    for parameter in trained.model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


@LowPrecision
def test_mixed_precision_steps_are_those_of_float32_up_to_rounding(precision: torch.dtype) -> None:
    mixed, full = trainer(no_loss, precision=precision), trainer(no_loss)
    for trained in (mixed, full):
        step(trained, 5)
    torch.testing.assert_close(everything(mixed), everything(full), rtol=0, atol=0.02)


def overflowing_above(limit: float) -> Callable[[Tensor], Tensor]:
    """Return a loss with zero gradient, or an infinite one if it is scaled above a limit."""

    class Overflowing(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, outputs: Tensor) -> Tensor:
            return outputs.float().sum()

        @staticmethod
        def backward(_: Any, scale: Tensor) -> Tensor:
            return torch.where(scale > limit, torch.inf, 0.0).expand(3, 2)

    return lambda outputs: Overflowing.apply(outputs)  # type: ignore[no-untyped-call]


def test_in_float16_an_overflow_skips_steps_until_the_scale_fits() -> None:
    trained = trainer(no_loss, precision=torch.float16)
    trained.model.loss = overflowing_above(2.0**14)
    before = [x.clone() for x in trained.model.parameters()]
    for scale in (2.0**15, 2.0**14):
        step(trained)
        torch.testing.assert_close(list(trained.model.parameters()), before, rtol=0, atol=0)
        assert trained.grad_scaler.get_scale() == scale
    step(trained)
    assert trained.grad_scaler.get_scale() == 2.0**14
    assert not torch.equal(trained.model.linear.weight, before[2])


def test_in_float16_a_gradient_that_overflows_at_any_scale_ends_the_training() -> None:
    trained = trainer(finite_loss_of_infinite_gradient, precision=torch.float16)
    with pytest.raises(NonFiniteError, match="the gradient of"):
        step(trained, 30)
    assert trained.iter == 16  # the scale has gone from 2^16 down to 1
    assert all(x.isfinite().all() for x in trained.model.state_dict().values())


def test_clipping_acts_on_the_unscaled_gradient() -> None:
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 1.0, 0.0, 0.0
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    clipping.ENABLED, clipping.CLIP_TYPE, clipping.CLIP_VALUE = True, "norm", 1e-3
    model = Planted(no_loss)
    before = model.linear.weight.clone()
    step(CheckedTrainer(model, batches(), build_optimizer(cfg, model), precision=torch.float16))
    assert (model.linear.weight - before).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_the_loss_scale_is_part_of_the_state_and_optional_in_it() -> None:
    trained = trainer(finite_loss_of_infinite_gradient, precision=torch.float16)
    step(trained, 3)
    other = trainer(no_loss, precision=torch.float16)
    other.load_state_dict(trained.state_dict())
    assert other.grad_scaler.get_scale() == 2.0**13
    plain = trainer(no_loss)
    other.load_state_dict(plain.state_dict())
    plain.load_state_dict(trained.state_dict())
    assert other.grad_scaler.get_scale() == 2.0**13


def test_a_step_does_not_change_the_forward_method_of_the_model() -> None:
    trained = trainer(no_loss)
    step(trained)
    assert "forward" not in vars(trained.model)
