"""Table of the values that config keys may have, and of the configs that use the keys.

A key without a rule may have any value of its type. Maxima are far beyond any model that has been
published; without them one wrong number takes all memory of the machine.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_KEYPOINT_HEAD_REGISTRY
from fvcore.common.registry import Registry

from point_rend.config.defaults import FITTING, INHERIT, value_of
from point_rend.config.loading import source_of
from point_rend.config.tasks import meta_architecture
from point_rend.utils.errors import did_you_mean, shortened
from point_rend.utils.pictures import ORDERS
from point_rend.utils.pixel_format import AS_FORMAT, DEPTHS, MOST_BANDS

MOST_CHANNELS = 16_384
MOST_LAYERS = 100
MOST_CLASSES = 100_000
MOST_POINTS = 10_000_000
MOST_CELLS = 512  # of the side of a pooled feature map
LARGEST_DILATION = 512
LARGEST_BATCH = 65_536
MOST_WORKERS = 1024
LARGEST_SEED = 2**32 - 2**16  # NumPy takes 32 bits; each process adds its rank
LARGEST_STRIDE = 64
LARGEST_FLOAT = 1e30  # float32 has 3e38
LARGEST_ANCHOR = 1e6  # pixels


class Rule(NamedTuple):
    """Values that a key may have.

    Attributes:
        text: Completes "KEY must be".
        fits: Returns whether a value is among them; gets values of any type.
        known: Names to suggest for an unknown one.
    """

    text: str
    fits: Callable[[Any], bool]
    known: Callable[[], Collection[str]] = tuple


def number(
    least: float = -math.inf, most: float = math.inf, *, above: bool = False, whole: bool = False
) -> Rule:
    """Return the rule of finite numbers between two bounds; with `above`, more than the least."""
    if not whole and most == math.inf:
        most = LARGEST_FLOAT

    def fits(value: Any) -> bool:
        return (
            isinstance(value, int if whole else (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and max(least, -LARGEST_FLOAT) <= value <= most
            and not (above and value == least)
        )

    if least == -math.inf:
        text = (
            f"at most {most}" if most < LARGEST_FLOAT else "a whole number" if whole else "finite"
        )
    elif most <= LARGEST_FLOAT:
        text = f"above {least}, at most {most}" if above else f"from {least} to {most}"
    else:
        text = f"{least} or more"
    return Rule(text, fits)


def whole(least: float = -math.inf, most: float = math.inf) -> Rule:
    """Return the rule of whole numbers between two bounds."""
    return number(least, most, whole=True)


def one_of(*values: Any) -> Rule:
    """Return the rule of a few values."""
    if all(isinstance(value, str) for value in values):
        *first, last = (value or '""' for value in values)
        text = f"{', '.join(first)} or {last}" if first else last
    else:
        text = f"one of {values}"
    return Rule(text, lambda value: any(type(value) is type(x) and value == x for x in values))


def optional(rule: Rule) -> Rule:
    """Return a rule that also accepts None."""
    return Rule(f"{rule.text}, or None", lambda value: value is None or rule.fits(value))


def list_of(rule: Rule, length: int | None = None, *, least: int = 1) -> Rule:
    """Return the rule of lists and tuples whose items fit a rule."""

    def fits(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or not all(map(rule.fits, value)):
            return False
        return len(value) >= least if length is None else len(value) == length

    count = f"{length} values" if length is not None else "one or more" if least else "values"
    return Rule(f"a list of {count}, each {rule.text}", fits)


def either(first: Rule, second: Rule) -> Rule:
    """Return the rule of values that fit one of two rules."""
    return Rule(
        f"{first.text}, or {second.text}", lambda value: first.fits(value) or second.fits(value)
    )


def registered(registry: Registry, *further: str) -> Rule:
    """Return the rule of the names in a registry."""

    def fits(value: Any) -> bool:
        return isinstance(value, str) and (value in registry or value in further)

    return Rule("a registered name", fits, lambda: [*further, *(name for name, _ in registry)])


NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")

SHARE = number(0, 1)
BELOW_ONE = Rule("from 0 to below 1", lambda x: SHARE.fits(x) and x < 1)
WEIGHT = number(0)  # of a loss
COUNT, POSITIVE_COUNT = whole(0), whole(1)
WHOLE, FINITE, POSITIVE, NOT_NEGATIVE = whole(), number(), number(0, above=True), number(0)
NOT_ZERO = Rule("finite and not 0", lambda x: FINITE.fits(x) and abs(x) > 1 / LARGEST_FLOAT)
CHANNELS = whole(1, MOST_CHANNELS)
LAYERS, SOME_LAYERS = whole(0, MOST_LAYERS), whole(1, MOST_LAYERS)
CLASSES = whole(1, MOST_CLASSES)
SIDE = whole(1, MOST_CELLS)
TEXT = Rule("a text", lambda value: isinstance(value, str))
TEXTS = list_of(TEXT, least=0)
NAMES = list_of(TEXT)
FLAG = Rule("True or False", lambda value: isinstance(value, bool))
NORM = optional(one_of(*NORMS))
POOLER_TYPE = one_of("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
SAMPLING = whole(-math.inf, 64)
BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
BOX_WEIGHTS = list_of(POSITIVE, 4)
PIXELS = list_of(number(0, LARGEST_ANCHOR, above=True))
LEVELS = either(PIXELS, list_of(PIXELS))
THRESHOLDS = list_of(POSITIVE)
LABELS = list_of(one_of(-1, 0, 1))

ALWAYS = {
    "MODEL.META_ARCHITECTURE": registered(META_ARCH_REGISTRY),
    "MODEL.BACKBONE.NAME": registered(BACKBONE_REGISTRY),
    "MODEL.BACKBONE.FREEZE_AT": WHOLE,
    "MODEL.DEVICE": TEXT,
    "MODEL.WEIGHTS": TEXT,
    "MODEL.PIXEL_MEAN": list_of(FINITE),
    "MODEL.PIXEL_STD": list_of(NOT_ZERO),
    "INPUT.FORMAT": Rule("BGR, RGB or L", one_of(*ORDERS).fits),
    "INPUT.CHANNELS": Rule(
        f"from 1 to {MOST_BANDS}, or {AS_FORMAT} for those of INPUT.FORMAT",
        lambda value: value == AS_FORMAT or whole(1, MOST_BANDS).fits(value),
    ),
    "INPUT.BITS": one_of(*DEPTHS),
    "INPUT.MIN_SIZE_TEST": NOT_NEGATIVE,
    "INPUT.MAX_SIZE_TEST": number(1),
    "DATASETS.TRAIN": TEXTS,
    "DATASETS.TEST": TEXTS,
    "DATASETS.PROPOSAL_FILES_TRAIN": TEXTS,
    "DATASETS.PROPOSAL_FILES_TEST": TEXTS,
    "DATALOADER.NUM_WORKERS": whole(0, MOST_WORKERS),
    "TEST.DETECTIONS_PER_IMAGE": WHOLE,
    "TEST.MAX_DETS_PER_IMAGE": WHOLE,
    "OUTPUT_DIR": TEXT,
    "SEED": whole(most=LARGEST_SEED),
    "VIS_PERIOD": WHOLE,
}
TRAINING = {
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR", "WarmupPolyLR"
    ),
    "SOLVER.MAX_ITER": POSITIVE_COUNT,
    "SOLVER.IMS_PER_BATCH": whole(1, LARGEST_BATCH),
    "SOLVER.REFERENCE_WORLD_SIZE": COUNT,
    "SOLVER.CHECKPOINT_PERIOD": POSITIVE_COUNT,
    "SOLVER.BASE_LR": NOT_NEGATIVE,
    "SOLVER.MOMENTUM": SHARE,
    "SOLVER.WEIGHT_DECAY": NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": optional(NOT_NEGATIVE),
    "SOLVER.WEIGHT_DECAY_BIAS": optional(NOT_NEGATIVE),
    "SOLVER.BIAS_LR_FACTOR": optional(NOT_NEGATIVE),
    "SOLVER.WARMUP_FACTOR": NOT_NEGATIVE,
    "SOLVER.WARMUP_ITERS": COUNT,
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "INPUT.MIN_SIZE_TRAIN": Rule("1 pixel or more", list_of(number(1)).fits),
    "INPUT.MAX_SIZE_TRAIN": Rule("1 pixel or more", number(1).fits),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
    "INPUT.CROP.ENABLED": FLAG,
    "INPUT.LSJ.ENABLED": FLAG,
    "INPUT.POINT_SUP": FLAG,
    "DATALOADER.ON_CORRUPT_IMAGE": one_of("stop", "skip"),
    "DATALOADER.SAMPLER_TRAIN": one_of(
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "RandomSubsetTrainingSampler",
        "WeightedTrainingSampler",
        "WeightedCategoryTrainingSampler",
    ),
    "TEST.EVAL_PERIOD": COUNT,
    "TEST.VALIDATION_LOSS": FLAG,
    "TEST.BEST_METRIC": Rule("a metric, such as segm/AP, or empty", lambda x: isinstance(x, str)),
    "SOLVER.PATIENCE": COUNT,
    "SOLVER.OPTIMIZER": one_of("SGD", "ADAMW"),
    "SOLVER.LAYER_DECAY": number(0, 1, above=True),
    "SOLVER.NO_WEIGHT_DECAY": TEXTS,
    "SOLVER.ACCUMULATION_STEPS": whole(1, LARGEST_BATCH),
    "MODEL_EMA.ENABLED": FLAG,
    "MODEL_EMA.DECAY": BELOW_ONE,
    "LOGGING.WANDB": FLAG,
    "LOGGING.MLFLOW": FLAG,
    "LOGGING.PROJECT": TEXT,
    "LOGGING.NAME": Rule("a name, or empty", lambda x: isinstance(x, str)),
    "LOGGING.PICTURES": COUNT,
}
ROI_HEADS = {
    "MODEL.ROI_HEADS.NAME": registered(ROI_HEADS_REGISTRY),
    # PrecomputedProposals stands for no generator.
    "MODEL.PROPOSAL_GENERATOR.NAME": registered(
        PROPOSAL_GENERATOR_REGISTRY, "PrecomputedProposals"
    ),
    "MODEL.ROI_HEADS.NUM_CLASSES": CLASSES,
    "MODEL.ROI_HEADS.IN_FEATURES": NAMES,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": THRESHOLDS,
    "MODEL.ROI_HEADS.IOU_LABELS": LABELS,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": POSITIVE_COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": FINITE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": SIDE,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": SAMPLING,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": POOLER_TYPE,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": BOX_LOSS,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": WEIGHT,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": NOT_NEGATIVE,
}
BOX_REGRESSION = {"MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": BOX_WEIGHTS}
CASCADE = {
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": list_of(BOX_WEIGHTS),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": list_of(number(0, 1, above=True)),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": Rule(
        "True, because a cascade refines each box before its class is known", lambda x: x is True
    ),
}
BOX_HEAD = {"MODEL.ROI_BOX_HEAD.NAME": registered(ROI_BOX_HEAD_REGISTRY)}
FAST_RCNN_HEAD = {
    "MODEL.ROI_BOX_HEAD.NUM_CONV": LAYERS,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": CHANNELS,
    "MODEL.ROI_BOX_HEAD.NUM_FC": LAYERS,
    "MODEL.ROI_BOX_HEAD.FC_DIM": CHANNELS,
    "MODEL.ROI_BOX_HEAD.NORM": NORM,
}
FEDERATED = {
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": one_of(True),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": CLASSES,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": FINITE,
}
RPN = {
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": FINITE,
    "MODEL.RPN.HEAD_NAME": registered(RPN_HEAD_REGISTRY),
    "MODEL.RPN.IN_FEATURES": NAMES,
    "MODEL.RPN.BOUNDARY_THRESH": FINITE,
    "MODEL.RPN.IOU_THRESHOLDS": THRESHOLDS,
    "MODEL.RPN.IOU_LABELS": LABELS,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": POSITIVE_COUNT,
    "MODEL.RPN.POSITIVE_FRACTION": SHARE,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": BOX_LOSS,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": WEIGHT,
    "MODEL.RPN.BBOX_REG_WEIGHTS": BOX_WEIGHTS,
    "MODEL.RPN.SMOOTH_L1_BETA": NOT_NEGATIVE,
    "MODEL.RPN.LOSS_WEIGHT": WEIGHT,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.NMS_THRESH": NOT_NEGATIVE,
    "MODEL.RPN.CONV_DIMS": list_of(
        Rule(f"1 to {MOST_CHANNELS}, or -1", lambda x: CHANNELS.fits(x) or one_of(-1).fits(x)),
        least=0,
    ),
}
ANCHORS = {
    "MODEL.ANCHOR_GENERATOR.NAME": registered(ANCHOR_GENERATOR_REGISTRY),
    "MODEL.ANCHOR_GENERATOR.SIZES": LEVELS,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": LEVELS,
    "MODEL.ANCHOR_GENERATOR.OFFSET": Rule(
        "0 or more, and less than 1", lambda x: SHARE.fits(x) and x < 1
    ),
}
MASK_HEAD = {
    # CoarseMaskHead is the oldest name of PointRendMaskHead, under which PointRendROIHeads builds.
    "MODEL.ROI_MASK_HEAD.NAME": registered(ROI_MASK_HEAD_REGISTRY, "CoarseMaskHead"),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": SIDE,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": SAMPLING,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": CHANNELS,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": FLAG,
}
MASK_RCNN_HEAD = {
    "MODEL.ROI_MASK_HEAD.NUM_CONV": LAYERS,
    "MODEL.ROI_MASK_HEAD.NORM": NORM,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": POOLER_TYPE,
}
COARSE_MASK_HEAD = {
    "MODEL.ROI_MASK_HEAD.IN_FEATURES": NAMES,
    "MODEL.ROI_MASK_HEAD.FC_DIM": CHANNELS,
    "MODEL.ROI_MASK_HEAD.NUM_FC": SOME_LAYERS,
}
POINT_MASK_HEAD = {"MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION": SIDE}
MASK_TRAINING = {"INPUT.MASK_FORMAT": one_of("bitmask", "polygon")}
IMPLICIT = {
    "MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED": FLAG,
    "MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED": FLAG,
    "MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER": WEIGHT,
}
POINT_HEAD = {
    "NAME": TEXT,
    "NUM_CLASSES": Rule(
        f"1 to {MOST_CLASSES}, or {INHERIT}", lambda x: CLASSES.fits(x) or one_of(INHERIT).fits(x)
    ),
    "IN_FEATURES": NAMES,
    "TRAIN_NUM_POINTS": whole(1, MOST_POINTS),
    "OVERSAMPLE_RATIO": whole(1, 1000),
    "IMPORTANCE_SAMPLE_RATIO": SHARE,
    "SUBDIVISION_STEPS": whole(FITTING, 12),
    "SUBDIVISION_NUM_POINTS": whole(1, MOST_POINTS),
    "SUBDIVISION_BOXES_PER_CHUNK": optional(COUNT),
    "SUBDIVISION_CELLS_PER_PIXEL": NOT_NEGATIVE,
    "FC_DIM": CHANNELS,
    "NUM_FC": LAYERS,
    "CLS_AGNOSTIC_MASK": FLAG,
    "COARSE_PRED_EACH_LAYER": FLAG,
    "TRAIN_ON_REGULAR_GRID": FLAG,
}
SEM_SEG_HEAD = {
    "MODEL.SEM_SEG_HEAD.NAME": registered(SEM_SEG_HEADS_REGISTRY),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": NAMES,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": whole(-(2**31), 2**31 - 1),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": CHANNELS,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": whole(1, LARGEST_STRIDE),
    "MODEL.SEM_SEG_HEAD.NORM": NORM,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": WEIGHT,
}
COARSE_SEM_SEG_HEAD = registered(SEM_SEG_HEADS_REGISTRY)
DEEPLAB = {
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": one_of("hard_pixel_mining", "cross_entropy"),
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": CHANNELS,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": list_of(whole(1, LARGEST_DILATION), 3),
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": SHARE,
}
DEEPLAB_PLUS = {"MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": list_of(CHANNELS)}
PANOPTIC = {
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": WEIGHT,
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": FINITE,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": FINITE,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": FINITE,
}
RESNET = {
    "MODEL.RESNETS.DEPTH": one_of(18, 34, 50, 101, 152),
    "MODEL.RESNETS.OUT_FEATURES": list_of(one_of("stem", "res2", "res3", "res4", "res5")),
    "MODEL.RESNETS.NUM_GROUPS": whole(1, 1024),
    "MODEL.RESNETS.WIDTH_PER_GROUP": whole(1, 4096),
    "MODEL.RESNETS.NORM": NORM,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": whole(1, 4096),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": whole(1, 4096),
    "MODEL.RESNETS.RES5_DILATION": one_of(1, 2),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": list_of(FLAG, 4),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": POSITIVE_COUNT,
}
DEEPLAB_RESNET = RESNET | {
    "MODEL.RESNETS.DEPTH": one_of(50, 101, 152),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": whole(2, 4096),
    "MODEL.RESNETS.RES4_DILATION": one_of(1, 2),
    "MODEL.RESNETS.RES5_DILATION": one_of(1, 2, 4),
    "MODEL.RESNETS.RES5_MULTI_GRID": list_of(whole(1, LARGEST_DILATION), 3),
    "MODEL.RESNETS.STEM_TYPE": one_of("deeplab", "basic"),
}
TIMM = {
    "MODEL.TIMM.NAME": TEXT,
    "MODEL.TIMM.NORM": one_of("BN", "FrozenBN", "SyncBN"),
    "MODEL.TIMM.DROP_PATH_RATE": BELOW_ONE,
}
BLOCKS = whole(0, MOST_LAYERS - 1)
VIT = {
    "MODEL.VIT.IMAGE_SIZE": whole(1, 16_384),
    "MODEL.VIT.EMBED_DIM": whole(4, MOST_CHANNELS),  # the pyramid divides it by 4
    "MODEL.VIT.DEPTH": SOME_LAYERS,
    "MODEL.VIT.NUM_HEADS": whole(1, 1024),
    "MODEL.VIT.GLOBAL_BLOCKS": list_of(BLOCKS, least=0),
    "MODEL.VIT.DROP_PATH_RATE": BELOW_ONE,
}
SWIN = {
    "MODEL.SWIN.EMBED_DIM": whole(1, 4096),
    "MODEL.SWIN.DEPTHS": list_of(SOME_LAYERS, 4),
    "MODEL.SWIN.NUM_HEADS": list_of(whole(1, 1024), 4),
    "MODEL.SWIN.WINDOW_SIZE": whole(2, 64),
    "MODEL.SWIN.DROP_PATH_RATE": BELOW_ONE,
}
MVIT = {
    "MODEL.MVIT.EMBED_DIM": whole(1, 4096),
    "MODEL.MVIT.LAST_BLOCKS": list_of(BLOCKS, 4),
    "MODEL.MVIT.DROP_PATH_RATE": BELOW_ONE,
}
FPN = {
    "MODEL.FPN.IN_FEATURES": NAMES,
    "MODEL.FPN.OUT_CHANNELS": CHANNELS,
    "MODEL.FPN.NORM": NORM,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
}
RETINANET = {
    "MODEL.RETINANET.NUM_CLASSES": CLASSES,
    "MODEL.RETINANET.IN_FEATURES": NAMES,
    "MODEL.RETINANET.NUM_CONVS": LAYERS,
    "MODEL.RETINANET.IOU_THRESHOLDS": THRESHOLDS,
    "MODEL.RETINANET.IOU_LABELS": LABELS,
    "MODEL.RETINANET.PRIOR_PROB": Rule(
        "above 0 and below 1", lambda x: SHARE.fits(x) and 0 < x < 1
    ),
    "MODEL.RETINANET.SCORE_THRESH_TEST": FINITE,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": POSITIVE_COUNT,
    "MODEL.RETINANET.NMS_THRESH_TEST": NOT_NEGATIVE,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": BOX_WEIGHTS,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": NOT_NEGATIVE,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": FINITE,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": NOT_NEGATIVE,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": BOX_LOSS,
    "MODEL.RETINANET.NORM": NORM,
}
KEYPOINTS = {
    "MODEL.ROI_KEYPOINT_HEAD.NAME": registered(ROI_KEYPOINT_HEAD_REGISTRY),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": SIDE,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": SAMPLING,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": POOLER_TYPE,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": list_of(CHANNELS),
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": whole(1, 10_000),
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": COUNT,
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": WEIGHT,
    "TEST.KEYPOINT_OKS_SIGMAS": list_of(POSITIVE, least=0),
}
CROPS = {
    "absolute": list_of(POSITIVE_COUNT, 2),
    "absolute_range": list_of(POSITIVE_COUNT, 2),
    "relative": list_of(number(0, 1, above=True), 2),
    "relative_range": list_of(number(0, 1, above=True), 2),
}
LARGE_SCALE_JITTER = {
    "INPUT.LSJ.MIN_SCALE": number(0, 1000, above=True),
    "INPUT.LSJ.MAX_SCALE": number(0, 1000, above=True),
    "INPUT.LSJ.SIZE": list_of(POSITIVE_COUNT, 2),
}
CLIPPING = {
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Rule(
        "above 0, or inf", lambda x: POSITIVE.fits(x) or x == math.inf
    ),
}
SCHEDULES = {
    "WarmupMultiStepLR": {
        "SOLVER.STEPS": list_of(POSITIVE_COUNT, least=0),
        "SOLVER.GAMMA": NOT_NEGATIVE,
    },
    "WarmupCosineLR": {"SOLVER.BASE_LR": POSITIVE, "SOLVER.BASE_LR_END": NOT_NEGATIVE},
    "WarmupStepWithFixedGammaLR": {
        "SOLVER.NUM_DECAYS": whole(1, 1000),
        "SOLVER.GAMMA": NOT_NEGATIVE,
    },
    "WarmupPolyLR": {
        "SOLVER.BASE_LR": POSITIVE,
        "SOLVER.BASE_LR_END": NOT_NEGATIVE,
        "SOLVER.POLY_LR_POWER": NOT_NEGATIVE,
        "SOLVER.POLY_LR_CONSTANT_ENDING": SHARE,
        "SOLVER.WARMUP_FACTOR": SHARE,
    },
}
RESULT = Rule(
    "[task, metric, value, tolerance], such as ['segm', 'AP', 35.0, 0.5]",
    lambda x: (
        isinstance(x, (list, tuple))
        and len(x) == 4
        and all(map(TEXT.fits, x[:2]))
        and FINITE.fits(x[2])
        and NOT_NEGATIVE.fits(x[3])
    ),
)
REPEATED = {"DATALOADER.REPEAT_THRESHOLD": number(0, 1000)}
PROPOSALS = {
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": POSITIVE_COUNT,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": POSITIVE_COUNT,
}
PRECISION = {"SOLVER.AMP.DTYPE": one_of("float16", "bfloat16")}
PRECISE_BN = {"TEST.PRECISE_BN.NUM_ITER": POSITIVE_COUNT}
TEST_TIME_AUGMENTATION = {
    "TEST.AUG.MIN_SIZES": list_of(whole(1)),
    "TEST.AUG.MAX_SIZE": whole(32),  # an image of one pixel cannot be flipped
}

# Parts of Detectron2 and of this package that read keys as their rules describe them.
RESNET_FPN = ("build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone")
RESNETS = ("build_resnet_backbone", *RESNET_FPN)
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}  # of a backbone's feature maps
DEEPLAB_RESNETS = ("build_resnet_deeplab_backbone",)
TIMM_FPN = "build_timm_fpn_backbone"
VITDET, SWIN_FPN = "build_vitdet_backbone", "build_swin_fpn_backbone"
MVIT_FPN = "build_mvit_fpn_backbone"
# Ours, all with a pyramid, and the rules of the keys that they alone read.
OWN = {TIMM_FPN: TIMM, VITDET: VIT, SWIN_FPN: SWIN, MVIT_FPN: MVIT}
BOX_HEADS = ("FastRCNNConvFCHead",)
CASCADE_ROI_HEADS = ("CascadeROIHeads", "PointRendCascadeROIHeads")
PYRAMID_ROI_HEADS = ("StandardROIHeads", "PointRendROIHeads", *CASCADE_ROI_HEADS)
# Mask heads that do their own pooling. CoarseMaskHead is the oldest name of the first one;
# PointRendROIHeads and PointRendCascadeROIHeads still build it under that name.
IMPLICIT_MASK_HEADS = ("ImplicitPointRendMaskHead", "ImplicitPointRendPointSupHead")
POINT_MASK_HEADS = ("PointRendMaskHead", *IMPLICIT_MASK_HEADS, "CoarseMaskHead")
MASK_RCNN_HEADS = ("MaskRCNNConvUpsampleHead", "MaskRCNNConvUpsamplePointSupHead")


def semantic_head_name(cfg: CfgNode) -> str:
    """Return the name of the semantic head, or of the one whose coarse logits PointRend refines."""
    name: str = cfg.MODEL.SEM_SEG_HEAD.NAME
    if name == "PointRendSemSegHead":
        own = cfg.MODEL.SEM_SEG_HEAD.POINT_HEAD
        name = (own if own.NAME else cfg.MODEL.POINT_HEAD).COARSE_SEM_SEG_HEAD_NAME
    return name


def rules_in_use(cfg: CfgNode, *, training: bool) -> dict[str, Rule]:
    """Return the rules of the keys that a config uses.

    Rules of names that decide on other rules come first, so check them in order.
    """
    model, solver = cfg.MODEL, cfg.SOLVER
    task = meta_architecture(cfg)
    rules = dict(ALWAYS)
    if model.BACKBONE.NAME in RESNETS:
        rules |= RESNET
    if model.BACKBONE.NAME in (*RESNET_FPN, *OWN):
        rules |= FPN
    rules |= OWN.get(model.BACKBONE.NAME, {})
    if model.BACKBONE.NAME in DEEPLAB_RESNETS:
        rules |= DEEPLAB_RESNET
    if task.has_roi_heads:
        rules |= _roi_rules(cfg, training=training)
    if model.META_ARCHITECTURE == "RetinaNet":
        rules |= RETINANET | ANCHORS
    if task.has_semantic_head:
        rules |= _semantic_rules(cfg)
    if task.has_semantic_head and task.has_roi_heads:
        rules |= PANOPTIC
    if training:
        rules |= TRAINING
        rules |= SCHEDULES.get(solver.LR_SCHEDULER_NAME, {})
        if cfg.INPUT.CROP.ENABLED:
            rules["INPUT.CROP.TYPE"] = one_of(*CROPS)
            rules["INPUT.CROP.AFTER_RESIZE"] = FLAG
            rules["INPUT.CROP.SINGLE_CATEGORY_MAX_AREA"] = NOT_NEGATIVE
        if cfg.INPUT.LSJ.ENABLED:
            rules |= LARGE_SCALE_JITTER
        if cfg.INPUT.POINT_SUP:
            rules["INPUT.SAMPLE_POINTS"] = whole(0, MOST_POINTS)
        if solver.CLIP_GRADIENTS.ENABLED:
            rules |= CLIPPING
        if "RepeatFactor" in str(cfg.DATALOADER.SAMPLER_TRAIN):
            rules |= REPEATED
        if cfg.TEST.PRECISE_BN.ENABLED:
            rules |= PRECISE_BN
    rules["TEST.EXPECTED_RESULTS"] = list_of(RESULT, least=0)
    if cfg.INPUT.CROP.ENABLED:  # DeepLab reads it in tests, too
        rules["INPUT.CROP.SIZE"] = list_of(POSITIVE, 2)
    if training or cfg.TEST.MIXED_PRECISION:
        rules |= PRECISION
    if model.LOAD_PROPOSALS:
        rules |= PROPOSALS
    return rules


def _roi_rules(cfg: CfgNode, *, training: bool) -> dict[str, Rule]:
    model = cfg.MODEL
    rules = dict(ROI_HEADS)
    if model.PROPOSAL_GENERATOR.NAME == "RPN":
        rules |= RPN | ANCHORS
    if model.ROI_HEADS.NAME in PYRAMID_ROI_HEADS:
        rules |= BOX_HEAD
        if model.ROI_BOX_HEAD.NAME in BOX_HEADS:
            rules |= FAST_RCNN_HEAD
    rules |= CASCADE if model.ROI_HEADS.NAME in CASCADE_ROI_HEADS else BOX_REGRESSION
    if model.ROI_BOX_HEAD.USE_FED_LOSS:
        rules |= FEDERATED
    if model.KEYPOINT_ON:
        rules |= KEYPOINTS
    if not model.MASK_ON:
        return rules
    rules |= MASK_HEAD
    if training:
        rules |= MASK_TRAINING
    name = model.ROI_MASK_HEAD.NAME
    if name in MASK_RCNN_HEADS:
        rules |= MASK_RCNN_HEAD
    if name in POINT_MASK_HEADS:
        rules |= COARSE_MASK_HEAD
        implicit = name in IMPLICIT_MASK_HEADS
        rules |= IMPLICIT if implicit else POINT_MASK_HEAD
        if implicit or model.ROI_MASK_HEAD.POINT_HEAD_ON:
            rules |= {f"MODEL.POINT_HEAD.{key}": rule for key, rule in POINT_HEAD.items()}
    return rules


def _semantic_rules(cfg: CfgNode) -> dict[str, Rule]:
    head = cfg.MODEL.SEM_SEG_HEAD
    rules = dict(SEM_SEG_HEAD)
    if head.NAME == "PointRendSemSegHead":
        section = "MODEL.SEM_SEG_HEAD.POINT_HEAD" if head.POINT_HEAD.NAME else "MODEL.POINT_HEAD"
        rules |= {f"{section}.{key}": rule for key, rule in POINT_HEAD.items()}
        rules[f"{section}.COARSE_SEM_SEG_HEAD_NAME"] = COARSE_SEM_SEG_HEAD
    name = str(semantic_head_name(cfg))
    if name.startswith("DeepLab"):
        rules |= DEEPLAB
    if name == "DeepLabV3PlusHead":
        rules |= DEEPLAB_PLUS
    return rules


def check_rules(cfg: CfgNode, rules: Mapping[str, Rule]) -> None:
    """Refuse values that do not fit their rules.

    Raises:
        ValueError: If a value does not; the message names the key and the values it may have.
    """
    for key, rule in rules.items():
        value = value_of(cfg, key)
        if not rule.fits(value):
            hint = did_you_mean(value, rule.known()) if isinstance(value, str) else ""
            got = shortened(repr(value))
            raise ValueError(f"{source_of(cfg, key)}{key} must be {rule.text}, got {got}{hint}")
