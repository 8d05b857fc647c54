"""Parameters of a checkpoint whose shapes are not those of the model."""

import re
from collections.abc import Iterable, Sequence

from torch import Tensor

Misfit = tuple[str, tuple[int, ...], tuple[int, ...]]  # key, shape in the file, shape in the model

# Layers whose shape depends on the class count, with the dimensions that do.
_CLASS_DIMENSIONS = (
    (re.compile(r"(^|\.)point_head\.fc\d+\.weight$"), {1}),
    (re.compile(r"(^|\.)point_head\.predictor\.weight$"), {0, 1}),
    (re.compile(r"(^|\.)(cls_score|bbox_pred|predictor|prediction)\.(weight|bias)$"), {0}),
)

LISTED = 20  # misfits in a message

# The only layer that sees the channels of an image: of ResNet and RegNet, of ViT, Swin and MViT.
FIRST_CONVOLUTION = re.compile(r"(^|\.)(stem\.conv1?|patch_embed\.proj)\.weight$")
OF_TIMM = re.compile(r"^backbone\.bottom_up\.timm\.")  # its models name that layer otherwise
_INSTANCE_CLASSES = ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK")
_CLASS_KEYS = (
    (
        re.compile(r"box_predictor\."),
        ("MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
    ),
    (re.compile(r"mask_head\."), _INSTANCE_CLASSES),
    (re.compile(r"sem_seg_head\."), ("MODEL.SEM_SEG_HEAD.NUM_CLASSES",)),
)
_CONFIG_KEYS = (  # the first pattern that fits a parameter
    (OF_TIMM, ("MODEL.TIMM.NAME", "INPUT.CHANNELS")),
    (re.compile(r"^backbone\.net\."), ("MODEL.VIT.EMBED_DIM",)),
    (re.compile(r"^backbone\.bottom_up\.layers\."), ("MODEL.SWIN.EMBED_DIM",)),
    (re.compile(r"^backbone\.bottom_up\.blocks\."), ("MODEL.MVIT.EMBED_DIM",)),
    (
        FIRST_CONVOLUTION,
        ("INPUT.FORMAT", "INPUT.CHANNELS", "MODEL.RESNETS.DEPTH", "MODEL.RESNETS.NORM"),
    ),
    (
        re.compile(r"(^|\.)(res\d|stem)\."),
        ("MODEL.RESNETS.DEPTH", "MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.NORM"),
    ),
    (re.compile(r"(^|\.)fpn_"), ("MODEL.FPN.IN_FEATURES", "MODEL.FPN.OUT_CHANNELS")),
    (
        re.compile(r"proposal_generator\."),
        ("MODEL.FPN.OUT_CHANNELS", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
    ),
    (re.compile(r"box_head\."), ("MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_BOX_HEAD.FC_DIM")),
    _CLASS_KEYS[0],
    (re.compile(r"mask_head\.(mask_fcn|deconv)"), ("MODEL.ROI_MASK_HEAD.NAME",)),
    (re.compile(r"coarse_head\.prediction\."), _INSTANCE_CLASSES),
    (
        re.compile(r"coarse_head\."),
        ("MODEL.ROI_MASK_HEAD.NAME", "MODEL.ROI_MASK_HEAD.NUM_FC", "MODEL.ROI_MASK_HEAD.FC_DIM"),
    ),
    (
        re.compile(r"(point|parameter)_head\."),
        ("MODEL.POINT_HEAD.NAME", "MODEL.POINT_HEAD.NUM_FC", "MODEL.POINT_HEAD.FC_DIM"),
    ),
    (re.compile(r"mask_head\."), ("MODEL.ROI_MASK_HEAD.NAME", *_INSTANCE_CLASSES)),
    (re.compile(r"sem_seg_head\.(\w+\.)?predictor\."), _CLASS_KEYS[2][1]),
    (
        re.compile(r"sem_seg_head\."),
        ("MODEL.SEM_SEG_HEAD.NAME", "MODEL.SEM_SEG_HEAD.CONVS_DIM"),
    ),
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
    """Describe misfits for a message, one per line, up to a number of lines."""
    lines = [
        f"\n  {key}: {in_file} in the file, {in_model} in the model"
        for key, in_file, in_model in misfits[:LISTED]
    ]
    if len(misfits) > LISTED:
        lines.append(f"\n  and {len(misfits) - LISTED} more")
    return "".join(lines)


def config_keys(keys: Iterable[str], *, of_classes: bool = False) -> list[str]:
    """Return the config keys on which the names and shapes of parameters depend.

    Args:
        keys: Names of the parameters.
        of_classes: Whether only keys that change the number of classes are of interest.
    """
    found: dict[str, None] = {}
    for key in keys:
        for pattern, names in _CLASS_KEYS if of_classes else _CONFIG_KEYS:
            if pattern.search(key):
                found |= dict.fromkeys(names)
                break
    return list(found)


def advice_on_misfits(misfits: Sequence[Misfit]) -> str:
    """Return a part of a message with the config keys to look at; empty if none is known."""
    keys = [key for key, _, _ in misfits]
    names = config_keys(keys, of_classes=all(map(differs_in_classes, misfits)))
    return f", look at {', '.join(names)}" if names else ""


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
