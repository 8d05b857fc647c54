"""The configs of semantic and panoptic segmentation against the published recipes."""

import math
import os
from functools import cache

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage

from point_rend import add_pointrend_config, get_config_file, load_config
from point_rend.config.checks import check_config
from point_rend.data.datasets.cityscapes_panoptic import register_cityscapes_panoptic
from point_rend.semantic_seg import coarse_logits
from point_rend.solver import build_lr_scheduler
from tests.config.test_published_configs import (
    COCO,
    NARROW,
    OTHER_BACKBONES,
    differing_keys,
    flat,
)
from tests.runs import without_finite_gradient
from tests.tiny_datasets import REPOSITORY, process_state_restored

CONFIGS = REPOSITORY / "configs"
FOLDERS = ("SemanticSegmentation", "PanopticSegmentation")
LEAVES = {
    path.stem: path
    for folder in FOLDERS
    for path in sorted((CONFIGS / folder).glob("*.yaml"))
    if not path.name.startswith("Base-") and not any(x in path.name for x in OTHER_BACKBONES)
}
PANOPTIC = "pointrend_panoptic_R_50_FPN_1x_coco"

# --- models -------------------------------------------------------------------------------------

R50 = {
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.PIXEL_MEAN": [103.530, 116.280, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "INPUT.FORMAT": "BGR",
}
R101 = R50 | {
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
    "MODEL.RESNETS.DEPTH": 101,
}
SEMANTIC_FPN = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 128,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
}
P3_P5 = {
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8,
}
WITHOUT_P2 = {
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
}
DEEPLAB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.WEIGHTS": "detectron2://DeepLab/R-103.pkl",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 128,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
    "MODEL.RESNETS.OUT_FEATURES": ["res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3Head",
    "MODEL.SEM_SEG_HEAD.NORM": "SyncBN",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res5"],
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 256,
    "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT": 0.1,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.LOSS_TYPE": "hard_pixel_mining",
}
OS16 = DEEPLAB | {
    "MODEL.RESNETS.RES4_DILATION": 1,
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [6, 12, 18],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 16,
}
OS8 = DEEPLAB | {
    "MODEL.RESNETS.RES4_DILATION": 2,
    "MODEL.RESNETS.RES5_DILATION": 4,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [12, 24, 36],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8,
}
PLUS = OS16 | {
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3PlusHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res5"],
    "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES": ["res2"],
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": [48],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
}


def pointrend(steps: int, coarse: str = "SemSegFPNHead", fine: str = "p2", train: int = 2048):
    return {
        "MODEL.META_ARCHITECTURE": "PointRendSemanticSegmentor",
        "MODEL.SEM_SEG_HEAD.NAME": "PointRendSemSegHead",
        "MODEL.POINT_HEAD.NAME": "StandardPointHead",
        "MODEL.POINT_HEAD.NUM_CLASSES": -1,
        "MODEL.POINT_HEAD.IN_FEATURES": [fine],
        "MODEL.POINT_HEAD.FC_DIM": 256,
        "MODEL.POINT_HEAD.NUM_FC": 3,
        "MODEL.POINT_HEAD.TRAIN_NUM_POINTS": train,
        "MODEL.POINT_HEAD.OVERSAMPLE_RATIO": 3,
        "MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO": 0.75,
        "MODEL.POINT_HEAD.SUBDIVISION_STEPS": steps,
        "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 8192,
        "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": False,
        "MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME": coarse,
        "MODEL.SEM_SEG_HEAD.POINT_HEAD.NAME": "",
    }


WITH_RES2 = {"MODEL.RESNETS.OUT_FEATURES": ["res2", "res5"]}

# --- data and schedules -------------------------------------------------------------------------

CITYSCAPES = {
    "DATASETS.TRAIN": ("cityscapes_fine_sem_seg_train",),
    "DATASETS.TEST": ("cityscapes_fine_sem_seg_val",),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
    "INPUT.MIN_SIZE_TRAIN": (512, 768, 1024, 1280, 1536, 1792, 2048),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 4096,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 2048,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": [512, 1024],
    "DATALOADER.NUM_WORKERS": 10,
    "TEST.AUG.ENABLED": False,
    "TEST.AUG.MIN_SIZES": (512, 768, 1024, 1280, 1536, 1792),
    "TEST.AUG.MAX_SIZE": 3584,
    "TEST.AUG.FLIP": True,
}
POINTREND_65K = CITYSCAPES | {
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.75,
    "INPUT.COLOR_AUG_SSD": True,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.STEPS": (40000, 55000),
    "SOLVER.MAX_ITER": 65000,
    "SOLVER.IMS_PER_BATCH": 32,
}
DEEPLAB_90K = CITYSCAPES | {
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "INPUT.COLOR_AUG_SSD": False,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.IMS_PER_BATCH": 16,
    "TEST.AUG.MIN_SIZES": (512, 1024, 1536),
    "TEST.AUG.MAX_SIZE": 3072,
}
MMSEGMENTATION = {
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.SEM_SEG_HEAD.NORM": "SyncBN",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 128,
    "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": True,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.75,
    "INPUT.COLOR_AUG_SSD": True,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.BASE_LR_END": 1e-4,
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_ITERS": 200,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 5e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 5e-4,
    "TEST.AUG.ENABLED": False,
    "TEST.AUG.FLIP": True,
}
CITYSCAPES_80K = (
    CITYSCAPES
    | MMSEGMENTATION
    | {
        "INPUT.MIN_SIZE_TRAIN": (512, 2048),
        "SOLVER.MAX_ITER": 80000,
        "SOLVER.IMS_PER_BATCH": 8,
    }
)
ADE20K_160K = MMSEGMENTATION | {
    "DATASETS.TRAIN": ("ade20k_sem_seg_train",),
    "DATASETS.TEST": ("ade20k_sem_seg_val",),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 150,
    "INPUT.MIN_SIZE_TRAIN": (256, 1024),
    "INPUT.MAX_SIZE_TRAIN": 4096,
    "INPUT.MIN_SIZE_TEST": 512,
    "INPUT.MAX_SIZE_TEST": 2048,
    "INPUT.CROP.SIZE": [512, 512],
    "SOLVER.MAX_ITER": 160000,
    "SOLVER.IMS_PER_BATCH": 16,
    "TEST.AUG.MIN_SIZES": (256, 384, 512, 640, 768, 896),
    "TEST.AUG.MAX_SIZE": 3584,
}
COCO_STUFF = {key: value for key, value in COCO.items() if key.startswith(("SOLVER", "INPUT"))} | {
    "DATASETS.TRAIN": ("coco_2017_train_panoptic_stuffonly",),
    "DATASETS.TEST": ("coco_2017_val_panoptic_stuffonly",),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54,
}
COCO_PANOPTIC = COCO | {
    "DATASETS.TRAIN": ("coco_2017_train_panoptic_separated",),
    "DATASETS.TEST": ("coco_2017_val_panoptic_separated",),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    "MODEL.META_ARCHITECTURE": "PointRendPanopticFPN",
    "MODEL.MASK_ON": True,
    "MODEL.SEM_SEG_HEAD.NAME": "PointRendSemSegHead",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.NAME": "StandardPointHead",
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.NUM_CLASSES": -1,
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.IN_FEATURES": ["p2"],
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.TRAIN_NUM_POINTS": 1024,
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.SUBDIVISION_STEPS": 2,
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.SUBDIVISION_NUM_POINTS": 8192,
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.COARSE_PRED_EACH_LAYER": False,
    "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": True,
    "MODEL.POINT_HEAD.TRAIN_NUM_POINTS": 196,
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 5,
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 784,
    "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": True,
}

# Kirillov et al., Panoptic Feature Pyramid Networks, section 4.1 and Table 2d; sizes of images in
# tests, and numbers of training points, are those of PointRend's recipes for Cityscapes.
CITYSCAPES_PANOPTIC = COCO_PANOPTIC | {
    "DATASETS.TRAIN": ("cityscapes_fine_panoptic_separated_train",),
    "DATASETS.TEST": ("cityscapes_fine_panoptic_separated_val",),
    "INPUT.MIN_SIZE_TRAIN": (512, 2048),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "INPUT.MAX_SIZE_TRAIN": 4096,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 2048,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": [512, 1024],
    "INPUT.CROP.AFTER_RESIZE": True,
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": 0.5,
    "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 12,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "MODEL.SEM_SEG_HEAD.POINT_HEAD.TRAIN_NUM_POINTS": 2048,
    "SOLVER.IMS_PER_BATCH": 32,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.STEPS": (40000, 55000),
    "SOLVER.MAX_ITER": 65000,
}

TRIPLE = {"SOLVER.STEPS": (210000, 250000), "SOLVER.MAX_ITER": 270000}

PLUS_POINTREND = pointrend(2, "DeepLabV3PlusHead", "res2")
PUBLISHED = {
    "semantic_R_101_FPN_1x_cityscapes": R101 | SEMANTIC_FPN | POINTREND_65K,
    "pointrend_semantic_R_101_FPN_1x_cityscapes": (
        R101 | SEMANTIC_FPN | pointrend(2) | POINTREND_65K
    ),
    "semantic_R_101_FPN_P3-P5_1x_cityscapes": (
        R101 | SEMANTIC_FPN | P3_P5 | WITHOUT_P2 | POINTREND_65K
    ),
    "pointrend_semantic_R_101_FPN_P3-P5_1x_cityscapes": (
        R101 | SEMANTIC_FPN | P3_P5 | pointrend(3) | POINTREND_65K
    ),
    "residual_pointrend_semantic_R_101_FPN_P3-P5_1x_cityscapes": (
        R101
        | SEMANTIC_FPN
        | P3_P5
        | pointrend(3)
        | {"MODEL.POINT_HEAD.NAME": "ResidualPointHead"}
        | POINTREND_65K
    ),
    "deeplab_v3_R_103_os16_90k_cityscapes": OS16 | DEEPLAB_90K,
    "pointrend_deeplab_v3_R_103_os16_90k_cityscapes": (
        OS16 | WITH_RES2 | pointrend(4, "DeepLabV3Head", "res2") | DEEPLAB_90K
    ),
    "deeplab_v3_R_103_os8_90k_cityscapes": OS8 | DEEPLAB_90K,
    "pointrend_deeplab_v3_R_103_os8_90k_cityscapes": (
        OS8 | WITH_RES2 | pointrend(3, "DeepLabV3Head", "res2") | DEEPLAB_90K
    ),
    "deeplab_v3_plus_R_103_os16_90k_cityscapes": PLUS | DEEPLAB_90K,
    "pointrend_deeplab_v3_plus_R_103_os16_90k_cityscapes": PLUS | PLUS_POINTREND | DEEPLAB_90K,
    "pointrend_semantic_R_50_FPN_1x_coco": (
        R50 | SEMANTIC_FPN | pointrend(2, train=1024) | COCO_STUFF
    ),
    "pointrend_semantic_R_50_FPN_80k_cityscapes": (
        R50 | SEMANTIC_FPN | pointrend(2) | CITYSCAPES_80K
    ),
    "pointrend_semantic_R_101_FPN_80k_cityscapes": (
        R101 | SEMANTIC_FPN | pointrend(2) | CITYSCAPES_80K
    ),
    "pointrend_semantic_R_50_FPN_160k_ade20k": R50 | SEMANTIC_FPN | pointrend(2) | ADE20K_160K,
    "pointrend_semantic_R_101_FPN_160k_ade20k": R101 | SEMANTIC_FPN | pointrend(2) | ADE20K_160K,
    PANOPTIC: R50 | COCO_PANOPTIC,
    "pointrend_panoptic_R_50_FPN_3x_coco": R50 | COCO_PANOPTIC | TRIPLE,
    "pointrend_panoptic_R_101_FPN_3x_coco": R101 | COCO_PANOPTIC | TRIPLE,
    "pointrend_panoptic_R_50_FPN_65k_cityscapes": R50 | CITYSCAPES_PANOPTIC,
    "pointrend_panoptic_R_101_FPN_65k_cityscapes": R101 | CITYSCAPES_PANOPTIC,
}

POINTREND_KEYS = {
    "MODEL.META_ARCHITECTURE",
    "MODEL.SEM_SEG_HEAD.NAME",
    "MODEL.POINT_HEAD.TRAIN_NUM_POINTS",
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS",
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS",
    "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER",
}
DEEPLAB_KEYS = POINTREND_KEYS | {
    "MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME",
    "MODEL.POINT_HEAD.IN_FEATURES",
}
PAIRS = {
    "semantic_R_101_FPN_1x_cityscapes": POINTREND_KEYS,
    "semantic_R_101_FPN_P3-P5_1x_cityscapes": (
        # Of levels that nothing reads, the baseline has no parameters.
        POINTREND_KEYS | {"MODEL.RESNETS.OUT_FEATURES", "MODEL.FPN.IN_FEATURES"}
    ),
    "deeplab_v3_R_103_os16_90k_cityscapes": DEEPLAB_KEYS | {"MODEL.RESNETS.OUT_FEATURES"},
    "deeplab_v3_R_103_os8_90k_cityscapes": DEEPLAB_KEYS | {"MODEL.RESNETS.OUT_FEATURES"},
    "deeplab_v3_plus_R_103_os16_90k_cityscapes": DEEPLAB_KEYS,
}

# Size of the coarse logits of an image of 1024 x 2048, from the paper's table.
COARSE_SIZES = {
    "semantic_R_101_FPN_1x_cityscapes": (256, 512),
    "semantic_R_101_FPN_P3-P5_1x_cityscapes": (128, 256),
    "deeplab_v3_R_103_os16_90k_cityscapes": (64, 128),
    "deeplab_v3_R_103_os8_90k_cityscapes": (128, 256),
    "deeplab_v3_plus_R_103_os16_90k_cityscapes": (256, 512),  # its decoder works at stride 4
}


def load(name: str, opts: tuple[str, ...] = ()) -> CfgNode:
    return load_config(get_config_file(LEAVES[name].relative_to(CONFIGS).as_posix()), opts)


def plain(value: object) -> object:
    """Make lists and tuples comparable."""
    return tuple(value) if isinstance(value, list) else value


def test_the_table_names_every_config():
    assert sorted(PUBLISHED) == sorted(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_a_config_has_the_published_values(name):
    values = flat(load(name))
    expected = PUBLISHED[name]
    assert {key: plain(values[key]) for key in expected} == {
        key: plain(value) for key, value in expected.items()
    }


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("training", [True, False])
def test_a_config_does_not_contradict_itself(name, training):
    check_config(load(name), training=training)


@pytest.mark.parametrize("name", LEAVES)
def test_detectron2_reads_a_config_alike(name):
    expected = get_cfg()
    add_pointrend_config(expected)
    expected.merge_from_file(str(LEAVES[name]), allow_unsafe=False)
    assert load(name) == expected


@pytest.mark.parametrize("name", LEAVES)
def test_the_data_sets_are_registered_and_have_the_classes_of_the_config(name, monkeypatch):
    monkeypatch.chdir(os.path.dirname(__file__))  # the registered paths are relative
    cfg = load(name)
    with process_state_restored():
        register_cityscapes_panoptic()
        for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            classes = MetadataCatalog.get(dataset).stuff_classes
            assert len(classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


@pytest.mark.parametrize(("name", "keys"), PAIRS.items())
def test_pointrend_and_its_baseline_differ_in_these_keys_alone(name, keys):
    assert differing_keys(load(name), load(f"pointrend_{name}")) == keys


@pytest.mark.parametrize("recipe", ["80k_cityscapes", "160k_ade20k"])
def test_two_depths_of_a_recipe_differ_in_the_backbone_alone(recipe):
    configs = [load(f"pointrend_semantic_R_{depth}_FPN_{recipe}") for depth in (50, 101)]
    assert differing_keys(*configs) == {"MODEL.WEIGHTS", "MODEL.RESNETS.DEPTH"}


def zoo_cfg(name: str) -> CfgNode:
    cfg = get_cfg()
    add_pointrend_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(name))
    return cfg


def test_coco_stuff_adds_the_head_alone_to_the_recipe_of_detectron2():
    ours = load("pointrend_semantic_R_50_FPN_1x_coco")
    stock = zoo_cfg("Misc/semantic_R_50_FPN_1x.yaml")
    # The zoo's base file is that of a detector, whose parts a SemanticSegmentor does not build.
    of_detectors = ("MODEL.RPN", "MODEL.ROI", "MODEL.ANCHOR")
    keys = {key for key in differing_keys(ours, stock) if not key.startswith(of_detectors)}
    assert keys == POINTREND_KEYS | {"MODEL.BACKBONE.FREEZE_AT"}


@pytest.mark.parametrize("recipe", ["R_50_FPN_1x", "R_50_FPN_3x", "R_101_FPN_3x"])
def test_panoptic_adds_the_two_heads_alone_to_the_recipe_of_detectron2(recipe):
    ours = load(f"pointrend_panoptic_{recipe}_coco")
    stock = zoo_cfg(f"COCO-PanopticSegmentation/panoptic_fpn_{recipe.replace('_FPN', '')}.yaml")
    keys = differing_keys(ours, stock)
    prefix = "MODEL.SEM_SEG_HEAD.POINT_HEAD."
    assert {key.removeprefix(prefix) for key in keys if key.startswith(prefix)} == {
        "NAME",
        "TRAIN_NUM_POINTS",
        "SUBDIVISION_STEPS",
        "SUBDIVISION_NUM_POINTS",
        "COARSE_PRED_EACH_LAYER",
    }
    assert {key for key in keys if not key.startswith(prefix)} == {
        "INPUT.MASK_FORMAT",
        "MODEL.META_ARCHITECTURE",
        "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES",
        "MODEL.ROI_MASK_HEAD.NAME",
        "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON",
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE",
        "MODEL.SEM_SEG_HEAD.NAME",
    }


@pytest.mark.parametrize("recipe", ["80k_cityscapes", "160k_ade20k"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.25, 0.999])
def test_the_rates_of_a_recipe_follow_mmsegmentations_formula(recipe, share):
    cfg = load(f"pointrend_semantic_R_50_FPN_{recipe}")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    last = {"80k_cityscapes": 80_000, "160k_ade20k": 160_000}[recipe]
    iteration = round(share * last)
    if iteration:
        scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": iteration - 1})
        optimizer.step()
        scheduler.step()
    curve = (0.01 - 1e-4) * (1 - iteration / last) ** 0.9 + 1e-4
    expected = min(1.0, 0.1 + 0.9 * iteration / 200) * curve
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", [name for name in LEAVES if "deeplab" in name])
def test_deeplab_is_tested_at_sizes_that_its_pyramid_takes(name):
    cfg = load(name)
    crop_height, crop_width = cfg.INPUT.CROP.SIZE
    for side in (cfg.INPUT.MIN_SIZE_TEST, *cfg.TEST.AUG.MIN_SIZES):  # images are twice as wide
        assert side % crop_height == 0
        assert 2 * side % crop_width == 0
        assert 2 * side <= max(cfg.INPUT.MAX_SIZE_TEST, cfg.TEST.AUG.MAX_SIZE)


# --- one step of every architecture -------------------------------------------------------------

HEIGHT, WIDTH = 64, 128
# A shallower backbone, narrow layers and few boxes keep a step short; all kinds of layers stay.
SMALL = (
    *NARROW,
    *("MODEL.RESNETS.DEPTH", "50"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "32"),
    *("MODEL.SEM_SEG_HEAD.POINT_HEAD.FC_DIM", "16"),
    *("INPUT.CROP.SIZE", f"[{HEIGHT}, {WIDTH}]"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "8"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "8"),
    # Frozen normalization without weights lets activations grow: dim the image.
    *("MODEL.PIXEL_STD", "[1e6, 1e6, 1e6]"),
    *("TEST.DETECTIONS_PER_IMAGE", "3"),
)
ARCHITECTURES = [
    name
    for name in LEAVES
    # Models that differ in depth or in the number of classes alone share a run.
    if name
    not in (
        "pointrend_semantic_R_50_FPN_1x_coco",
        "pointrend_semantic_R_101_FPN_80k_cityscapes",
        "pointrend_semantic_R_101_FPN_160k_ade20k",
        "pointrend_semantic_R_50_FPN_160k_ade20k",
        "pointrend_panoptic_R_50_FPN_3x_coco",
        "pointrend_panoptic_R_101_FPN_3x_coco",
        "pointrend_panoptic_R_101_FPN_65k_cityscapes",
    )
]


def sample(cfg: CfgNode) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (HEIGHT // 8, WIDTH // 8), generator=generator
    )
    blocks[0, 0] = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    triangle = {
        "bbox": [10.0, 8.0, 60.0, 50.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 2,
        "segmentation": [[10.0, 8.0, 70.0, 20.0, 30.0, 58.0]],
    }
    return {
        "image": torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
        "height": HEIGHT,
        "width": WIDTH,
        "sem_seg": blocks.repeat_interleave(8, 0).repeat_interleave(8, 1),
        "instances": annotations_to_instances([triangle], (HEIGHT, WIDTH), mask_format="bitmask"),
    }


@cache
def step_and_inference(
    name: str, opts: tuple[str, ...] = ()
) -> tuple[dict[str, float], list[str], tuple, dict]:
    """Losses, parameters without a finite gradient, size of the coarse logits, outputs."""
    torch.manual_seed(0)
    cfg = load(name, (*SMALL, *opts))
    model = build_model(cfg)
    data = sample(cfg)
    with EventStorage():
        losses = model([data])
    sum(losses.values()).backward()
    without_gradient = without_finite_gradient(model)
    model.eval()
    head = model.sem_seg_head
    with torch.no_grad():
        outputs = model([data])[0]
        features = model.backbone(torch.zeros(1, 3, HEIGHT, WIDTH))
        coarse = coarse_logits(getattr(head, "coarse_sem_seg_head", head), features)
    return (
        {name: loss.item() for name, loss in losses.items()},
        without_gradient,
        tuple(coarse.shape[-2:]),
        outputs,
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_config_trains_one_step_and_labels_every_pixel(name):
    losses, without_gradient, _, outputs = step_and_inference(name)
    expected = {"loss_sem_seg"}
    if "pointrend" in name:
        expected |= {"loss_sem_seg_point"}
    if "panoptic" in name:
        expected |= {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
        expected |= {"loss_mask", "loss_mask_point"}
    assert losses.keys() == expected
    assert all(math.isfinite(loss) for loss in losses.values())
    assert without_gradient == []

    logits = outputs["sem_seg"]
    assert logits.dtype == torch.float32
    assert logits.shape == (load(name).MODEL.SEM_SEG_HEAD.NUM_CLASSES, HEIGHT, WIDTH)
    assert torch.isfinite(logits).all()
    if "panoptic" in name:
        assert outputs["panoptic_seg"][0].shape == (HEIGHT, WIDTH)
        assert outputs["instances"].pred_masks.shape[-2:] == (HEIGHT, WIDTH)


def test_the_weight_of_instances_is_that_of_boxes_and_masks():
    name, key = "pointrend_panoptic_R_50_FPN_65k_cityscapes", "INSTANCE_LOSS_WEIGHT"
    weighted = step_and_inference(name)[0]
    plain_losses = step_and_inference(name, (f"MODEL.PANOPTIC_FPN.{key}", "1.0"))[0]
    of_instances = {"loss_cls", "loss_box_reg", "loss_mask", "loss_mask_point"}
    assert weighted == {
        name: loss * (0.5 if name in of_instances else 1) for name, loss in plain_losses.items()
    }


@pytest.mark.parametrize(("name", "size"), COARSE_SIZES.items())
@pytest.mark.parametrize("prefix", ["", "pointrend_"])
def test_the_coarse_logits_have_the_size_of_the_papers_table(name, size, prefix):
    coarse_size = step_and_inference(prefix + name)[2]
    stride = 1024 // size[0]
    assert coarse_size == (HEIGHT // stride, WIDTH // stride)
    assert stride == load(prefix + name).MODEL.SEM_SEG_HEAD.COMMON_STRIDE
    if prefix:
        assert stride == 2 ** load(prefix + name).MODEL.POINT_HEAD.SUBDIVISION_STEPS
