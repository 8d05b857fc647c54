"""Cases of training, tiny: equal to the stock project, and planted differences."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from point_rend.experiments.benchmark.measuring import measure
from point_rend.experiments.benchmark.settings import Settings
from point_rend.experiments.benchmark.training_cases import (
    step_agreement,
    train_cases,
    training_label_agreement,
    training_step,
)
from tests.experiments.benchmark.planted import TINY

pytest.importorskip("detectron2.projects.point_rend")

FIVE_CLASSES = replace(TINY, classes=(5,))


def test_labels_equal_the_stock_projects_and_are_neither_all_on_nor_all_off() -> None:
    case, *_ = train_cases(FIVE_CLASSES)
    comparison = case.build(FIVE_CLASSES)
    agreement = measure(case, comparison, FIVE_CLASSES).agreement
    assert agreement is not None
    assert agreement.differing == 0.0
    assert agreement.largest <= 1e-5
    cells, points = comparison.ours()
    assert cells.dtype == torch.bool
    assert cells.shape[1:] == (7, 7)
    assert points.shape == (len(cells), 196)
    for labels in (cells.float(), points):
        assert 0.05 < labels.mean().item() < 0.95


def test_losses_and_gradients_of_the_roi_heads_equal_the_stock_projects() -> None:
    _, case, _ = train_cases(FIVE_CLASSES)
    agreement = measure(case, case.build(FIVE_CLASSES), FIVE_CLASSES).agreement
    assert agreement is not None
    assert agreement.largest <= 1e-3


def test_losses_and_gradients_of_the_model_equal_for_any_number_of_images() -> None:
    *_, case = train_cases(FIVE_CLASSES)
    comparison = case.build(FIVE_CLASSES)
    agreement = measure(case, comparison, FIVE_CLASSES).agreement
    assert agreement is not None
    assert agreement.largest <= 1e-3
    assert comparison.batch_steps is not None
    our_step, stock_step = comparison.batch_steps
    for count in (1, 3):
        values = our_step(count)
        assert step_agreement(values, stock_step(count)).largest <= 1e-3
        assert values.keys() == comparison.ours().keys()


def test_a_planted_difference_of_labels_is_found_exactly() -> None:
    cells, points = torch.ones(2, 3, 3, dtype=torch.bool), torch.zeros(2, 6)
    changed = points.clone()
    changed[0, 4], changed[1, 1] = 0.75, 0.25
    agreement = training_label_agreement((cells, changed), (cells, points))
    assert agreement.differing == 1 / 30
    assert agreement.largest == 0.75


def step_of(weight: float) -> dict[str, torch.Tensor]:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, weight)
    x = torch.ones(1, requires_grad=True)

    def losses() -> dict[str, torch.Tensor]:
        return {"square": module(x)[0] ** 2}

    values = training_step(module, losses, [x], Settings())
    assert module.weight.grad is None
    assert x.grad is None
    return values


def test_a_step_returns_losses_and_norms_of_gradients_and_leaves_none_behind() -> None:
    values = {name: value.item() for name, value in step_of(-2.0).items()}
    assert values == {"square": 4.0, "gradient of weight": 4.0}


def test_equal_steps_agree() -> None:
    assert step_agreement(step_of(3.0), step_of(3.0)).largest == 0.0


def test_the_largest_relative_difference_of_losses_and_gradients_is_found() -> None:
    agreement = step_agreement(step_of(4.0), step_of(2.0))
    assert agreement.largest == 3.0  # 16 against 4; the gradients are 8 and 4


def test_a_loss_that_one_side_lacks_is_an_error() -> None:
    other = step_of(2.0) | {"more": torch.zeros(())}
    with pytest.raises(ValueError, match=r"the sides differ in \['more'\]"):
        step_agreement(step_of(2.0), other)


def test_a_failed_step_leaves_no_gradients_and_gradients_are_not_in_half_precision() -> None:
    layer = torch.nn.Linear(3, 3)
    in_backward = []

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
            in_backward.append(torch.is_autocast_enabled("cpu"))
            if len(in_backward) > 1:
                layer.weight.grad = torch.ones(3, 3)
                raise torch.OutOfMemoryError("out of memory")
            return gradient

    def losses() -> dict[str, torch.Tensor]:
        assert torch.is_autocast_enabled("cpu")
        return {"loss": Backward.apply(layer(torch.ones(2, 3)).float()).sum()}

    settings = Settings(amp="bfloat16")
    values = training_step(layer, losses, [], settings)
    assert values.keys() == {"loss", "gradient of weight", "gradient of bias"}
    with pytest.raises(torch.OutOfMemoryError):
        training_step(layer, losses, [], settings)
    assert in_backward == [False, False]
    assert layer.weight.grad is None
