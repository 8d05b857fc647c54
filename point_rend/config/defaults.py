"""Every config key that this package adds, with its default."""

import copy
import functools
import operator
from typing import Any

from detectron2.config import CfgNode

from point_rend.utils.pixel_format import AS_FORMAT, EIGHT_BITS, PixelFormat

INHERIT = -1  # class count of the head that has the point head
OF_DATASET = -1  # limit of COCO or LVIS
FITTING = -1  # number of steps that leads to the size of the image
# Those of the stock project, with its defaults but for the number of classes.
STOCK_DEFAULTS: dict[str, Any] = {
    # Largest share of a random crop that one category may fill, 0 to 1; 1 accepts every crop.
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
    # Registered name of the point head: StandardPointHead, ResidualPointHead, ImplicitPointHead, …
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
    # Doublings of the mask's side at inference; in semantic segmentation -1 takes the number that
    # leads from the coarse stride to the size of the image.
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 5,
    # Points that one subdivision step predicts at most (N of the paper's inference).
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 28 * 28,
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
    # Whether the implicit point head sees the Fourier encoding of a point's position in its box.
    "MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED": True,
    # Weight of the mean square of the predicted parameters in the loss.
    "MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER": 1e-5,
}
# Those that only this package reads.
OWN_DEFAULTS: dict[str, Any] = {
    # Number of channels of an image; -1 follows INPUT.FORMAT. Another number than that of
    # INPUT.FORMAT takes all channels of a file in their order, with a MODEL.PIXEL_MEAN for each.
    "INPUT.CHANNELS": AS_FORMAT,
    # Bits of an integer in an image: 8, 10, 12, 14 or 16. The largest one, 2^BITS - 1, becomes 255,
    # so that MODEL.PIXEL_MEAN and PIXEL_STD are on the scale from 0 to 255 for any number of bits.
    "INPUT.BITS": EIGHT_BITS,
    # Whether the crops of instance and panoptic models are taken from resized images, as those of
    # semantic models always are, or from images as they are, as in Detectron2.
    "INPUT.CROP.AFTER_RESIZE": False,
    # Large-scale jitter of training images: they are resized to fit into a random multiple of SIZE,
    # then cut or padded to SIZE. It replaces MIN_SIZE_TRAIN, MAX_SIZE_TRAIN and CROP.
    "INPUT.LSJ.ENABLED": False,
    # Smallest and largest multiple.
    "INPUT.LSJ.MIN_SCALE": 0.1,
    "INPUT.LSJ.MAX_SCALE": 2.0,
    # Height and width of the result in pixels.
    "INPUT.LSJ.SIZE": [1024, 1024],
    # Whether objects are trained by annotated points ("point_coords", "point_labels"), not masks.
    "INPUT.POINT_SUP": False,
    # Points drawn from those of an object each time it is seen; 0 takes all.
    "INPUT.SAMPLE_POINTS": 0,
    # Whether the training points are a fixed regular grid instead (Table 4, "regular grid").
    "MODEL.POINT_HEAD.TRAIN_ON_REGULAR_GRID": False,
    # Boxes whose masks are rendered at a time, which bounds the memory; 0 takes all of an image,
    # None takes 64 on a CPU, and on a GPU 256, which need 0.8 GiB.
    "MODEL.POINT_HEAD.SUBDIVISION_BOXES_PER_CHUNK": None,
    # Cells per pixel of a box's longer side, in the network's input, beyond which its mask is only
    # interpolated, so that small boxes need fewer points; 0 computes all steps for every box.
    "MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL": 0.0,
    # Reaction of a training to an image that cannot be read: "stop" ends it with the file's name,
    # "skip" takes another image instead, with a counted warning.
    "DATALOADER.ON_CORRUPT_IMAGE": "stop",
    # Whether an evaluation includes boundary metrics: boundary AP of instances, boundary mIoU of
    # label maps.
    "TEST.BOUNDARY_METRICS": False,
    # Results with the highest scores that count for AP: of an image and class in COCO, of an image
    # in LVIS; -1 takes their limits, 100 and 300. Raise TEST.DETECTIONS_PER_IMAGE with it.
    "TEST.MAX_DETS_PER_IMAGE": OF_DATASET,
    # Whether an evaluation computes in SOLVER.AMP.DTYPE; coordinates and sampling stay in float32.
    "TEST.MIXED_PRECISION": False,
    # Whether each evaluation also computes the losses on the test sets, at points that are the same
    # each time, so that the curves compare.
    "TEST.VALIDATION_LOSS": False,
    # Metric of the best checkpoint, model_best.pth, by its name in metrics.json, such as segm/AP,
    # boundary/AP or validation/total_loss, of which a smaller value is better; "" keeps none.
    "TEST.BEST_METRIC": "",
    # Evaluations without a better TEST.BEST_METRIC after which the training ends; 0: never.
    "SOLVER.PATIENCE": 0,
    # Batches whose gradients make one update; SOLVER.IMS_PER_BATCH counts the images of one batch,
    # SOLVER.MAX_ITER the updates.
    "SOLVER.ACCUMULATION_STEPS": 1,
    # Whether a moving average of the weights is kept, evaluated and saved as well.
    "MODEL_EMA.ENABLED": False,
    # Share of the average that one update keeps, 0 to below 1.
    "MODEL_EMA.DECAY": 0.999,
    # Whether the run is also recorded by Weights & Biases, by MLflow. Their own environment
    # variables say where and how (WANDB_MODE=offline, MLFLOW_TRACKING_URI).
    "LOGGING.WANDB": False,
    "LOGGING.MLFLOW": False,
    # Project (of MLflow: experiment) and name of the run; "" takes the name of OUTPUT_DIR.
    "LOGGING.PROJECT": "point_rend",
    "LOGGING.NAME": "",
    # Validation images whose predictions are recorded as pictures after each evaluation.
    "LOGGING.PICTURES": 4,
    # Backbone of build_timm_fpn_backbone: a model of timm, such as resnet18 or convnext_tiny. Its
    # pretrained weights are MODEL.WEIGHTS timm://NAME, or the path of their file.
    "MODEL.TIMM.NAME": "",
    # Its batch normalization: BN as it is, FrozenBN constant, SyncBN with statistics of all GPUs.
    "MODEL.TIMM.NORM": "BN",
    # Rate of stochastic depth of its last block, 0 to 1.
    "MODEL.TIMM.DROP_PATH_RATE": 0.0,
    # ViTDet's backbone (build_vitdet_backbone). Batches are padded to squares of this side, in
    # pixels, a multiple of 32.
    "MODEL.VIT.IMAGE_SIZE": 1024,
    # Width, number of blocks, and heads of each; those of ViT-B.
    "MODEL.VIT.EMBED_DIM": 768,
    "MODEL.VIT.DEPTH": 12,
    "MODEL.VIT.NUM_HEADS": 12,
    # Blocks with attention over the whole image, counted from 0; the others have windows.
    "MODEL.VIT.GLOBAL_BLOCKS": [2, 5, 8, 11],
    "MODEL.VIT.DROP_PATH_RATE": 0.1,
    # Swin transformer (build_swin_fpn_backbone): width of its first stage, blocks and heads of
    # each, side of its windows in cells; those of Swin-T.
    "MODEL.SWIN.EMBED_DIM": 96,
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
    "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],
    "MODEL.SWIN.WINDOW_SIZE": 7,
    "MODEL.SWIN.DROP_PATH_RATE": 0.2,
    # MViTv2 (build_mvit_fpn_backbone): width of its first stage, and the last block of each,
    # counted from 0; those of MViTv2-T.
    "MODEL.MVIT.EMBED_DIM": 96,
    "MODEL.MVIT.LAST_BLOCKS": [0, 2, 7, 9],
    "MODEL.MVIT.DROP_PATH_RATE": 0.2,
    # SGD with SOLVER.MOMENTUM, or ADAMW with betas of 0.9 and 0.999.
    "SOLVER.OPTIMIZER": "SGD",
    # Factor by which the learning rate falls from one block of MODEL.VIT to the one below it.
    "SOLVER.LAYER_DECAY": 1.0,
    # Last parts of the names of parameters without weight decay, such as pos_embed.
    "SOLVER.NO_WEIGHT_DECAY": (),
    # Type of the computations with SOLVER.AMP.ENABLED and TEST.MIXED_PRECISION: float16 (training
    # scales the loss) or bfloat16.
    "SOLVER.AMP.DTYPE": "float16",
}
# Those of Detectron2's DeepLab project, with its defaults. Only its heads, its backbone and its
# schedule read them.
DEEPLAB_DEFAULTS: dict[str, Any] = {
    # Exponent of the WarmupPolyLR schedule.
    "SOLVER.POLY_LR_POWER": 0.9,
    # Share of BASE_LR below which WarmupPolyLR does not fall, 0 to 1. mmsegmentation ends the
    # schedule otherwise: it scales the curve to the rate that is here SOLVER.BASE_LR_END.
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    # Loss of a DeepLab head: hard_pixel_mining (its hardest fifth of the pixels) or cross_entropy.
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "hard_pixel_mining",
    # Not read by Detectron2's DeepLabV3+, whose decoder takes SEM_SEG_HEAD.IN_FEATURES.
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
    # Dilation of res4; 2 keeps its stride at 8 and requires RES5_DILATION 4.
    "MODEL.RESNETS.RES4_DILATION": 1,
    # Factors of RES5_DILATION in the three blocks of res5.
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
    # Stem of build_resnet_deeplab_backbone: deeplab (three 3x3 convolutions) or basic (one 7x7).
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
}
STOCK_POINT_HEADS = ("ImplicitPointHead", "StandardPointHead")
# A point head for the semantic head alone, for models that have two. Its keys are those of
# MODEL.POINT_HEAD; without a NAME it does not exist, and the semantic head takes MODEL.POINT_HEAD.
OWN_DEFAULTS |= {
    key.replace("MODEL.", "MODEL.SEM_SEG_HEAD."): default
    for key, default in (STOCK_DEFAULTS | OWN_DEFAULTS).items()
    if key.startswith("MODEL.POINT_HEAD.")
} | {"MODEL.SEM_SEG_HEAD.POINT_HEAD.NAME": ""}
DEFAULTS = STOCK_DEFAULTS | OWN_DEFAULTS | DEEPLAB_DEFAULTS


def add_pointrend_config(cfg: CfgNode) -> None:
    """Add every PointRend key that `cfg` lacks; values that are already there stay.

    Call it before merging a PointRend YAML file: a config accepts only keys that it has.

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


def with_defaults(cfg: CfgNode) -> CfgNode:
    """Return a config with every PointRend key: itself if it lacks none, else a copy.

    Configs of the stock project lack some; those of programs that accept any key in a YAML file
    have only the keys of the file.
    """
    try:
        for key in DEFAULTS:
            value_of(cfg, key)
    except KeyError:
        cfg = cfg.clone()
        cfg.defrost()
        add_pointrend_config(cfg)
    return cfg


def value_of(cfg: CfgNode, key: str) -> Any:
    """Look up a dotted key."""
    return functools.reduce(operator.getitem, key.split("."), cfg)


def pixel_format(cfg: CfgNode) -> PixelFormat:
    """Return the pixels that a model expects; a config of the stock project has 8-bit ones."""
    section = cfg.INPUT
    return PixelFormat(
        section.FORMAT, section.get("CHANNELS", AS_FORMAT), section.get("BITS", EIGHT_BITS)
    )


def point_head_num_classes(cfg: CfgNode, inherited: int, inherited_key: str) -> int:
    """Return the class count of the point head, which follows the head that uses it.

    Args:
        cfg: A config with MODEL.POINT_HEAD.
        inherited: Class count of the head that uses the point head.
        inherited_key: Config key of that count.

    Returns:
        The common count.

    Raises:
        ValueError: If MODEL.POINT_HEAD.NUM_CLASSES is set and differs.
    """
    own = cfg.MODEL.POINT_HEAD.NUM_CLASSES
    if own not in (INHERIT, inherited):
        raise ValueError(
            f"MODEL.POINT_HEAD.NUM_CLASSES is {own}, but {inherited_key} is {inherited}: leave the "
            f"former at {INHERIT} (it then follows the latter) or make them equal"
        )
    return inherited


def semantic_point_head_section(cfg: CfgNode) -> str:
    """Return the section of a finished config that describes the semantic point head."""
    own = cfg.MODEL.SEM_SEG_HEAD.POINT_HEAD.NAME
    return "MODEL.SEM_SEG_HEAD.POINT_HEAD" if own else "MODEL.POINT_HEAD"


def with_semantic_point_head(cfg: CfgNode) -> CfgNode:
    """Return a config whose MODEL.POINT_HEAD is that of the semantic head: itself or a copy.

    That is MODEL.SEM_SEG_HEAD.POINT_HEAD if it has a NAME.
    """
    own = cfg.MODEL.SEM_SEG_HEAD.get("POINT_HEAD")
    if own is not None and own.NAME:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.POINT_HEAD = own.clone()
    return cfg


def explicit_point_head(cfg: CfgNode, section: str) -> CfgNode:
    """Write into MODEL.POINT_HEAD what follows from other keys, which the stock project ignores.

    Args:
        cfg: A config with MODEL.POINT_HEAD, which is not changed.
        section: Section below MODEL of the head that has the point head: ROI_HEADS or SEM_SEG_HEAD.

    Returns:
        A copy, not frozen.
    """
    semantic = section == "SEM_SEG_HEAD"
    cfg = (with_semantic_point_head(cfg) if semantic else cfg).clone()
    cfg.defrost()
    point = cfg.MODEL.POINT_HEAD
    if point.NUM_CLASSES == INHERIT:
        point.NUM_CLASSES = cfg.MODEL[section].NUM_CLASSES
    if semantic and point.SUBDIVISION_STEPS == FITTING:
        point.SUBDIVISION_STEPS = cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE.bit_length() - 1
    return cfg
