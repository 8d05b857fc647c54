"""Optimizer states that are matched to parameters by name.

PyTorch stores the state of a parameter under its position in the optimizer. The positions follow
the order in which the modules were registered, which differs between the stock project, this
package and its earlier versions.

A group is a list of parameters with the same settings, such as the learning rate.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Groups = list[list[str]]  # names of parameters, group by group

NAMES = "param_names"  # PyTorch's own key, which it writes for an optimizer of named parameters

# Entries that have the shape of their parameter, in SGD and in Adam.
_SHAPED_ENTRIES = ("momentum_buffer", "exp_avg")

# A setting, the optimizer that has it, and the other one.
_SETTINGS = {"momentum": ("SGD", "AdamW"), "betas": ("AdamW", "SGD")}

_HINT = ": expected the config of the training that is resumed"


def name_groups(model: nn.Module, optimizer: Optimizer) -> Groups:
    """Name the parameters of an optimizer.

    Args:
        model: the model, not wrapped.
        optimizer: an optimizer of its parameters.

    Returns:
        The names, in the order of the optimizer; no groups if it has parameters of its own.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [group["params"] for group in optimizer.param_groups]
    if not all(parameter in names for group in groups for parameter in group):
        return []
    return [[names[parameter] for parameter in group] for group in groups]


def with_names(state: dict[str, Any], names: Groups) -> dict[str, Any]:
    """Return a state that holds the names of its parameters as well."""
    if not names:
        return state
    named = [
        group | {NAMES: list(own)} for group, own in zip(state["param_groups"], names, strict=True)
    ]
    return state | {"param_groups": named}


def match_by_name(
    state: dict[str, Any], model: nn.Module, optimizer: Optimizer, keys: Iterable[str]
) -> dict[str, Any]:
    """Return a saved state in the order of an optimizer, ready to be loaded into it.

    Args:
        state: the saved state, with names or without, as from the stock project.
        model: the model, not wrapped.
        optimizer: an optimizer of its parameters.
        keys: of the model's state dict that was saved together with the state, in the order of
            that model.

    Raises:
        ValueError: if the state does not fit the optimizer; it names a parameter.
    """
    names = name_groups(model, optimizer)
    if not names:
        return state
    groups = state["param_groups"]
    _check_kind(groups, optimizer)
    if all(NAMES in group for group in groups):
        saved = [list(group[NAMES]) for group in groups]
        _check_same_parameters(saved, names)
    else:
        saved = _names_by_order(state, names, model, keys)
    positions = {
        name: position
        for group, own in zip(groups, saved, strict=True)
        for name, position in zip(own, group["params"], strict=True)
    }
    for name, position in positions.items():
        if misfit := _misfit(model.get_parameter(name), state["state"].get(position, {})):
            raise ValueError(f"its optimizer has {misfit} for {name}{_HINT}")
    source = {frozenset(own): group for group, own in zip(groups, saved, strict=True)}
    matched = [
        {key: value for key, value in source[frozenset(own)].items() if key != NAMES}
        | {"params": [positions[name] for name in own]}
        for own in names
    ]
    return state | {"param_groups": matched}


def _check_kind(groups: list[dict[str, Any]], optimizer: Optimizer) -> None:
    """Refuse groups of SGD for AdamW, and the reverse."""
    for setting, (present, absent) in _SETTINGS.items():
        is_used = setting in optimizer.defaults
        if any((setting in group) != is_used for group in groups):
            own, other = (present, absent) if is_used else (absent, present)
            raise ValueError(f"its optimizer is {other}, that of this config {own}{_HINT}")


def _check_same_parameters(saved: Groups, names: Groups) -> None:
    """Refuse names that are not those of the optimizer, or that are grouped otherwise."""
    in_file = {name for own in saved for name in own}
    in_optimizer = {name for own in names for name in own}
    if lacking := sorted(in_optimizer - in_file):
        raise ValueError(f"its optimizer has no {lacking[0]}, which this config trains{_HINT}")
    if surplus := sorted(in_file - in_optimizer):
        raise ValueError(f"its optimizer has {surplus[0]}, which this config freezes{_HINT}")
    known = {frozenset(own) for own in saved}
    for own in names:
        if frozenset(own) not in known:
            raise ValueError(
                f"its optimizer groups {own[0]} with other parameters than this config, by their "
                f"learning rate and weight decay{_HINT}"
            )


def _names_by_order(
    state: dict[str, Any], names: Groups, model: nn.Module, keys: Iterable[str]
) -> Groups:
    """Name the parameters of a state without names.

    Detectron2 goes through the parameters in the order of the model and collects those with the
    same settings in one group, the groups in the order of their first parameters.
    """
    first_names = {parameter: name for name, parameter in model.named_parameters()}
    aliases = {
        alias: first_names[parameter]
        for alias, parameter in model.named_parameters(remove_duplicate=False)
    }
    group_of = {name: number for number, own in enumerate(names) for name in own}
    in_order = dict.fromkeys(aliases[key] for key in keys if key in aliases)
    order = [name for name in in_order if name in group_of]
    if lacking := [name for name in group_of if name not in in_order]:
        raise ValueError(f"it has no {lacking[0]}, which this config trains{_HINT}")
    collected: dict[int, list[str]] = {}
    for name in order:
        collected.setdefault(group_of[name], []).append(name)
    saved = list(collected.values())
    sizes, expected = (
        [len(group["params"]) for group in state["param_groups"]],
        list(map(len, saved)),
    )
    if sizes != expected:
        positions = [position for group in state["param_groups"] for position in group["params"]]
        flat = [name for own in saved for name in own]
        differing = (
            name
            for name, position in zip(flat, positions, strict=False)
            if _misfit(model.get_parameter(name), state["state"].get(position, {}))
        )
        raise ValueError(
            f"its optimizer has {sum(sizes)} parameters in groups of {sizes}, that of this config "
            f"{sum(expected)} in groups of {expected}; they differ from "
            f"{next(differing, flat[-1])} on{_HINT}"
        )
    return saved


def _misfit(parameter: Tensor, entries: dict[str, Any]) -> str:
    """Describe an entry that cannot belong to the parameter; empty if there is none."""
    for key in _SHAPED_ENTRIES:
        value = entries.get(key)
        if isinstance(value, Tensor) and value.shape != parameter.shape:
            return f"a {key} of shape {tuple(value.shape)} instead of {tuple(parameter.shape)}"
    return ""
