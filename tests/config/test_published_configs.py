import math
import os
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage

from point_rend import add_pointrend_config, get_config_file, load_config
from point_rend.config.checks import check_config
from point_rend.solver import build_lr_scheduler
from tests.runs import without_finite_gradient
from tests.tiny_datasets import REPOSITORY

CONFIGS = REPOSITORY / "configs"
FOLDER = CONFIGS / "InstanceSegmentation"
# Configs of other backbones than ResNets: tests/config/test_backbone_configs.py.
OTHER_BACKBONES = ("MobileNetV3", "MViTv2", "Swin", "ViTDet")
LEAVES = sorted(
    path.name
    for path in FOLDER.glob("*.yaml")
    if not path.name.startswith("Base-") and not any(x in path.name for x in OTHER_BACKBONES)
)

COCO = {
    "DATASETS.TRAIN": ("coco_2017_train",),
    "DATASETS.TEST": ("coco_2017_val",),
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.STEPS": (60000, 80000),
    "SOLVER.MAX_ITER": 90000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
COCO_3X = COCO | {"SOLVER.STEPS": (210000, 250000), "SOLVER.MAX_ITER": 270000}
CITYSCAPES = {
    "DATASETS.TRAIN": ("cityscapes_fine_instance_seg_train",),
    "DATASETS.TEST": ("cityscapes_fine_instance_seg_val",),
    "INPUT.MIN_SIZE_TRAIN": (800, 832, 864, 896, 928, 960, 992, 1024),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 2048,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 2048,
    "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.STEPS": (18000,),
    "SOLVER.MAX_ITER": 24000,
}
LVIS = COCO | {
    "DATASETS.TRAIN": ("lvis_v1_train",),
    "DATASETS.TEST": ("lvis_v1_val",),
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.001,
    "MODEL.ROI_HEADS.NUM_CLASSES": 1203,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
    "SOLVER.STEPS": (120000, 160000),
    "SOLVER.MAX_ITER": 180000,
    "TEST.DETECTIONS_PER_IMAGE": 300,
}

# Detectron2's new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py and the files that it imports.
LSJ = COCO | {
    "INPUT.LSJ.ENABLED": True,
    "INPUT.LSJ.MIN_SCALE": 0.1,
    "INPUT.LSJ.MAX_SCALE": 2.0,
    "INPUT.LSJ.SIZE": [1024, 1024],
    "INPUT.CROP.ENABLED": False,
    "INPUT.RANDOM_FLIP": "horizontal",
    "SOLVER.AMP.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 64,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 4e-5,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WARMUP_FACTOR": 0.067,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.RPN.CONV_DIMS": [-1, -1],
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NORM": "naiveSyncBN_N",
    "MODEL.WEIGHTS": "",
}
LSJ_SCHEDULES = {  # 64 images an iteration, 118000 an epoch
    epochs: {"SOLVER.MAX_ITER": length, "SOLVER.STEPS": steps, "SOLVER.WARMUP_ITERS": warmup}
    for epochs, length, steps, warmup in (
        (100, 184375, (163889, 177546), 500),
        (200, 368750, (327778, 355092), 1000),
        (400, 737500, (655556, 710184), 2000),
    )
}

RESNET = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.MASK_ON": True,
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
}
R50 = RESNET | {
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "MODEL.RESNETS.DEPTH": 50,
}
R101 = RESNET | {
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
    "MODEL.RESNETS.DEPTH": 101,
}
X101 = RESNET | {
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
    "MODEL.PIXEL_STD": [57.375, 57.120, 58.395],
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NUM_GROUPS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
}

POINT_MASKS = {
    "INPUT.MASK_FORMAT": "bitmask",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.IN_FEATURES": ("p2",),
    "MODEL.ROI_MASK_HEAD.FC_DIM": 1024,
    "MODEL.ROI_MASK_HEAD.NUM_FC": 2,
    "MODEL.POINT_HEAD.NUM_CLASSES": -1,
    "MODEL.POINT_HEAD.IN_FEATURES": ("p2",),
    "MODEL.POINT_HEAD.FC_DIM": 256,
    "MODEL.POINT_HEAD.NUM_FC": 3,
    "MODEL.POINT_HEAD.TRAIN_NUM_POINTS": 196,
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 784,
}
POINTREND = POINT_MASKS | {
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True,
    "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
    "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON": True,
    "MODEL.POINT_HEAD.NAME": "StandardPointHead",
    "MODEL.POINT_HEAD.OVERSAMPLE_RATIO": 3,
    "MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO": 0.75,
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 5,
    "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": True,
}
RESIDUAL = {"MODEL.POINT_HEAD.NAME": "ResidualPointHead"}
# Detectron2's Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml, and its defaults.
CASCADE = POINTREND | {
    "MODEL.ROI_HEADS.NAME": "PointRendCascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5, 0.6, 0.7),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": (
        (10.0, 10.0, 5.0, 5.0),
        (20.0, 20.0, 10.0, 10.0),
        (30.0, 30.0, 15.0, 15.0),
    ),
}
# Detectron2's COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml and its base.
KEYPOINTS = POINTREND | {
    "MODEL.KEYPOINT_ON": True,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 17,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500,
}
PEOPLE = {
    "DATASETS.TRAIN": ("keypoints_coco_2017_train",),
    "DATASETS.TEST": ("keypoints_coco_2017_val",),
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
}
IMPLICIT = POINT_MASKS | {
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": False,
    "MODEL.ROI_MASK_HEAD.NAME": "ImplicitPointRendMaskHead",
    "MODEL.POINT_HEAD.NAME": "ImplicitPointHead",
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 3,
    "MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED": True,
    "MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED": True,
    "MODEL.IMPLICIT_POINTREND.PARAMS_L2_REGULARIZER": 1e-5,
}
BASELINE = {
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": False,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
}

POINT_SUP = {
    "INPUT.POINT_SUP": True,
    "DATASETS.TRAIN": ("coco_2017_train_points_n10_v1_without_masks",),
}

PUBLISHED = {
    "implicit_pointrend_R_50_FPN_1x_coco.yaml": R50 | IMPLICIT | COCO,
    "implicit_pointrend_R_50_FPN_3x_coco.yaml": R50 | IMPLICIT | COCO_3X,
    "mask_rcnn_R_50_FPN_1x_cityscapes.yaml": R50 | BASELINE | CITYSCAPES,
    "mask_rcnn_R_50_FPN_1x_coco.yaml": R50 | BASELINE | COCO,
    "pointrend_cascade_rcnn_R_50_FPN_1x_coco.yaml": R50 | CASCADE | COCO,
    "pointrend_cascade_rcnn_R_50_FPN_3x_coco.yaml": R50 | CASCADE | COCO_3X,
    "pointrend_cascade_rcnn_X_101_32x8d_FPN_3x_coco.yaml": X101 | CASCADE | COCO_3X,
    "implicit_pointrend_R_50_FPN_3x_point_sup_point_aug_coco.yaml": {
        **(R50 | IMPLICIT | COCO_3X | POINT_SUP),
        "MODEL.ROI_MASK_HEAD.NAME": "ImplicitPointRendPointSupHead",
        "INPUT.SAMPLE_POINTS": 5,
    },
    "mask_rcnn_R_50_FPN_3x_point_sup_coco.yaml": {
        **(R50 | BASELINE | COCO_3X | POINT_SUP),
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsamplePointSupHead",
        "INPUT.SAMPLE_POINTS": 0,
    },
    "mask_rcnn_R_50_FPN_3x_point_sup_point_aug_coco.yaml": {
        **(R50 | BASELINE | COCO_3X | POINT_SUP),
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsamplePointSupHead",
        "INPUT.SAMPLE_POINTS": 5,
    },
    "pointrend_keypoint_rcnn_R_50_FPN_1x_coco.yaml": R50 | KEYPOINTS | COCO | PEOPLE,
    "pointrend_keypoint_rcnn_R_50_FPN_3x_coco.yaml": R50 | KEYPOINTS | COCO_3X | PEOPLE,
    "pointrend_rcnn_R_101_FPN_3x_coco.yaml": R101 | POINTREND | COCO_3X,
    "pointrend_rcnn_R_50_FPN_1x_cityscapes.yaml": R50 | POINTREND | CITYSCAPES,
    "pointrend_rcnn_R_50_FPN_1x_coco.yaml": R50 | POINTREND | COCO,
    "pointrend_rcnn_R_50_FPN_1x_lvis_v1.yaml": R50 | POINTREND | LVIS,
    "pointrend_rcnn_R_50_FPN_3x_coco.yaml": R50 | POINTREND | COCO_3X,
    "pointrend_rcnn_X_101_32x8d_FPN_3x_coco.yaml": X101 | POINTREND | COCO_3X,
    "residual_pointrend_rcnn_R_50_FPN_1x_coco.yaml": R50 | POINTREND | RESIDUAL | COCO,
} | {
    f"pointrend_rcnn_R_{depth}_FPN_{epochs}ep_LSJ_coco.yaml": resnet | POINTREND | LSJ | schedule
    for depth, resnet in ((50, R50), (101, R101))
    for epochs, schedule in LSJ_SCHEDULES.items()
}


def load(name: str, opts: tuple[str, ...] = ()) -> CfgNode:
    return load_config(get_config_file(f"InstanceSegmentation/{name}"), opts)


def flat(node: CfgNode, prefix: str = "") -> dict[str, object]:
    values = {}
    for name, value in node.items():
        key = prefix + name
        values |= flat(value, key + ".") if isinstance(value, CfgNode) else {key: value}
    return values


def differing_keys(one: CfgNode, other: CfgNode) -> set[str]:
    ours, theirs = flat(one), flat(other)
    return {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}


def stock_cfg(base: str) -> CfgNode:
    """Detectron2's config of a model-zoo file, with our keys at their defaults."""
    cfg = get_cfg()
    add_pointrend_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(base))
    return cfg


def test_the_table_names_every_config():
    assert sorted(PUBLISHED) == LEAVES


@pytest.mark.parametrize("name", LEAVES)
def test_a_config_has_the_published_values(name):
    values = flat(load(name))
    expected = PUBLISHED[name]
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("training", [True, False])
def test_a_config_does_not_contradict_itself(name, training):
    check_config(load(name), training=training)


@pytest.mark.parametrize("name", LEAVES)
def test_detectron2_reads_a_config_alike(name):
    expected = get_cfg()
    add_pointrend_config(expected)
    expected.merge_from_file(str(FOLDER / name), allow_unsafe=False)
    assert load(name) == expected


def test_the_base_file_equals_that_of_detectron2():
    assert load("Base-RCNN-FPN.yaml") == stock_cfg("Base-RCNN-FPN.yaml")


@pytest.mark.parametrize(
    ("name", "zoo_name", "differences"),
    [
        (
            "mask_rcnn_R_50_FPN_1x_coco.yaml",
            "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
            set(),
        ),
        (
            "mask_rcnn_R_50_FPN_1x_cityscapes.yaml",
            "Cityscapes/mask_rcnn_R_50_FPN.yaml",
            # The zoo starts from a COCO model, the paper from ImageNet.
            {"MODEL.WEIGHTS", "TEST.EVAL_PERIOD"},
        ),
    ],
)
def test_a_baseline_is_the_mask_rcnn_of_detectron2(name, zoo_name, differences):
    assert differing_keys(load(name), stock_cfg(zoo_name)) == differences


@pytest.mark.parametrize("schedule", ["1x", "3x"])
def test_a_cascade_adds_the_mask_head_alone_to_the_recipe_of_detectron2(schedule):
    ours = load(f"pointrend_cascade_rcnn_R_50_FPN_{schedule}_coco.yaml")
    stock = stock_cfg(f"Misc/cascade_mask_rcnn_R_50_FPN_{schedule}.yaml")
    assert differing_keys(ours, stock) == HEAD_KEYS | {"MODEL.ROI_HEADS.NAME"}


@pytest.mark.parametrize("schedule", ["1x", "3x"])
def test_keypoints_add_the_mask_head_alone_to_the_recipe_of_detectron2(schedule):
    ours = load(f"pointrend_keypoint_rcnn_R_50_FPN_{schedule}_coco.yaml")
    stock = stock_cfg(f"COCO-Keypoints/keypoint_rcnn_R_50_FPN_{schedule}.yaml")
    assert differing_keys(ours, stock) == HEAD_KEYS | {"MODEL.MASK_ON"}


@pytest.mark.parametrize("epochs", LSJ_SCHEDULES)
@pytest.mark.parametrize("depth", [50, 101])
def test_the_schedules_of_large_scale_jitter_are_those_of_detectron2(depth, epochs):
    stock = model_zoo.get_config(f"new_baselines/mask_rcnn_R_{depth}_FPN_{epochs}ep_LSJ.py")
    solver = load(f"pointrend_rcnn_R_{depth}_FPN_{epochs}ep_LSJ_coco.yaml").SOLVER
    assert stock.train.max_iter == solver.MAX_ITER
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=solver.BASE_LR)
    ours = build_lr_scheduler(CfgNode({"SOLVER": solver}), optimizer)._multiplier
    expected = instantiate(stock.lr_multiplier)
    for position in np.linspace(0, 1, 3000, endpoint=False):
        assert ours(position) == pytest.approx(expected(position), rel=1e-9)
    assert stock.optimizer.lr == solver.BASE_LR
    assert stock.optimizer.momentum == solver.MOMENTUM
    assert stock.optimizer.weight_decay == solver.WEIGHT_DECAY
    assert stock.dataloader.train.total_batch_size == solver.IMS_PER_BATCH
    assert stock.train.amp.enabled is solver.AMP.ENABLED is True


@pytest.mark.parametrize("depth", [50, 101])
def test_the_models_of_large_scale_jitter_differ_from_those_of_detectron2_in_the_mask_head(depth):
    stock = model_zoo.get_config(f"new_baselines/mask_rcnn_R_{depth}_FPN_100ep_LSJ.py")
    name = f"pointrend_rcnn_R_{depth}_FPN_100ep_LSJ_coco.yaml"
    with torch.device("meta"):
        models = [instantiate(stock.model), build_model(load(name, ("MODEL.DEVICE", "meta")))]
    ours, expected = (
        {
            name: (
                type(module),
                {key: x.shape for key, x in module.named_parameters(recurse=False)},
            )
            for name, module in model.named_modules()
            if "mask" not in name
        }
        for model in models
    )
    assert ours == expected
    assert sum(kind is torch.nn.SyncBatchNorm for kind, _ in ours.values()) > depth
    assert sum(kind is NaiveSyncBatchNorm for kind, _ in ours.values()) == 4


HEAD_KEYS = {
    "INPUT.MASK_FORMAT",
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES",
    "MODEL.ROI_MASK_HEAD.NAME",
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE",
}


@pytest.mark.parametrize("data", ["coco", "cityscapes"])
def test_pointrend_and_its_baseline_differ_in_the_mask_head_alone(data):
    pointrend = load(f"pointrend_rcnn_R_50_FPN_1x_{data}.yaml")
    baseline = load(f"mask_rcnn_R_50_FPN_1x_{data}.yaml")
    assert differing_keys(pointrend, baseline) == HEAD_KEYS


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("residual_*.yaml")), ids=lambda path: path.name
)
def test_a_residual_config_differs_in_the_name_of_the_point_head_alone(path):
    base = path.parent / yaml.safe_load(path.read_text())["_BASE_"]
    differing = differing_keys(load_config(str(path)), load_config(str(base)))
    assert differing - {"OUTPUT_DIR"} == RESIDUAL.keys()


def test_the_lvis_config_adds_the_mask_head_alone_to_the_recipe_of_detectron2():
    ours = load("pointrend_rcnn_R_50_FPN_1x_lvis_v1.yaml")
    stock = stock_cfg("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    assert differing_keys(ours, stock) == HEAD_KEYS


@pytest.mark.parametrize("head", ["implicit_pointrend", "mask_rcnn"])
def test_point_supervision_changes_the_data_and_the_name_of_the_head_alone(head):
    ours = load(f"{head}_R_50_FPN_3x_point_sup_point_aug_coco.yaml")
    plain = load(f"{head}_R_50_FPN_1x_coco.yaml")
    assert differing_keys(ours, plain) == {
        *("INPUT.POINT_SUP", "INPUT.SAMPLE_POINTS", "DATASETS.TRAIN", "MODEL.ROI_MASK_HEAD.NAME"),
        *("SOLVER.MAX_ITER", "SOLVER.STEPS"),
    }


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_base_lies_among_our_configs(path):
    bases = yaml.safe_load(path.read_text()).get("_BASE_", [])
    for base in [bases] if isinstance(bases, str) else bases:
        assert not os.path.isabs(base)
        target = (path.parent / base).resolve()
        assert target.is_file()
        assert target.is_relative_to(CONFIGS)


# Narrow layers, a small image and few boxes keep a step short; no layer is left out.
NARROW = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", "16", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16,)"),
    *("MODEL.ROI_MASK_HEAD.FC_DIM", "16", "MODEL.POINT_HEAD.FC_DIM", "16"),
)
SMALL = (
    *NARROW,
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "8"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "8"),
    # An untrained model is never sure of a class.
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    # Its frozen normalization lets activations grow until no proposal is left: dim the image.
    *("MODEL.PIXEL_STD", "[1e6, 1e6, 1e6]"),
    *("TEST.DETECTIONS_PER_IMAGE", "3"),
)
HEIGHT, WIDTH = 64, 96
LOSSES = {
    "PointRendMaskHead": {"loss_mask", "loss_mask_point"},
    "ImplicitPointRendMaskHead": {"loss_mask_point", "loss_l2"},
    "MaskRCNNConvUpsampleHead": {"loss_mask"},
    "ImplicitPointRendPointSupHead": {"loss_mask_point", "loss_l2"},
    "MaskRCNNConvUpsamplePointSupHead": {"loss_mask"},
}


def sample(cfg: CfgNode) -> dict[str, object]:
    triangle = {
        "bbox": [10.0, 8.0, 60.0, 50.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": cfg.MODEL.ROI_HEADS.NUM_CLASSES - 1,
        "segmentation": [[10.0, 8.0, 70.0, 20.0, 30.0, 58.0]],
    }
    if cfg.MODEL.KEYPOINT_ON:
        triangle["keypoints"] = np.array([[40.0, 30.0, 2.0]] * 17)
    instances = annotations_to_instances(
        [triangle], (HEIGHT, WIDTH), mask_format=cfg.INPUT.MASK_FORMAT
    )
    if cfg.INPUT.POINT_SUP:
        instances.remove("gt_masks")
        instances.gt_point_coords = torch.tensor([[[30.5, 30.5], [12.5, 50.5]]])
        instances.gt_point_labels = torch.tensor([[1.0, 0.0]])
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    return {"image": image, "height": HEIGHT, "width": WIDTH, "instances": instances}


@cache
def architecture(name: str) -> tuple[str, str]:
    cfg = load(name, SMALL)
    return cfg.MODEL.dump(), cfg.INPUT.MASK_FORMAT


@cache
def step_and_inference(name: str) -> tuple[dict, list[str], list[dict]]:
    """Losses, names of parameters without a finite gradient, and outputs of one small image."""
    torch.manual_seed(0)
    cfg = load(name, SMALL)
    model = build_model(cfg)
    data = sample(cfg)
    with EventStorage():
        losses = model([data])
    sum(losses.values()).backward()
    without_gradient = without_finite_gradient(model)
    model.eval()
    with torch.no_grad():
        outputs = model([data])
    return {name: loss.item() for name, loss in losses.items()}, without_gradient, outputs


@pytest.mark.parametrize("name", LEAVES)
def test_a_config_trains_one_step_and_predicts_masks(name):
    cfg = load(name, SMALL)
    # Configs that differ in data and schedule alone share a run.
    twin = next(other for other in LEAVES if architecture(other) == architecture(name))
    losses, without_gradient, outputs = step_and_inference(twin)

    stages = [""]
    if cfg.MODEL.ROI_HEADS.NAME == "PointRendCascadeROIHeads":
        stages = ["_stage0", "_stage1", "_stage2"]
    of_stages = {f"{name}{stage}" for name in ("loss_cls", "loss_box_reg") for stage in stages}
    box_losses = {"loss_rpn_cls", "loss_rpn_loc"} | of_stages
    box_losses |= {"loss_keypoint"} if cfg.MODEL.KEYPOINT_ON else set()
    assert losses.keys() == box_losses | LOSSES[cfg.MODEL.ROI_MASK_HEAD.NAME]
    assert all(math.isfinite(loss) for loss in losses.values())
    assert without_gradient == []

    masks = outputs[0]["instances"].pred_masks
    assert masks.dtype == torch.bool
    assert masks.shape == (3, HEIGHT, WIDTH)
