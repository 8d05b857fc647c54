"""Every config key of PointRend, the one loader of YAML files, and checks across keys.

The loader gives the result of Detectron2's `CfgNode.merge_from_file`, but to it a YAML file is
data: nothing in a file, or in a file that it names as its `_BASE_`, is ever executed.
"""

import ast
import contextlib
import copy
import difflib
import functools
import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from detectron2.config import CfgNode, downgrade_config, get_cfg, upgrade_config
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.utils.file_io import PathManager
from PIL import Image

BASE_KEY = "_BASE_"
COMMAND_LINE = "command line"
INHERIT = -1

# Names of the mask heads that do their own pooling. CoarseMaskHead is the oldest name of the first;
# PointRendROIHeads still builds it under that name.
POINT_MASK_HEADS = ("PointRendMaskHead", "ImplicitPointRendMaskHead", "CoarseMaskHead")

# Names of the meta-architectures that have ROI heads, and of those with a semantic head.
MODELS_WITH_ROI_HEADS = ("GeneralizedRCNN", "PanopticFPN", "PointRendPanopticFPN")
MODELS_WITH_SEMANTIC_HEAD = (
    "SemanticSegmentor",
    "PanopticFPN",
    "PointRendSemanticSegmentor",
    "PointRendPanopticFPN",
)

DEFAULTS: dict[str, Any] = {
    # Largest share of a random crop that one category may fill, 0 to 1; 1 switches the retries off.
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    # Photometric distortion of the SSD paper in training (semantic segmentation).
    "INPUT.COLOR_AUG_SSD": False,
    # Feature maps from which the coarse head pools, a subset of MODEL.ROI_HEADS.IN_FEATURES.
    "MODEL.ROI_MASK_HEAD.IN_FEATURES": ("p2",),
    # Width of the coarse head's fully connected layers, in channels.
    "MODEL.ROI_MASK_HEAD.FC_DIM": 1024,
    # Number of the coarse head's fully connected layers before its prediction.
    "MODEL.ROI_MASK_HEAD.NUM_FC": 2,
    # Side of the coarse mask, in cells.
    "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION": 7,
    # Whether the point head refines the coarse mask; if not, the coarse head is trained alone.
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": False,
    # Registered name of the point head.
    "MODEL.POINT_HEAD.NAME": "StandardPointHead",
    # Number of classes K; -1 takes the number of the head that uses the point head.
    "MODEL.POINT_HEAD.NUM_CLASSES": INHERIT,
    # Feature maps that give the fine-grained features, a subset of MODEL.ROI_HEADS.IN_FEATURES.
    "MODEL.POINT_HEAD.IN_FEATURES": ("p2",),
    # Training points per box, or per image in semantic segmentation (N of the paper's training).
    "MODEL.POINT_HEAD.TRAIN_NUM_POINTS": 14 * 14,
    # Candidates drawn for each training point (k), 1 or more.
    "MODEL.POINT_HEAD.OVERSAMPLE_RATIO": 3,
    # Share of the training points that are the most uncertain candidates (beta), 0 to 1.
    "MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO": 0.75,
    # Whether the training points are a fixed regular grid instead (Table 4, "regular grid").
    "MODEL.POINT_HEAD.TRAIN_ON_REGULAR_GRID": False,
    # Doublings of the mask's side at inference; in semantic segmentation -1 takes the number that
    # leads from the coarse stride to the size of the image.
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 5,
    # Points that one subdivision step predicts at most (N of the paper's inference).
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 28 * 28,
    # Boxes whose masks are rendered at a time, which bounds the memory; 0 takes all of an image.
    "MODEL.POINT_HEAD.SUBDIVISION_BOXES_PER_CHUNK": 64,
    # Cells per pixel of a box's longer side, in the network's input, from which on its mask is only
    # interpolated: small boxes take fewer points; 0 computes the points of all steps for every box.
    "MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL": 0.0,
    # Width of the point head's hidden layers, in channels.
    "MODEL.POINT_HEAD.FC_DIM": 256,
    # Number of the point head's hidden layers.
    "MODEL.POINT_HEAD.NUM_FC": 3,
    # Whether the point head predicts one mask for all classes together.
    "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK": False,
    # Whether every layer of the point head sees the coarse logits again, or the first one only.
    "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": True,
    # Registered name of the head that gives the coarse logits in semantic segmentation.
    "MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME": "SemSegFPNHead",
    # Whether the implicit point head sees fine-grained features.
    "MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED": True,
    # Whether the implicit point head sees the Fourier encoding of a point's place in its box.
    "MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED": True,
    # Weight of the mean square of the predicted parameters in the loss.
    "MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER": 1e-5,
    # What an image that cannot be read does to a training: "stop" ends it with the file's name,
    # "skip" gives the image's turn to another one, with a counted warning.
    "DATALOADER.ON_CORRUPT_IMAGE": "stop",
    # Whether an evaluation measures boundaries, too: boundary AP of instances, boundary mIoU of
    # label maps.
    "TEST.BOUNDARY_METRICS": False,
    # Whether an evaluation computes in SOLVER.AMP.DTYPE; coordinates and sampling stay in float32.
    "TEST.MIXED_PRECISION": False,
    # Type in which SOLVER.AMP.ENABLED and TEST.MIXED_PRECISION compute: float16 (the loss of a
    # training is scaled) or bfloat16.
    "SOLVER.AMP.DTYPE": "float16",
    # DeepLab's keys, as Detectron2's DeepLab project names and sets them. They are read by its
    # heads and its backbone alone.
    # Exponent of the WarmupPolyLR schedule.
    "SOLVER.POLY_LR_POWER": 0.9,
    # Share of BASE_LR at which WarmupPolyLR is cut off, 0 to 1. The other way to end it, as in
    # mmsegmentation, is Detectron2's SOLVER.BASE_LR_END: the rate to which the curve is scaled.
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    # Loss of a DeepLab head: hard_pixel_mining (its hardest fifth of the pixels) or cross_entropy.
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "hard_pixel_mining",
    # Feature maps that DeepLabV3+ adds to the decoder; it reads SEM_SEG_HEAD.IN_FEATURES instead.
    "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES": ["res2"],
    # Channels to which DeepLabV3+ projects each of them.
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [48],
    # Channels of the atrous spatial pyramid.
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 256,
    # Dilations of the pyramid's three 3x3 convolutions.
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [6, 12, 18],
    # Dropout after the pyramid, 0 to 1.
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": 0.1,
    # Whether pyramid and decoder use depthwise separable convolutions.
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": False,
    # Dilation of res4; 2 keeps its stride at 8 and wants RES5_DILATION 4.
    "MODEL.RESNETS.RES4_DILATION": 1,
    # Factors of RES5_DILATION in the three blocks of res5.
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
    # Stem of build_resnet_deeplab_backbone: deeplab (three 3x3 convolutions) or basic (one 7x7).
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
}
# A point head for the semantic head alone, for models that have two. Its keys are those of
# MODEL.POINT_HEAD; without a NAME it is not there, and the semantic head takes MODEL.POINT_HEAD.
DEFAULTS |= {
    key.replace("MODEL.", "MODEL.SEM_SEG_HEAD."): default
    for key, default in DEFAULTS.items()
    if key.startswith("MODEL.POINT_HEAD.")
} | {"MODEL.SEM_SEG_HEAD.POINT_HEAD.NAME": ""}

logger = logging.getLogger(__name__)


def add_pointrend_config(cfg: CfgNode) -> None:
    """Add every PointRend key that `cfg` lacks; values that are already there stay.

    Call it before a PointRend YAML file is merged: a config knows no key that was not added.

    Args:
        cfg: A config with Detectron2's keys; changed in place.
    """
    for key, default in DEFAULTS.items():
        *sections, name = key.split(".")
        node = cfg
        for section in sections:
            if section not in node:
                node[section] = CfgNode()
            node = node[section]
        if name not in node:
            node[name] = copy.copy(default)


def get_config_file(name: str) -> str:
    """Find a YAML file that is shipped with the package.

    Args:
        name: Path below `configs/`, for example
            "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml".

    Returns:
        Its path on this machine.

    Raises:
        FileNotFoundError: If no such file is shipped; the message lists the nearest names.
    """
    package = Path(__file__).resolve().parent
    # An installed package carries the folder inside, a checkout has it beside the package.
    shipped = package / "configs"
    root = shipped if shipped.is_dir() else package.parent / "configs"
    path = root / name
    if not path.is_file():
        known = [file.relative_to(root).as_posix() for file in root.rglob("*.yaml")]
        raise FileNotFoundError(f"no config file {name!r} in {root}{_did_you_mean(name, known)}")
    return str(path)


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Build the config of a run: defaults, then a YAML file, then the command line.

    Args:
        config_file: Path or URL of a YAML file.
        opts: Keys and values in turn, as in `["SOLVER.BASE_LR", "0.01"]`.

    Returns:
        The config, not frozen.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ValueError: If a file would execute code or is not YAML, or a key or a value does not fit.
    """
    cfg = get_cfg()
    add_pointrend_config(cfg)
    merge_from_file_safely(cfg, config_file)
    _apply(cfg, _settings_of_opts(opts))
    return cfg


def merge_from_file_safely(cfg: CfgNode, path: str) -> None:
    """Merge a YAML file and its `_BASE_` files into a config without executing anything in them.

    The result equals that of Detectron2's `cfg.merge_from_file`, files of old versions included.
    When an error is raised, `cfg` is as it was.

    Args:
        cfg: A config of the latest version; changed in place.
        path: Path or URL of a YAML file.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ValueError: If a file would execute code or is not YAML, if the bases form a cycle, or if a
            key or a value does not fit `cfg`.
    """
    settings = _settings_of_file(path)
    version = _version_of(settings, latest=cfg.VERSION)
    if version == cfg.VERSION:
        merged = cfg.clone()
        _apply(merged, settings)
    else:
        logger.warning("%s is of config version %d: upgrading it", path, version)
        old = downgrade_config(cfg, to_version=version)
        _apply(old, settings)
        merged = upgrade_config(old)
    cfg.clear()
    cfg.update(merged)


def check_config(cfg: CfgNode, *, training: bool) -> None:
    """Refuse contradictions between keys, before anything is built from them.

    Args:
        cfg: A complete config.
        training: Whether the config is about to train a model.

    Raises:
        ValueError: If keys contradict each other; the message names them.
    """
    _check_numbers(cfg, training=training)
    _check_registered_names(cfg)
    if training:
        _check_short_sides(cfg)
        _check_data_loader(cfg)
    if training or cfg.TEST.MIXED_PRECISION:
        _check_mixed_precision(cfg)
    if cfg.MODEL.META_ARCHITECTURE in MODELS_WITH_SEMANTIC_HEAD:
        _check_crop_of_deeplab(cfg)
    elif cfg.TEST.BOUNDARY_METRICS and not cfg.MODEL.MASK_ON:
        raise ValueError(
            "TEST.BOUNDARY_METRICS is True, but MODEL.MASK_ON is False: without masks there are no "
            "boundaries"
        )
    if cfg.MODEL.MASK_ON:
        _check_mask_head(cfg, training=training)


LEAST_NUMBERS = {"DATALOADER.NUM_WORKERS": 0}
LEAST_NUMBERS_OF_A_TRAINING = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "TEST.EVAL_PERIOD": 0,
}


def _check_numbers(cfg: CfgNode, *, training: bool) -> None:
    for key, least in (LEAST_NUMBERS | (LEAST_NUMBERS_OF_A_TRAINING if training else {})).items():
        value = value_of(cfg, key)
        if value < least:
            raise ValueError(f"{key} must be {least} or more, got {value}")


RESNET_DEPTHS = (18, 34, 50, 101, 152)  # that Detectron2's own ResNets have
RESNETS = ("build_resnet_backbone", "build_resnet_fpn_backbone")


def _check_registered_names(cfg: CfgNode) -> None:
    model = cfg.MODEL
    image_formats = ("BGR", "YUV-BT.601", *Image.MODES)  # Detectron2's own, and Pillow's
    if cfg.INPUT.FORMAT not in image_formats:
        raise ValueError(f"INPUT.FORMAT must be BGR, RGB or L, got {cfg.INPUT.FORMAT!r}")
    if model.BACKBONE.NAME in RESNETS and model.RESNETS.DEPTH not in RESNET_DEPTHS:
        raise ValueError(
            f"MODEL.RESNETS.DEPTH must be one of {RESNET_DEPTHS}, got {model.RESNETS.DEPTH}"
        )
    used = {"MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY, "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY}
    if model.META_ARCHITECTURE in MODELS_WITH_ROI_HEADS:
        used["MODEL.ROI_HEADS.NAME"] = ROI_HEADS_REGISTRY
        if model.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals":  # the name of none
            used["MODEL.PROPOSAL_GENERATOR.NAME"] = PROPOSAL_GENERATOR_REGISTRY
        if model.MASK_ON and model.ROI_MASK_HEAD.NAME != "CoarseMaskHead":
            used["MODEL.ROI_MASK_HEAD.NAME"] = ROI_MASK_HEAD_REGISTRY
    if model.META_ARCHITECTURE in MODELS_WITH_SEMANTIC_HEAD:
        used["MODEL.SEM_SEG_HEAD.NAME"] = SEM_SEG_HEADS_REGISTRY
    for key, registry in used.items():
        name = value_of(cfg, key)
        if name not in registry:
            known = [known_name for known_name, _ in registry]
            raise ValueError(
                f"{key} is {name!r}, which is not registered" + _did_you_mean(name, known)
            )


def value_of(cfg: CfgNode, key: str) -> Any:
    """Look up a dotted key."""
    return functools.reduce(operator.getitem, key.split("."), cfg)


def _check_short_sides(cfg: CfgNode) -> None:
    for key in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN"):
        if not np.size(cfg.INPUT[key]) or np.min(cfg.INPUT[key]) < 1:
            raise ValueError(f"INPUT.{key} must be 1 pixel or more, got {cfg.INPUT[key]}")
    sides, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling not in ("choice", "range"):
        raise ValueError(f"INPUT.MIN_SIZE_TRAIN_SAMPLING must be choice or range, got {sampling!r}")
    if sampling == "range" and len(sides) != 2:
        raise ValueError(
            "INPUT.MIN_SIZE_TRAIN_SAMPLING is range: INPUT.MIN_SIZE_TRAIN must be the smallest and "
            f"the largest short side, got {tuple(sides)}"
        )


def _check_mixed_precision(cfg: CfgNode) -> None:
    if cfg.SOLVER.AMP.DTYPE not in ("float16", "bfloat16"):
        raise ValueError(
            f"SOLVER.AMP.DTYPE must be float16 or bfloat16, got {cfg.SOLVER.AMP.DTYPE!r}"
        )


def _check_data_loader(cfg: CfgNode) -> None:
    reaction = cfg.DATALOADER.ON_CORRUPT_IMAGE
    if reaction not in ("stop", "skip"):
        raise ValueError(f"DATALOADER.ON_CORRUPT_IMAGE must be stop or skip, got {reaction!r}")


def _check_crop_of_deeplab(cfg: CfgNode) -> None:
    """Check what DeepLab's heads read of the crop: the window of their average."""
    head, crop = cfg.MODEL.SEM_SEG_HEAD, cfg.INPUT.CROP
    name = head.NAME
    if name == "PointRendSemSegHead":
        name = cfg.MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME
    if not (name.startswith("DeepLab") and crop.ENABLED):
        return
    if crop.TYPE != "absolute":
        raise ValueError(
            f"INPUT.CROP.TYPE is {crop.TYPE!r}, but {name} needs crops of one size: set it to "
            "absolute, or INPUT.CROP.ENABLED to False"
        )
    if name == "DeepLabV3Head" and any(side % head.COMMON_STRIDE for side in crop.SIZE):
        raise ValueError(
            f"INPUT.CROP.SIZE is {tuple(crop.SIZE)}, but for {name} both sides must be multiples "
            f"of MODEL.SEM_SEG_HEAD.COMMON_STRIDE, which is {head.COMMON_STRIDE}"
        )


def _check_mask_head(cfg: CfgNode, *, training: bool) -> None:
    model = cfg.MODEL
    mask_head = model.ROI_MASK_HEAD
    mask_format = cfg.INPUT.MASK_FORMAT
    if training and mask_format not in ("bitmask", "polygon"):
        raise ValueError(f"INPUT.MASK_FORMAT must be bitmask or polygon, got {mask_format!r}")
    if mask_head.NAME not in POINT_MASK_HEADS:
        return

    if mask_head.POINT_HEAD_ON or mask_head.NAME == "ImplicitPointRendMaskHead":
        point_head_num_classes(cfg, model.ROI_HEADS.NUM_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES")
    if mask_head.NAME != "CoarseMaskHead" and mask_head.POOLER_TYPE:
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.NAME {mask_head.NAME} samples the feature maps itself: "
            f'MODEL.ROI_MASK_HEAD.POOLER_TYPE must be "", got {mask_head.POOLER_TYPE!r}'
        )


def point_head_num_classes(cfg: CfgNode, inherited: int, inherited_key: str) -> int:
    """Settle the class count of the point head with the head that uses it.

    Args:
        cfg: A config with MODEL.POINT_HEAD.
        inherited: Class count of the head that uses the point head.
        inherited_key: Config key of that count.

    Returns:
        The count on which both agree.

    Raises:
        ValueError: If MODEL.POINT_HEAD.NUM_CLASSES is given and differs.
    """
    own = cfg.MODEL.POINT_HEAD.NUM_CLASSES
    if own not in (INHERIT, inherited):
        raise ValueError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {own}, but {inherited_key} is {inherited}: leave the "
            f"former at {INHERIT} (it then follows the latter) or make them equal"
        )
    return inherited


class _Setting(NamedTuple):
    """One value for one key, and where a user wrote it."""

    path: tuple[str, ...]
    value: Any
    source: str

    @property
    def key(self) -> str:
        return ".".join(self.path)


def _settings_of_opts(opts: Sequence[str]) -> list[_Setting]:
    flag = next((word for word in opts if str(word).startswith("--")), None)
    if flag is not None:
        raise ValueError(
            f"{COMMAND_LINE}: {flag} stands among the config keys; options that start with - go "
            "before the first KEY VALUE"
        )
    if len(opts) % 2:
        raise ValueError(
            f"{COMMAND_LINE}: expected pairs KEY VALUE separated by a space, "
            f"got {len(opts)} words: {' '.join(map(str, opts))}"
        )
    keys = [str(key) for key in opts[::2]]
    return [
        _Setting(tuple(key.split(".")), value, COMMAND_LINE)
        for key, value in zip(keys, opts[1::2], strict=True)
    ]


def _settings_of_file(path: str, included_by: tuple[str, ...] = ()) -> list[_Setting]:
    """List what a file and its bases set, bases first.

    Args:
        path: Path or URL of a YAML file.
        included_by: The files that led to this one, outermost first.
    """
    path = os.path.expanduser(path)
    chain = (*included_by, path)
    if os.path.realpath(path) in map(os.path.realpath, included_by):
        raise ValueError(f"{BASE_KEY} files form a cycle: {' -> '.join(chain)}")

    tree = _read_yaml(path, included_by)
    bases = tree.pop(BASE_KEY, [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: {BASE_KEY} must be a file or a list of files, got {bases!r}")

    settings = []
    for base in bases:
        if "://" not in base:
            base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        settings += _settings_of_file(base, chain)
    settings += _flatten(tree, path)
    return settings


def _read_yaml(path: str, included_by: tuple[str, ...]) -> dict[Any, Any]:
    where = f"config file {path}"
    if included_by:
        where += f" ({BASE_KEY} of {included_by[-1]})"
    try:
        with PathManager.open(path, "rb") as file:
            tree = yaml.safe_load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} does not exist") from error
    except OSError as error:
        raise OSError(f"{where} cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(error.problem).replace("tag:yaml.org,2002:", "!!")
        if "!!python/" in problem:
            problem += "; configs are data and Python tags in them are refused, never executed"
        raise ValueError(f"{where}{line}: {problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: expected config keys and values, got {tree!r}")
    return tree


def _flatten(
    tree: Mapping[Any, Any], source: str, prefix: tuple[str, ...] = ()
) -> Iterator[_Setting]:
    for name, value in tree.items():
        path = (*prefix, str(name))
        if isinstance(value, Mapping):
            yield from _flatten(value, source, path)
        else:
            yield _Setting(path, value, source)


def _version_of(settings: Sequence[_Setting], latest: int) -> int:
    """Tell the config version of a file; the keys give one away that says none."""
    given = [setting for setting in settings if setting.key == "VERSION"]
    if not given:
        old_keys = {"MODEL.WEIGHT", "TEST.AUG_ON"}
        return 1 if any(setting.key in old_keys for setting in settings) else latest
    version = given[-1].value
    if not isinstance(version, int) or not 0 <= version <= latest:
        raise ValueError(
            f"{given[-1].source}: VERSION must be a number from 0 to {latest}, got {version!r}"
        )
    return version


def _apply(cfg: CfgNode, settings: Iterable[_Setting]) -> None:
    """Set keys that exist to values of their types, in order."""
    for setting in settings:
        current: Any = cfg
        for name in setting.path:
            if not isinstance(current, CfgNode) or name not in current:
                raise ValueError(_unknown_key(cfg, setting))
            current = current[name]
        try:
            cfg.merge_from_list([setting.key, setting.value])
        except (ValueError, TypeError) as error:
            raise ValueError(_wrong_type(current, setting)) from error


def _wrong_type(current: Any, setting: _Setting) -> str:
    if isinstance(current, CfgNode):
        expected = "a section of keys"
    else:
        expected = f"{type(current).__name__} such as {current!r}"
    got = setting.value
    if isinstance(got, str):
        # The merge reads strings as Python literals, so that "(1, 2)" is a tuple; so does this.
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            got = ast.literal_eval(got)
    message = f"{setting.source}: {setting.key} must be {expected}, got {type(got).__name__} {got}"
    if isinstance(current, str):
        message += f"""; quote it twice to make it a string: "'{got}'\""""
    return message


def _unknown_key(cfg: CfgNode, setting: _Setting) -> str:
    message = f"{setting.source}: unknown config key {setting.key}"
    if setting.source == COMMAND_LINE and setting.key.startswith("-"):
        return f"{message}; options that start with - go before the first KEY VALUE"
    if setting.source == COMMAND_LINE and "=" in setting.key:
        return f"{message}; write KEY VALUE with a space, not KEY=VALUE"
    known = [known_setting.key for known_setting in _flatten(cfg, "")]
    return message + _did_you_mean(setting.key, known)


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    by_upper = {candidate.upper(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.upper(), by_upper, n=3)
    if not nearest:
        return ""
    return "; did you mean " + " or ".join(by_upper[match] for match in nearest) + "?"
