"""Checks of a config whose backbone is a model of timm, which is imported only then."""

import math
import re
from typing import Any

from detectron2.config import CfgNode

from point_rend.utils.errors import did_you_mean, shortened
from point_rend.utils.imports import not_installed

NAME = re.compile(r"\w+(\.\w+)?")  # no source of a model, such as hf-hub:user/model
WEIGHTS = "timm://"
COLORS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}
WHITE = 255


def import_timm() -> Any:
    """Import timm.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise not_installed("timm", "timm") from error
    return timm


def check_timm(cfg: CfgNode) -> None:
    """Refuse a model that timm lacks, and pixels that its weights were not trained on.

    Args:
        cfg: A config with MODEL.TIMM.

    Raises:
        ValueError: If timm is not installed, lacks the model, or if MODEL.WEIGHTS names weights of
            timm, but the pixels of the config differ from theirs.
    """
    timm = import_timm()
    name = cfg.MODEL.TIMM.NAME
    if not NAME.fullmatch(name) or not timm.is_model(name):
        hint = did_you_mean(name.partition(".")[0], timm.list_models())
        raise ValueError(
            f"MODEL.TIMM.NAME must be a model of timm, got {shortened(repr(name))}{hint}"
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        expected = f"expected {' or '.join(tags)}, or no tag" if tags else "expected no tag"
        raise ValueError(
            f"MODEL.TIMM.NAME is {name}, but timm has no such weights: {expected}"
        ) from error
    if not cfg.MODEL.WEIGHTS.startswith(WEIGHTS):
        return
    try:
        trained = timm.get_pretrained_cfg(cfg.MODEL.WEIGHTS.removeprefix(WEIGHTS))
    except RuntimeError:
        trained = None
    if trained is not None:  # a name without weights is refused where they are looked for
        _check_pixels(cfg, trained)


def _check_pixels(cfg: CfgNode, trained: Any) -> None:
    """Refuse another mean or deviation of the colors than those of pretrained weights."""
    order = COLORS.get(cfg.INPUT.FORMAT)
    if order is None or len(cfg.MODEL.PIXEL_MEAN) != len(order):
        return  # no colors: timm has no numbers for them
    for key, values in (("MODEL.PIXEL_MEAN", trained.mean), ("MODEL.PIXEL_STD", trained.std)):
        expected = [round(WHITE * values[channel], 3) for channel in order]
        given = cfg.MODEL[key.rpartition(".")[2]]
        if not all(math.isclose(x, y, abs_tol=0.5) for x, y in zip(given, expected, strict=False)):
            raise ValueError(
                f"{key} is {list(given)}, but {cfg.MODEL.WEIGHTS} was trained with {expected} in "
                f"the order {cfg.INPUT.FORMAT}: set it to that"
            )
