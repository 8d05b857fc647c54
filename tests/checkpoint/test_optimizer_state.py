"""Optimizer states find their parameters by name, whatever the order of the modules."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from point_rend.checkpoint.optimizer_state import match_by_name, name_groups, with_names

LAYERS = {
    "linear": lambda: nn.Linear(3, 3),
    "norm": lambda: nn.BatchNorm1d(3),
    "twin": lambda: nn.Linear(3, 3),
    "head": lambda: nn.Linear(3, 2),
}
SETTINGS = {
    "one group": {},
    "three groups": {"weight_decay_norm": 0.0, "bias_lr_factor": 2.0, "weight_decay_bias": 0.0},
}
OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1),
}
ENTRY = {"SGD": "momentum_buffer", "AdamW": "exp_avg"}


def build(order: Sequence[str], kind: str = "SGD", settings: str = "one group"):
    model = nn.ModuleDict({name: LAYERS[name]() for name in order})
    groups = get_default_optimizer_params(
        model, base_lr=0.1, weight_decay=0.01, **SETTINGS[settings]
    )
    return model, OPTIMIZERS[kind](groups)


def planted(name: str) -> float:
    return 1.0 + sorted(f"{a}.{b}" for a in LAYERS for b in ("weight", "bias")).index(name)


def plant(model: nn.Module, optimizer: torch.optim.Optimizer, kind: str) -> None:
    """Give every parameter a state of its own."""
    for name, parameter in model.named_parameters():
        entry = torch.full_like(parameter, planted(name))
        optimizer.state[parameter] = {ENTRY[kind]: entry}
        if kind == "AdamW":
            more = {"exp_avg_sq": entry.square(), "step": torch.tensor(planted(name))}
            optimizer.state[parameter] |= more


@pytest.mark.parametrize("order", [*itertools.permutations(LAYERS)][::5])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("named", [True, False])
def test_every_state_and_setting_lands_on_the_parameter_of_its_name(order, settings, kind, named):
    saved_model, saved = build(order, kind, settings)
    plant(saved_model, saved, kind)
    rates = {}
    for group in saved.param_groups:
        group["lr"] = 0.5 * group["lr"] + group["weight_decay"]
        rates |= dict.fromkeys(group["params"], (group["lr"], group["weight_decay"]))
    state = saved.state_dict()
    if named:
        state = with_names(state, name_groups(saved_model, saved))

    model, optimizer = build(tuple(LAYERS), kind, settings)
    optimizer.load_state_dict(match_by_name(state, model, optimizer, saved_model.state_dict()))
    for name, parameter in model.named_parameters():
        entries = optimizer.state[parameter]
        assert torch.equal(entries[ENTRY[kind]], torch.full_like(parameter, planted(name))), name
        if kind == "AdamW":
            assert entries["step"] == planted(name)
    for group in optimizer.param_groups:
        assert "param_names" not in group
        for parameter in group["params"]:
            name = next(name for name, x in model.named_parameters() if x is parameter)
            expected = rates[saved_model.get_parameter(name)]
            assert (group["lr"], group["weight_decay"]) == expected, name


def test_a_state_that_is_in_order_already_is_loaded_as_it_is():
    model, optimizer = build(tuple(LAYERS), settings="three groups")
    plant(model, optimizer, "SGD")
    state = optimizer.state_dict()
    assert match_by_name(state, model, optimizer, model.state_dict()) == state
    named = with_names(state, name_groups(model, optimizer))
    assert match_by_name(named, model, optimizer, ()) == state


def test_a_parameter_under_two_names_counts_once():
    def tied(order: str):
        model, _ = build(tuple(LAYERS))
        model.add_module("alias", model["linear"])
        if order == "alias first":
            model._modules = {"alias": model["alias"], **model._modules}
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    saved_model, saved = tied("alias first")
    for number, parameter in enumerate(saved.param_groups[0]["params"]):
        saved.state[parameter] = {"momentum_buffer": torch.full_like(parameter, number)}
    model, optimizer = tied("alias last")
    state = match_by_name(saved.state_dict(), model, optimizer, saved_model.state_dict())
    optimizer.load_state_dict(state)
    for name, parameter in model.named_parameters():
        expected = saved.state[saved_model.get_parameter(name)]["momentum_buffer"]
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], expected)


def test_an_optimizer_with_parameters_of_its_own_is_left_to_pytorch():
    model, optimizer = build(tuple(LAYERS))
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    state = optimizer.state_dict()
    assert name_groups(model, optimizer) == []
    assert with_names(state, []) is state
    assert match_by_name(state, model, optimizer, model.state_dict()) is state


def test_a_state_before_the_first_step_is_empty_and_fits():
    model, optimizer = build(tuple(LAYERS))
    saved_model, saved = build(tuple(reversed(LAYERS)))
    state = match_by_name(saved.state_dict(), model, optimizer, saved_model.state_dict())
    optimizer.load_state_dict(state)
    assert not optimizer.state


# Refusals


def matched(saved_model, saved, model, optimizer, *, named=False):
    state = saved.state_dict()
    if named:
        state = with_names(state, name_groups(saved_model, saved))
    return match_by_name(state, model, optimizer, saved_model.state_dict())


def test_a_state_of_another_shape_is_refused_with_the_name():
    saved_model, saved = build(tuple(LAYERS))
    plant(saved_model, saved, "SGD")
    bias = saved_model["twin"].bias
    saved.state[bias] = {"momentum_buffer": torch.zeros(96)}
    message = r"momentum_buffer of shape \(96,\) instead of \(3,\) for twin.bias: expected"
    for named in (False, True):
        with pytest.raises(ValueError, match=message):
            matched(saved_model, saved, *build(tuple(LAYERS)), named=named)


def test_a_training_with_fewer_frozen_parameters_is_refused():
    def partly_frozen():
        model = nn.ModuleDict({name: layer() for name, layer in LAYERS.items()})
        model["norm"].requires_grad_(False)
        groups = get_default_optimizer_params(model, base_lr=0.1)
        return model, OPTIMIZERS["SGD"](groups)

    free, frozen = build(tuple(LAYERS)), partly_frozen()
    plant(*free, "SGD")
    with pytest.raises(ValueError, match=r"has norm\.bias, which this config freezes"):
        matched(*free, *frozen, named=True)
    with pytest.raises(ValueError, match=r"has no norm\.bias, which this config trains"):
        matched(*frozen, *free, named=True)
    sizes = r"8 parameters in groups of \[8\], that of this config 6 in groups of \[6\]"
    with pytest.raises(ValueError, match=rf"{sizes}; they differ from twin\.weight on"):
        matched(*free, *frozen)


def test_a_checkpoint_without_a_trained_parameter_is_refused():
    model, optimizer = build(tuple(LAYERS))
    state, keys = optimizer.state_dict(), list(model.state_dict())
    keys.remove("head.weight")
    with pytest.raises(ValueError, match=r"it has no head\.weight, which this config trains"):
        match_by_name(state, model, optimizer, keys)


def test_other_groups_are_refused():
    several, one = build(tuple(LAYERS), settings="three groups"), build(tuple(LAYERS))
    with pytest.raises(ValueError, match=r"groups linear\.weight with other parameters"):
        matched(*several, *one, named=True)
    with pytest.raises(ValueError, match=r"groups of \[3, 4, 1\]|groups of \[3, 3, 2\]"):
        matched(*several, *one)
