"""The moving average of weights, against a slow loop over plain numbers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from point_rend.engine import averaging
from point_rend.engine.averaging import WeightAverage


class Small(nn.Module):
    """A normalization, a frozen layer, a layer under two names, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.linear = nn.Linear(3, 2)
        self.again = self.linear
        self.register_buffer("pixel_mean", torch.ones(3), persistent=False)


def change(model: nn.Module, seed: int) -> None:
    """Change all that a step of a training changes, without one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator)
        model.norm.running_mean += torch.randn(3, generator=generator)
        model.norm.running_var *= 1.1
        model.norm.num_batches_tracked += 1


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: Any) -> None:
    assert got.keys() == expected.keys()
    torch.testing.assert_close(got, expected, **(tolerance or {"rtol": 0, "atol": 0}))


def averaged(average: WeightAverage, model: nn.Module) -> dict[str, Tensor]:
    with average.applied():
        return snapshot(model)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_average_is_that_of_a_loop_over_the_states(decay: float) -> None:
    model = Small()
    average = WeightAverage(model, decay)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for update in range(1, 13):
        change(model, update)
        average.update()
        kept = min(decay, (1 + update - 1) / (10 + update - 1))
        for name, value in model.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * value.double()
    expected["norm.num_batches_tracked"] = torch.tensor(12)
    got = averaged(average, model)
    assert got["norm.num_batches_tracked"] == 12  # copied, not averaged
    assert_same(
        {name: value.double() for name, value in got.items()},
        {name: value.double() for name, value in expected.items()},
        rtol=1e-5,
        atol=1e-6,
    )


def test_without_decay_the_average_is_the_weights() -> None:
    model = Small()
    average = WeightAverage(model, 0.0)
    change(model, 1)
    average.update()
    assert_same(averaged(average, model), snapshot(model))


def test_what_does_not_change_is_its_own_average_to_the_last_bit() -> None:
    model = Small()
    average = WeightAverage(model, 0.37)
    for _ in range(7):
        average.update()
    assert_same(averaged(average, model), snapshot(model))


def test_the_model_has_its_own_weights_again_to_the_last_bit_whatever_happens_meanwhile() -> None:
    model = Small()
    average = WeightAverage(model, 0.9)
    change(model, 1)
    average.update()
    before, mean, tensors = snapshot(model), model.pixel_mean.clone(), [*model.parameters()]

    def evaluate() -> None:
        with average.applied():
            model.norm.running_mean = torch.full((3,), float("nan"))  # as PreciseBN replaces it
            model.norm.num_batches_tracked += 5
            model.pixel_mean += 1
            raise KeyError

    with pytest.raises(KeyError):
        evaluate()
    assert_same(snapshot(model), before)
    assert torch.equal(model.pixel_mean, mean)
    assert all(map(lambda x, y: x is y, model.parameters(), tensors))


@pytest.mark.parametrize("line", ["apply", "restore"])
def test_an_interruption_within_the_exchange_can_be_mended(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one by a signal, which may come between any two operations."""
    model = Small()
    average = WeightAverage(model, 0.9)
    change(model, 1)
    average.update()
    before = snapshot(model)
    calls, plain = [], averaging._copy

    def copy_and_stop(source: list[Tensor], target: list[Tensor]) -> None:
        calls.append(1)
        if len(calls) == (1 if line == "apply" else 2):
            plain(source[:2], target[:2])
            raise InterruptedError
        plain(source, target)

    monkeypatch.setattr(averaging, "_copy", copy_and_stop)
    with pytest.raises(InterruptedError), average.applied():
        pass
    average.restore()
    assert_same(snapshot(model), before)
    average.restore()
    assert_same(snapshot(model), before)


def test_the_average_is_not_applied_twice() -> None:
    model = Small()
    average = WeightAverage(model, 0.9)
    with pytest.raises(RuntimeError, match="applied already"), average.applied():
        averaged(average, model)


def test_a_restored_state_goes_on_as_the_one_that_was_saved() -> None:
    states = []
    for is_resumed in (False, True):
        model = Small()
        average = WeightAverage(model, 0.9)
        for update in range(6):
            if is_resumed and update == 3:
                saved, weights = copy.deepcopy(average.state_dict()), snapshot(model)
                model = Small()
                change(model, 99)
                average = WeightAverage(model, 0.9)
                model.load_state_dict(weights)
                average.load_state_dict(saved)
            change(model, update)
            average.update()
        states.append(averaged(average, model))
    assert_same(*states)


def test_a_restart_forgets_the_past() -> None:
    model = Small()
    average = WeightAverage(model, 0.9)
    change(model, 1)
    average.update()
    average.restart()
    assert average.updates == 0
    assert_same(averaged(average, model), snapshot(model))


def test_buffers_that_were_computed_with_the_average_become_its_own() -> None:
    model = Small()
    average = WeightAverage(model, 0.9)
    change(model, 1)
    average.update()
    before, weights = averaged(average, model), snapshot(model)
    with average.applied():
        model.norm.running_mean = torch.full((3,), 5.0)
        average.take_buffers()
    assert_same(snapshot(model), weights)
    after = averaged(average, model)
    assert after["norm.running_mean"].tolist() == [5.0] * 3
    after["norm.running_mean"] = before["norm.running_mean"]
    assert_same(after, before)


def test_a_state_of_another_model_is_refused() -> None:
    average = WeightAverage(Small(), 0.9)
    good = copy.deepcopy(average.state_dict())
    faults: list[tuple[dict[str, Any], str]] = [
        ({}, "no number of updates"),
        (good | {"updates": -1}, "no number of updates"),
        (good | {"weights": {}}, "are not those of this model: 8 differ"),
        (good | {"weights": good["weights"] | {"more": torch.ones(1)}}, "the first is more"),
        (
            good | {"weights": good["weights"] | {"linear.bias": torch.ones(3)}},
            "the first is linear.bias",
        ),
        (
            good | {"weights": good["weights"] | {"linear.bias": torch.full((2,), torch.nan)}},
            "2 of 2 values NaN",
        ),
        (
            good | {"weights": good["weights"] | {"linear.bias": torch.ones(2, dtype=torch.int)}},
            "values of type int32",
        ),
    ]
    for state, message in faults:
        with pytest.raises(ValueError, match=message):
            average.load_state_dict(state)
    average.load_state_dict(good)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_an_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to below 1"):
        WeightAverage(Small(), decay)
