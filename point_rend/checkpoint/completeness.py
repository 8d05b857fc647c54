"""Comparison of a checkpoint's parameters with those of a model."""

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import nn

from point_rend.checkpoint.foreign import looks_like, project_of
from point_rend.checkpoint.shapes import config_keys
from point_rend.utils.errors import shorten

logger = logging.getLogger(__name__)

SHOWN = 5  # names in a message
# Parameters that nearly every model has, and that tell nothing of its kind.
_COMMON = {"pixel_mean", "pixel_std"}


def check_complete(
    source: str, model: nn.Module, incompatible: Any, *, exactly: bool = False
) -> None:
    """Refuse a checkpoint that is not one of this model.

    Args:
        source: File or URL, for the message.
        model: The model.
        incompatible: Missing and unexpected keys, as of Detectron2's checkpointer.
        exactly: Whether to refuse every parameter that the model lacks.

    Raises:
        ValueError: If it leaves a part of the model random, or has further layers of a kind that
            the model has, as the weights of a deeper backbone do.
    """
    state = model.state_dict(keep_vars=True)
    lacking = set(incompatible.missing_keys)
    loaded = {id(tensor) for key, tensor in state.items() if key not in lacking}
    # A parameter that the model has under several names may be loaded under one of them.
    missing = [key for key in state if key in lacking and id(state[key]) not in loaded]
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} ({_shown(missing)}) of the {len(state)} parameters: "
            f"expected weights of this model{_advice(missing, incompatible.unexpected_keys)}"
        )
    families = set(map(_family, state))
    unexpected = incompatible.unexpected_keys
    surplus = [key for key in unexpected if exactly or _family(key) in families]
    if surplus:
        raise ValueError(
            f"{source} has {len(surplus)} parameters ({_shown(surplus)}) of layers that the model "
            f"lacks: expected weights of this model{_advice(surplus)}"
        )


def check_start(source: str, in_model: Collection[str], in_file: Collection[str]) -> None:
    """Refuse a checkpoint from which no parameter fits the model; warn if few do.

    Args:
        source: File or URL, for the message.
        in_model: Names of the model's parameters.
        in_file: Names in the file, with those of other shapes.

    Raises:
        ValueError: If no parameter fits.
    """
    own = [key for key in in_file if key not in _COMMON]
    matching = [key for key in own if key in in_model]
    others = [key for key in own if key not in in_model]
    if not matching:
        has = f"{len(others)} others ({_shown(others)})" if others else "no others"
        raise ValueError(
            f"{source} has none of the {len(in_model)} parameters of the model, such as "
            f"{_shown(list(in_model)[:2])}, but {has}: expected weights of a model with the same "
            f"names{_advice((), others)}{_prefix(others, in_model)}"
        )
    if len(matching) < len(own) / 2 or len(matching) < len(in_model) / 10:
        logger.warning(
            "%s: only %d of its %d parameters are in the model, which has %d; the others of the "
            "model start from random values%s",
            source,
            len(matching),
            len(own),
            len(in_model),
            _advice((), others),
        )


def _advice(keys: Sequence[str], unexpected: Sequence[str] = ()) -> str:
    """Name the project of the unexpected parameters, or else the config keys of the others."""
    advice = looks_like(project_of(unexpected)) if unexpected else ""
    names = config_keys(keys)
    if names and not advice:
        advice = f"; look at {_shown(names)}"
    return advice


def _prefix(others: Iterable[str], in_model: Collection[str]) -> str:
    """Name a first part of the names without which some would match, such as `model.`."""
    for key in others:
        first, dot, rest = key.partition(".")
        if dot and rest in in_model:
            prefix = shorten(f"{first}{dot}")
            return f"; without the prefix {prefix!r} some of them have the names of the model"
    return ""


def _family(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def _shown(keys: Sequence[str]) -> str:
    return ", ".join(map(shorten, keys[:SHOWN])) + (", ..." if len(keys) > SHOWN else "")
