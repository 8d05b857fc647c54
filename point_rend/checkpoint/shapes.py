"""Parameters of a checkpoint whose shapes are not those of the model."""

import re
from collections.abc import Sequence

from torch import Tensor

Misfit = tuple[str, tuple[int, ...], tuple[int, ...]]  # key, shape in the file, shape in the model

# Layers whose shape depends on the class count, with the dimensions that do.
_CLASS_DIMENSIONS = (
    (re.compile(r"(^|\.)point_head\.fc\d+\.weight$"), {1}),
    (re.compile(r"(^|\.)point_head\.predictor\.weight$"), {0, 1}),
    (re.compile(r"(^|\.)(cls_score|bbox_pred|predictor|prediction)\.(weight|bias)$"), {0}),
)


def differs_in_classes(misfit: Misfit) -> bool:
    """Return whether the shapes differ only in dimensions that depend on the class count."""
    key, in_file, in_model = misfit
    for pattern, dimensions in _CLASS_DIMENSIONS:
        if pattern.search(key):
            sizes = zip(in_file, in_model, strict=False)
            differing = {i for i, (a, b) in enumerate(sizes) if a != b}
            return len(in_file) == len(in_model) and differing <= dimensions
    return False


def list_misfits(misfits: Sequence[Misfit]) -> str:
    """Describe misfits for a message, one per line."""
    return "".join(
        f"\n  {key}: {in_file} in the file, {in_model} in the model"
        for key, in_file, in_model in misfits
    )


def rename_misfits(matched: dict[str, Tensor], in_model: dict[str, Tensor]) -> None:
    """Give parameters that Detectron2's heuristics left out for their shape the model's names.

    Args:
        matched: Parameters of the file after the heuristics, which match names by their endings;
            changed in place.
        in_model: Parameters of the model.
    """
    for key in [key for key in in_model if key not in matched]:
        names = [name for name in matched if key.endswith("." + name)]
        name = max(names, key=len, default=key)
        if name in matched and matched[name].shape != in_model[key].shape:
            matched[key] = matched.pop(name)
