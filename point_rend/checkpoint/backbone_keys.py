"""Files of a backbone alone, such as ImageNet weights, whose names lack the model's prefix."""

from collections import Counter
from collections.abc import Collection
from typing import Any

BACKBONE = "backbone."


def add_backbone_prefix(state: dict[str, Any], in_model: Collection[str]) -> str:
    """Give the parameters of a backbone the names that they have in a model.

    A file counts as one of a backbone if none of its names is in the model, and if most of the
    parameters below some prefix, such as `backbone.bottom_up.`, are in the file.

    Args:
        state: Parameters of the file; changed in place.
        in_model: Names of the model's parameters.

    Returns:
        The prefix; empty if the file is none of a backbone, and then stays as it was.
    """
    if any(key in in_model for key in state):
        return ""
    prefixes = Counter(
        name[: -len(key)]
        for name in in_model
        if name.startswith(BACKBONE)
        for key in _endings(name)
        if key in state
    )
    for prefix, matching in prefixes.most_common(1):
        below = sum(name.startswith(prefix) for name in in_model)
        if 2 * matching > below:
            for key in list(state):
                state[prefix + key] = state.pop(key)
            return prefix
    return ""


def _endings(name: str) -> list[str]:
    """Return what remains of a dotted name without its first parts."""
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(1, len(parts))]
