"""Checks of a config: every value by itself, and values that contradict each other."""

import math
from collections.abc import Collection
from itertools import pairwise

from detectron2.config import CfgNode

from point_rend.config.backbones import check_backbone, feature_strides
from point_rend.config.defaults import OF_DATASET, pixel_format, point_head_num_classes, value_of
from point_rend.config.schema import (
    CASCADE_ROI_HEADS,
    CROPS,
    IMPLICIT_MASK_HEADS,
    MASK_RCNN_HEADS,
    POINT_MASK_HEADS,
    PYRAMID_ROI_HEADS,
    TEST_TIME_AUGMENTATION,
    VITDET,
    check_rules,
    rules_in_use,
    semantic_head_name,
)
from point_rend.config.tasks import PANOPTIC, meta_architecture, model_outputs
from point_rend.utils.pixel_format import COLORS, DEEP_ORDERS, EIGHT_BITS

COCO_KEYPOINTS = 17
LARGEST_SIDE = 16_384  # pixels of the short side of an image
LARGEST_LABEL = 255  # of a label map
LARGEST_MASK = 8192  # cells of the side of a mask, or pixels of an image, to which points are added
MOST_CANDIDATES = 10_000_000  # points drawn for a box or an image


def check_config(cfg: CfgNode, *, training: bool) -> None:
    """Refuse values that cannot be used and contradictions between keys, before anything is built.

    Args:
        cfg: A complete config.
        training: Whether the config is about to train a model.

    Raises:
        ValueError: If a key has an impossible value or keys contradict each other; the message
            names them.
    """
    keys = rules_in_use(cfg, training=training)
    check_rules(cfg, keys)
    check_max_dets(cfg.TEST.MAX_DETS_PER_IMAGE)
    _check_pixels(cfg)
    _check_sides(cfg, "TEST")
    check_backbone(cfg, training=training)
    for section in ("MODEL.RPN", "MODEL.ROI_HEADS", "MODEL.RETINANET"):
        if f"{section}.IOU_LABELS" in keys:
            _check_matching(cfg, section)
    _check_features(cfg, keys)
    if cfg.MODEL.KEYPOINT_ON and cfg.DATASETS.TEST:
        _check_sigmas(cfg)
    _check_group_norms(cfg, keys)
    if "MODEL.ANCHOR_GENERATOR.SIZES" in keys:
        _check_anchors(cfg)
    if meta_architecture(cfg).has_roi_heads:
        _check_box_head(cfg)
    for section in ("MODEL.POINT_HEAD", "MODEL.SEM_SEG_HEAD.POINT_HEAD"):
        if f"{section}.TRAIN_NUM_POINTS" in keys:
            _check_points(cfg, section)
    if meta_architecture(cfg).has_semantic_head:
        _check_crop_of_deeplab(cfg)
        _check_stride(cfg)
    elif cfg.TEST.BOUNDARY_METRICS and not cfg.MODEL.MASK_ON:
        raise ValueError(
            "TEST.BOUNDARY_METRICS is True, but MODEL.MASK_ON is False: boundary metrics need masks"
        )
    if training:
        _check_color_pictures(cfg)
        _check_sides(cfg, "TRAIN")
        _check_crop(cfg)
        if cfg.INPUT.LSJ.ENABLED:
            _check_large_scale_jitter(cfg)
        _check_point_supervision(cfg)
        _check_solver(cfg)
        _check_evaluations(cfg)
    if cfg.MODEL.MASK_ON and meta_architecture(cfg).has_roi_heads:
        _check_mask_head(cfg)


AVERAGED_RESULTS = "ema"  # key of the results of averaged weights beside those of the others
MAX_DETS = "TEST.MAX_DETS_PER_IMAGE"
MOST_DETS = 1_000_000


def _check_sigmas(cfg: CfgNode) -> None:
    """Refuse another number of sigmas than of keypoints, which an evaluation asserts on."""
    key, sigmas = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", cfg.TEST.KEYPOINT_OKS_SIGMAS
    number = len(sigmas) or COCO_KEYPOINTS
    if number != value_of(cfg, key):
        given = (
            f"has {len(sigmas)} numbers" if sigmas else f"is empty, which means {number} of COCO"
        )
        raise ValueError(
            f"TEST.KEYPOINT_OKS_SIGMAS {given}, but {key} is {value_of(cfg, key)}: expected one "
            "sigma for each keypoint"
        )


def check_max_dets(number: int, setting: str = MAX_DETS) -> None:
    """Refuse an impossible limit on the results of an image that count for AP.

    Args:
        number: The limit, or `OF_DATASET`.
        setting: Config key or flag that sets it, for the message.

    Raises:
        ValueError: If it is impossible.
    """
    if number != OF_DATASET and not 1 <= number <= MOST_DETS:
        raise ValueError(
            f"{setting}: expected 1 to {MOST_DETS}, or {OF_DATASET} for the limit of the data set "
            f"(100 for COCO, 300 for LVIS), got {number}"
        )


def _check_pixels(cfg: CfgNode) -> None:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    pixels = pixel_format(cfg)
    channels = pixels.num_channels
    if len(mean) != channels:
        key = f"FORMAT {pixels.order}" if pixels.has_colors else f"CHANNELS {channels}"
        raise ValueError(
            f"MODEL.PIXEL_MEAN must be a list of {channels} values for INPUT.{key}, got {mean}"
        )
    if channels in (1, COLORS) and not pixels.has_colors:
        expected = "L" if channels == 1 else "BGR or RGB"
        raise ValueError(
            f"INPUT.CHANNELS is {channels}, but INPUT.FORMAT is {pixels.order}: expected {expected}"
        )
    if pixels.bits > EIGHT_BITS and pixels.has_colors and pixels.order not in DEEP_ORDERS:
        raise ValueError(
            f"INPUT.BITS is {pixels.bits}, but INPUT.FORMAT is {pixels.order}: expected "
            f"{', '.join(DEEP_ORDERS)}"
        )
    # The models without ROI heads take one value for all channels, too.
    if len(std) != channels and (meta_architecture(cfg).has_roi_heads or len(std) != 1):
        raise ValueError(
            f"MODEL.PIXEL_STD must be a list of {channels} values, as many as MODEL.PIXEL_MEAN, "
            f"got {std}"
        )


def _check_color_pictures(cfg: CfgNode) -> None:
    """Refuse what a training does with colors if the images have none, or not of 8 bits."""
    pixels = pixel_format(cfg)
    kind = f"INPUT.CHANNELS is {pixels.channels} and INPUT.BITS {pixels.bits}"
    if cfg.INPUT.COLOR_AUG_SSD and not pixels.is_plain:
        raise ValueError(
            f"INPUT.COLOR_AUG_SSD is True, which needs colors of 8 bits, but {kind}: set it to "
            "False"
        )
    if cfg.VIS_PERIOD > 0 and not pixels.has_colors:
        raise ValueError(
            f"VIS_PERIOD is {cfg.VIS_PERIOD}, which needs gray or colors, but {kind}: set it to 0"
        )


def _check_sides(cfg: CfgNode, split: str) -> None:
    key, longest = f"INPUT.MIN_SIZE_{split}", cfg.INPUT[f"MAX_SIZE_{split}"]
    sides = cfg.INPUT[f"MIN_SIZE_{split}"]
    largest = max(sides) if split == "TRAIN" else sides
    if min(largest, longest) > LARGEST_SIDE:
        raise ValueError(
            f"{key} and INPUT.MAX_SIZE_{split}: one of them must be {LARGEST_SIDE} pixels or less, "
            f"got {sides} and {longest}"
        )
    if split == "TEST" or cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING != "range":
        return
    if len(sides) != 2 or sides[0] > sides[1]:
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN_SAMPLING is range: {key} must be the smallest and the largest "
            f"short side, got {tuple(sides)}"
        )


FEATURE_KEYS = (
    "MODEL.RPN.IN_FEATURES",
    "MODEL.ROI_HEADS.IN_FEATURES",
    "MODEL.ROI_MASK_HEAD.IN_FEATURES",
    "MODEL.POINT_HEAD.IN_FEATURES",
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.IN_FEATURES",
    "MODEL.RETINANET.IN_FEATURES",
)


def _check_features(cfg: CfgNode, keys: Collection[str]) -> None:
    strides = feature_strides(cfg)
    if strides is None:
        return
    for key in FEATURE_KEYS:
        if key in keys and not set(value_of(cfg, key)) <= strides.keys():
            raise ValueError(
                f"{key} must be features of MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}, which "
                f"are {', '.join(strides)}, got {value_of(cfg, key)}"
            )
    if "MODEL.SEM_SEG_HEAD.IN_FEATURES" in keys:
        used, known = set(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES), strides.keys()
        # Other heads leave out unknown names.
        complete = semantic_head_name(cfg).startswith("DeepLab")
        if not (used <= known if complete else used & known):
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.IN_FEATURES must be features of MODEL.BACKBONE.NAME "
                f"{cfg.MODEL.BACKBONE.NAME}, which are {', '.join(strides)}, got "
                f"{cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES}"
            )
    if "MODEL.ROI_HEADS.IN_FEATURES" not in keys:
        return
    name, used = cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES
    levels = [strides[feature] for feature in used]
    if name in PYRAMID_ROI_HEADS and any(b != 2 * a for a, b in pairwise(levels)):
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES must be successive levels for {name}, got {used}"
        )
    if name == "Res5ROIHeads" and len(used) != 1:
        raise ValueError(f"MODEL.ROI_HEADS.IN_FEATURES must be one feature for {name}, got {used}")


def _check_matching(cfg: CfgNode, section: str) -> None:
    """Check the thresholds that divide boxes into background, ignored and foreground."""
    labels = value_of(cfg, f"{section}.IOU_LABELS")
    thresholds = value_of(cfg, f"{section}.IOU_THRESHOLDS")
    if any(b < a for a, b in pairwise(thresholds)):
        raise ValueError(f"{section}.IOU_THRESHOLDS must not descend, got {thresholds}")
    if len(labels) != len(thresholds) + 1:
        raise ValueError(
            f"{section}.IOU_LABELS must be a list of {len(thresholds) + 1} values, one more than "
            f"IOU_THRESHOLDS has, got {labels}"
        )


def _check_anchors(cfg: CfgNode) -> None:
    """Check that every level has sizes and aspect ratios, and as many anchors as the others."""
    node = cfg.MODEL.ANCHOR_GENERATOR
    retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    levels = len((cfg.MODEL.RETINANET if retinanet else cfg.MODEL.RPN).IN_FEATURES)
    lengths = []
    for name in ("SIZES", "ASPECT_RATIOS"):
        value = node[name]
        per_level = [len(x) for x in value if isinstance(x, (list, tuple))] or [len(value)]
        if len(per_level) not in (1, levels):
            raise ValueError(
                f"MODEL.ANCHOR_GENERATOR.{name} must be one list for all levels or {levels} lists, "
                f"one for each of IN_FEATURES, got {value}"
            )
        lengths.append(per_level * (levels // len(per_level)))
    anchors = [sizes * ratios for sizes, ratios in zip(*lengths, strict=True)]
    if len(set(anchors)) > 1:
        raise ValueError(
            "MODEL.ANCHOR_GENERATOR: every level must have the same number of anchors (SIZES times "
            f"ASPECT_RATIOS), got {anchors}"
        )


GROUPS = 32  # of Detectron2's GN
NORMALIZED = {  # widths by the key of their normalization, and the number of such layers
    "MODEL.FPN.NORM": (("OUT_CHANNELS",), ""),
    "MODEL.ROI_BOX_HEAD.NORM": (("CONV_DIM",), "NUM_CONV"),
    "MODEL.ROI_MASK_HEAD.NORM": (("CONV_DIM",), "NUM_CONV"),
    "MODEL.SEM_SEG_HEAD.NORM": (("CONVS_DIM", "ASPP_CHANNELS", "PROJECT_CHANNELS"), ""),
    "MODEL.RESNETS.NORM": (("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS"), ""),
}


def _check_group_norms(cfg: CfgNode, keys: Collection[str]) -> None:
    for norm, (widths, layers) in NORMALIZED.items():
        section = norm.rpartition(".")[0]
        if norm not in keys or value_of(cfg, norm) != "GN":
            continue
        for name in widths:
            width = value_of(cfg, section)[name]
            used = f"{section}.{name}" in keys and (not layers or value_of(cfg, section)[layers])
            each = width if isinstance(width, (list, tuple)) else [width]
            if used and any(channels % GROUPS for channels in each):
                raise ValueError(
                    f"{section}.{name} must be a multiple of {GROUPS} for {norm} GN, got {width}"
                )


def _check_box_head(cfg: CfgNode) -> None:
    heads, box, cascade = (
        cfg.MODEL.ROI_HEADS,
        cfg.MODEL.ROI_BOX_HEAD,
        cfg.MODEL.ROI_BOX_CASCADE_HEAD,
    )
    if heads.NAME in PYRAMID_ROI_HEADS and not box.NUM_CONV and not box.NUM_FC:
        raise ValueError(
            "MODEL.ROI_BOX_HEAD: NUM_CONV and NUM_FC are both 0, expected one layer or more"
        )
    if heads.NAME not in CASCADE_ROI_HEADS:
        return
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        raise ValueError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS must be a list of {len(cascade.BBOX_REG_WEIGHTS)} "
            f"values, as many as BBOX_REG_WEIGHTS, got {cascade.IOUS}"
        )
    if cascade.IOUS[0] != heads.IOU_THRESHOLDS[0]:
        raise ValueError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS must begin with MODEL.ROI_HEADS.IOU_THRESHOLDS, "
            f"which is {heads.IOU_THRESHOLDS}, got {cascade.IOUS}"
        )


def _check_points(cfg: CfgNode, section: str) -> None:
    point = value_of(cfg, section)
    candidates = point.TRAIN_NUM_POINTS * point.OVERSAMPLE_RATIO
    if candidates > MOST_CANDIDATES:
        raise ValueError(
            f"{section}: TRAIN_NUM_POINTS times OVERSAMPLE_RATIO must be {MOST_CANDIDATES} or "
            f"less, got {candidates}"
        )
    semantic = not (cfg.MODEL.MASK_ON and meta_architecture(cfg).has_roi_heads)
    used = list(point.IN_FEATURES)
    if (semantic or "SEM_SEG_HEAD" in section) and len(set(used)) < len(used):
        raise ValueError(f"{section}.IN_FEATURES must be different features, got {used}")


def _check_solver(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    backbone = cfg.MODEL.BACKBONE.NAME
    if solver.LAYER_DECAY != 1 and backbone != VITDET:
        raise ValueError(
            f"SOLVER.LAYER_DECAY is {solver.LAYER_DECAY}, which needs the blocks of {VITDET}, but "
            f"MODEL.BACKBONE.NAME is {backbone}: set it to 1.0"
        )
    if solver.NESTEROV and not solver.MOMENTUM:
        raise ValueError("SOLVER.MOMENTUM must be above 0 for SOLVER.NESTEROV, got 0")
    name = solver.LR_SCHEDULER_NAME
    if name == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]  # it ignores the others
        if any(b <= a for a, b in pairwise(steps)):
            raise ValueError(f"SOLVER.STEPS must ascend, got {solver.STEPS}")
        if solver.MAX_ITER in steps:
            raise ValueError(
                f"SOLVER.STEPS must be less than SOLVER.MAX_ITER, which is {solver.MAX_ITER}, or "
                f"beyond it, where they are ignored; got {solver.STEPS}"
            )
    if solver.RESCALE_INTERVAL and solver.WARMUP_ITERS >= solver.MAX_ITER:
        raise ValueError(
            f"SOLVER.WARMUP_ITERS must be less than SOLVER.MAX_ITER, which is {solver.MAX_ITER}, "
            f"for SOLVER.RESCALE_INTERVAL; got {solver.WARMUP_ITERS}"
        )
    if name in ("WarmupCosineLR", "WarmupPolyLR") and solver.BASE_LR_END > solver.BASE_LR:
        raise ValueError(
            f"SOLVER.BASE_LR_END must be from 0 to SOLVER.BASE_LR, which is {solver.BASE_LR}, got "
            f"{solver.BASE_LR_END}"
        )


def _check_evaluations(cfg: CfgNode) -> None:
    """Check what a training does with its evaluations."""
    test, patience = cfg.TEST, cfg.SOLVER.PATIENCE
    if patience and not test.BEST_METRIC:
        raise ValueError(
            f"SOLVER.PATIENCE is {patience}, but TEST.BEST_METRIC is empty: expected the metric "
            "that has to improve, such as segm/AP"
        )
    for key, value in (
        ("TEST.BEST_METRIC", test.BEST_METRIC),
        ("TEST.VALIDATION_LOSS", test.VALIDATION_LOSS),
    ):
        if value and not cfg.DATASETS.TEST:
            raise ValueError(f"{key} is {value}, but DATASETS.TEST is empty")
    if test.BEST_METRIC and not test.EVAL_PERIOD:
        raise ValueError(
            f"TEST.BEST_METRIC is {test.BEST_METRIC}, but TEST.EVAL_PERIOD is 0, so that the last "
            "weights are the only ones that are evaluated: expected the iterations between "
            "evaluations"
        )
    if cfg.MODEL_EMA.ENABLED and AVERAGED_RESULTS in cfg.DATASETS.TEST:
        raise ValueError(
            f"DATASETS.TEST has a data set named {AVERAGED_RESULTS}, which MODEL_EMA.ENABLED names "
            "its results: register it under another name"
        )
    if test.BEST_METRIC.startswith(f"{AVERAGED_RESULTS}/") and not cfg.MODEL_EMA.ENABLED:
        raise ValueError(
            f"TEST.BEST_METRIC is {test.BEST_METRIC}, a result of averaged weights, but "
            "MODEL_EMA.ENABLED is False"
        )


def _check_crop(cfg: CfgNode) -> None:
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return
    if not CROPS[crop.TYPE].fits(crop.SIZE):
        raise ValueError(
            f"INPUT.CROP.SIZE must be {CROPS[crop.TYPE].text} for INPUT.CROP.TYPE {crop.TYPE}, got "
            f"{crop.SIZE}"
        )
    if crop.TYPE == "absolute_range" and crop.SIZE[0] > crop.SIZE[1]:
        raise ValueError(
            "INPUT.CROP.TYPE is absolute_range: INPUT.CROP.SIZE must be the smallest and the "
            f"largest side, got {crop.SIZE}"
        )


def _check_large_scale_jitter(cfg: CfgNode) -> None:
    jitter, ignored = cfg.INPUT.LSJ, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if cfg.INPUT.CROP.ENABLED:
        raise ValueError(
            "INPUT.LSJ.ENABLED and INPUT.CROP.ENABLED are both True: set one of them to False"
        )
    if jitter.MIN_SCALE > jitter.MAX_SCALE:
        raise ValueError(
            f"INPUT.LSJ.MIN_SCALE must be at most INPUT.LSJ.MAX_SCALE, which is "
            f"{jitter.MAX_SCALE}, got {jitter.MIN_SCALE}"
        )
    if max(jitter.SIZE) * max(jitter.MAX_SCALE, 1) > LARGEST_SIDE:
        raise ValueError(
            f"INPUT.LSJ.SIZE times INPUT.LSJ.MAX_SCALE must be {LARGEST_SIDE} pixels or less, got "
            f"{list(jitter.SIZE)} times {jitter.MAX_SCALE}"
        )
    if meta_architecture(cfg).has_semantic_head and not 0 <= ignored <= LARGEST_LABEL:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE must be from 0 to {LARGEST_LABEL} for "
            f"INPUT.LSJ.ENABLED, which pads label maps with it, got {ignored}"
        )


def _check_point_supervision(cfg: CfgNode) -> None:
    """Check that there is a mask head for annotated points."""
    if not cfg.INPUT.POINT_SUP:
        if cfg.INPUT.SAMPLE_POINTS:
            raise ValueError(
                f"INPUT.SAMPLE_POINTS is {cfg.INPUT.SAMPLE_POINTS}, but INPUT.POINT_SUP is False: "
                "set it to True to train from annotated points"
            )
        return
    if not (cfg.MODEL.MASK_ON and meta_architecture(cfg).has_roi_heads):
        raise ValueError(
            "INPUT.POINT_SUP is True, but the model has no mask head: expected MODEL.MASK_ON True "
            "and an architecture with ROI heads"
        )
    heads, name = (*POINT_MASK_HEADS, *MASK_RCNN_HEADS[1:]), cfg.MODEL.ROI_MASK_HEAD.NAME
    if name not in heads:
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.NAME must be {' or '.join(heads)} for INPUT.POINT_SUP True, got "
            f"{name}"
        )


def _check_stride(cfg: CfgNode) -> None:
    """Check the stride of the semantic logits against that of the features."""
    strides, head = feature_strides(cfg), cfg.MODEL.SEM_SEG_HEAD
    name = semantic_head_name(cfg)
    if strides is None or name not in ("SemSegFPNHead", "DeepLabV3Head", "DeepLabV3PlusHead"):
        return
    used = [strides[feature] for feature in head.IN_FEATURES if feature in strides]
    stride = head.COMMON_STRIDE
    if name == "SemSegFPNHead":
        fits = stride & (stride - 1) == 0 and stride <= min(used)
        expected = f"a power of two, at most {min(used)}, the smallest stride of IN_FEATURES"
    else:
        fits = stride == min(used)
        expected = f"{min(used)}, the stride of the logits"
    if not fits:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE must be {expected} for {name}, got {stride}"
        )
    if name == "DeepLabV3PlusHead" and len(head.PROJECT_CHANNELS) != len(used) - 1:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS must be a list of {len(used) - 1} values, one "
            f"for each of IN_FEATURES but the last, got {head.PROJECT_CHANNELS}"
        )


def _check_crop_of_deeplab(cfg: CfgNode) -> None:
    """Check the crop against the window over which DeepLab's heads average."""
    head, crop = cfg.MODEL.SEM_SEG_HEAD, cfg.INPUT.CROP
    name = semantic_head_name(cfg)
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


def _check_mask_head(cfg: CfgNode) -> None:
    model = cfg.MODEL
    mask_head, point = model.ROI_MASK_HEAD, model.POINT_HEAD
    if mask_head.NAME not in POINT_MASK_HEADS:
        return
    implicit = mask_head.NAME in IMPLICIT_MASK_HEADS
    if mask_head.POINT_HEAD_ON or implicit:
        point_head_num_classes(cfg, model.ROI_HEADS.NUM_CLASSES, "MODEL.ROI_HEADS.NUM_CLASSES")
        start = mask_head.OUTPUT_SIDE_RESOLUTION
        if implicit:
            start = math.isqrt(point.SUBDIVISION_NUM_POINTS)
        side = start << max(point.SUBDIVISION_STEPS, 0)
        if side > LARGEST_MASK:
            raise ValueError(
                f"MODEL.POINT_HEAD.SUBDIVISION_STEPS is {point.SUBDIVISION_STEPS}, which leads "
                f"from {start} to {side} cells a side: expected {LARGEST_MASK} or fewer"
            )
    if mask_head.NAME != "CoarseMaskHead" and mask_head.POOLER_TYPE:
        raise ValueError(
            f"MODEL.ROI_MASK_HEAD.NAME {mask_head.NAME} samples the feature maps itself: "
            f'MODEL.ROI_MASK_HEAD.POOLER_TYPE must be "", got {mask_head.POOLER_TYPE!r}'
        )


def check_test_time_augmentation(cfg: CfgNode) -> None:
    """Refuse settings under TEST.AUG that cannot work.

    Raises:
        ValueError: If they cannot.
    """
    augmentation = cfg.TEST.AUG
    if not augmentation.ENABLED:
        return
    check_rules(cfg, TEST_TIME_AUGMENTATION)
    if cfg.MODEL.KEYPOINT_ON:
        raise ValueError(
            "TEST.AUG.ENABLED and MODEL.KEYPOINT_ON are both True, but there is no test-time "
            "augmentation for keypoints: set one of them to False"
        )
    if model_outputs(cfg) == PANOPTIC:
        raise ValueError(
            "TEST.AUG.ENABLED is True, but there is no test-time augmentation for "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
        )
