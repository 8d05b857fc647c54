"""Configs of backbones other than ResNets, against the recipes that they follow."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from point_rend import add_pointrend_config, load_config
from point_rend.acceleration.prepare import prepared_for_inference
from point_rend.config.checks import check_config
from point_rend.config.trial import check_model
from tests.config import test_semantic_configs as semantic
from tests.config.test_published_configs import (
    COCO,
    COCO_3X,
    LSJ,
    LSJ_SCHEDULES,
    OTHER_BACKBONES,
    POINTREND,
    SMALL,
    flat,
    sample,
)
from tests.config.test_semantic_configs import ADE20K_160K, COCO_PANOPTIC, COCO_STUFF, plain
from tests.runs import without_finite_gradient
from tests.tiny_datasets import REPOSITORY

LEAVES = {
    path.stem: path
    for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))
    if not path.name.startswith("Base-") and any(x in path.name for x in OTHER_BACKBONES)
}
RGB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
ADAMW = RGB | {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.LAYER_DECAY": 1.0,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.GAMMA": 0.1,
}
SCALES_480 = {"INPUT.MIN_SIZE_TRAIN": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)}
PUBLISHED_WEIGHTS = "detectron2://ImageNetPretrained"

# Detectron2's projects/ViTDet/configs/COCO: mask_rcnn_vitdet_{b,l}_100ep.py and the model and the
# loader that they import.
VITDET = (
    POINTREND
    | LSJ
    | LSJ_SCHEDULES[100]
    | ADAMW
    | {
        "INPUT.MIN_SIZE_TEST": 1024,
        "INPUT.MAX_SIZE_TEST": 1024,
        "MODEL.BACKBONE.NAME": "build_vitdet_backbone",
        "MODEL.FPN.NORM": "LN",
        "MODEL.ROI_BOX_HEAD.NORM": "LN",
        "MODEL.RESNETS.NORM": "FrozenBN",  # not read
        "MODEL.VIT.IMAGE_SIZE": 1024,
        "SOLVER.BASE_LR": 1e-4,
        "SOLVER.WEIGHT_DECAY": 0.1,
        "SOLVER.NO_WEIGHT_DECAY": ["pos_embed"],
        "SOLVER.WARMUP_ITERS": 250,
    }
)
VITDET_B = {
    "MODEL.WEIGHTS": f"{PUBLISHED_WEIGHTS}/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True",
    "MODEL.VIT.EMBED_DIM": 768,
    "MODEL.VIT.DEPTH": 12,
    "MODEL.VIT.NUM_HEADS": 12,
    "MODEL.VIT.GLOBAL_BLOCKS": [2, 5, 8, 11],
    "MODEL.VIT.DROP_PATH_RATE": 0.1,
    "SOLVER.LAYER_DECAY": 0.7,
}
VITDET_L = {
    "MODEL.WEIGHTS": f"{PUBLISHED_WEIGHTS}/MAE/mae_pretrain_vit_large.pth?matching_heuristics=True",
    "MODEL.VIT.EMBED_DIM": 1024,
    "MODEL.VIT.DEPTH": 24,
    "MODEL.VIT.NUM_HEADS": 16,
    "MODEL.VIT.GLOBAL_BLOCKS": [5, 11, 17, 23],
    "MODEL.VIT.DROP_PATH_RATE": 0.4,
    "SOLVER.LAYER_DECAY": 0.8,
}
# The same project, cascade_mask_rcnn_swin_{b,l}_in21k_50ep.py.
SWIN_LSJ = VITDET | {
    "MODEL.BACKBONE.NAME": "build_swin_fpn_backbone",
    "MODEL.SWIN.DEPTHS": [2, 2, 18, 2],
    "MODEL.SWIN.WINDOW_SIZE": 7,
    "MODEL.SWIN.DROP_PATH_RATE": 0.4,
    "SOLVER.BASE_LR": 4e-5,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.NO_WEIGHT_DECAY": ["relative_position_bias_table"],
    "SOLVER.MAX_ITER": 184375 // 2,
    "SOLVER.STEPS": (163889 // 2, 177546 // 2),
    "SOLVER.WARMUP_ITERS": 125,
}
SWIN_B = {
    "MODEL.WEIGHTS": f"{PUBLISHED_WEIGHTS}/swin/swin_base_patch4_window7_224_22k.pth",
    "MODEL.SWIN.EMBED_DIM": 128,
    "MODEL.SWIN.NUM_HEADS": [4, 8, 16, 32],
}
SWIN_L = {
    "MODEL.WEIGHTS": f"{PUBLISHED_WEIGHTS}/swin/swin_large_patch4_window7_224_22k.pth",
    "MODEL.SWIN.EMBED_DIM": 192,
    "MODEL.SWIN.NUM_HEADS": [6, 12, 24, 48],
}
# SwinTransformer/Swin-Transformer-Object-Detection,
# configs/swin/mask_rcnn_swin_{tiny,small}_patch4_window7_mstrain_480-800_adamw_3x_coco.py; its 36
# epochs are Detectron2's 3x schedule.
SWIN_WEIGHTS = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"
SWIN = ADAMW | {
    "MODEL.WEIGHTS": f"{SWIN_WEIGHTS}/swin_tiny_patch4_window7_224.pth",
    "MODEL.BACKBONE.NAME": "build_swin_fpn_backbone",
    "MODEL.SWIN.EMBED_DIM": 96,
    "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
    "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],
    "MODEL.SWIN.WINDOW_SIZE": 7,
    "MODEL.SWIN.DROP_PATH_RATE": 0.2,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.NO_WEIGHT_DECAY": ["relative_position_bias_table"],
    "SOLVER.WARMUP_ITERS": 500,
}
SWIN_S = {
    "MODEL.WEIGHTS": f"{SWIN_WEIGHTS}/swin_small_patch4_window7_224.pth",
    "MODEL.SWIN.DEPTHS": [2, 2, 18, 2],
}
# open-mmlab/mmsegmentation, configs/swin/
# upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K.py.
SWIN_ADE20K = {
    "MODEL.SWIN.DROP_PATH_RATE": 0.3,
    "SOLVER.BASE_LR": 6e-5,
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.POLY_LR_POWER": 1.0,
    "SOLVER.WARMUP_ITERS": 1500,
    "SOLVER.WARMUP_FACTOR": 1e-6,
    "SOLVER.WEIGHT_DECAY": 0.01,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
}
# Detectron2's projects/MViTv2/configs: mask_rcnn_mvitv2_t_3x.py, cascade_mask_rcnn_mvitv2_s_3x.py
# and _b_3x.py.
MVIT = (
    POINTREND
    | COCO
    | ADAMW
    | SCALES_480
    | {
        "MODEL.WEIGHTS": f"{PUBLISHED_WEIGHTS}/mvitv2/MViTv2_T_in1k.pyth",
        "MODEL.BACKBONE.NAME": "build_mvit_fpn_backbone",
        "MODEL.MVIT.EMBED_DIM": 96,
        "MODEL.MVIT.LAST_BLOCKS": [0, 2, 7, 9],
        "MODEL.MVIT.DROP_PATH_RATE": 0.2,
        "SOLVER.IMS_PER_BATCH": 64,
        "SOLVER.BASE_LR": 1.6e-4,
        "SOLVER.WEIGHT_DECAY": 0.1,
        "SOLVER.NO_WEIGHT_DECAY": ["pos_embed", "rel_pos_h", "rel_pos_w"],
        "SOLVER.WARMUP_ITERS": 250,
        "SOLVER.MAX_ITER": 67500,
        "SOLVER.STEPS": (52500, 62500),
        "SOLVER.AMP.ENABLED": True,
    }
)
MVIT_S = {
    "MODEL.WEIGHTS": f"{PUBLISHED_WEIGHTS}/mvitv2/MViTv2_S_in1k.pyth",
    "MODEL.MVIT.LAST_BLOCKS": [0, 2, 13, 15],
}
MVIT_B = {
    "MODEL.WEIGHTS": f"{PUBLISHED_WEIGHTS}/mvitv2/MViTv2_B_in1k.pyth",
    "MODEL.MVIT.LAST_BLOCKS": [1, 4, 20, 23],
    "MODEL.MVIT.DROP_PATH_RATE": 0.4,
}
# Ours: half the widths of the other configs, and small images.
MOBILE = RGB | {
    "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
    "MODEL.TIMM.NAME": "mobilenetv3_large_100",
    "MODEL.TIMM.NORM": "FrozenBN",
    "MODEL.WEIGHTS": "timm://mobilenetv3_large_100.ra_in1k",
    "MODEL.FPN.OUT_CHANNELS": 128,
    "MODEL.POINT_HEAD.FC_DIM": 128,
    "INPUT.MIN_SIZE_TRAIN": (320, 352, 384, 416, 448, 480),
    "INPUT.MAX_SIZE_TRAIN": 640,
    "INPUT.MIN_SIZE_TEST": 480,
    "INPUT.MAX_SIZE_TEST": 640,
}
MOBILE_INSTANCES = {
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 512,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 128,
    "MODEL.ROI_MASK_HEAD.FC_DIM": 512,
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": 4,
}
MOBILE_STUFF = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64,
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": 2048,
}
STUFF_POINTREND = semantic.pointrend(2, train=1024)
NOT_OF_SWIN = {key for key in ADE20K_160K if key.startswith(("SOLVER", "MODEL.RESNETS"))}
ADE20K = {
    key: value
    for key, value in ADE20K_160K.items()
    if key not in NOT_OF_SWIN - {"SOLVER.MAX_ITER", "SOLVER.LR_SCHEDULER_NAME"}
}
PUBLISHED: dict[str, dict[str, object]] = {
    "pointrend_rcnn_ViTDet_B_100ep_LSJ_coco": VITDET | VITDET_B,
    "pointrend_rcnn_ViTDet_L_100ep_LSJ_coco": VITDET | VITDET_L,
    "pointrend_rcnn_Swin_T_FPN_3x_coco": POINTREND | COCO_3X | SCALES_480 | SWIN,
    "pointrend_rcnn_Swin_S_FPN_3x_coco": POINTREND | COCO_3X | SCALES_480 | SWIN | SWIN_S,
    "pointrend_rcnn_Swin_B_FPN_50ep_LSJ_coco": SWIN_LSJ | SWIN_B,
    "pointrend_rcnn_Swin_L_FPN_50ep_LSJ_coco": SWIN_LSJ | SWIN_L,
    "pointrend_rcnn_MViTv2_T_FPN_3x_coco": MVIT,
    "pointrend_rcnn_MViTv2_S_FPN_3x_coco": MVIT | MVIT_S,
    "pointrend_rcnn_MViTv2_B_FPN_3x_coco": MVIT | MVIT_B,
    "pointrend_rcnn_MobileNetV3_L_FPN_3x_coco": POINTREND | COCO_3X | MOBILE | MOBILE_INSTANCES,
    "pointrend_panoptic_Swin_T_FPN_3x_coco": COCO_PANOPTIC | COCO_3X | SCALES_480 | SWIN
    | {key: COCO_PANOPTIC[key] for key in ("DATASETS.TRAIN", "DATASETS.TEST")},
    "pointrend_semantic_Swin_T_FPN_160k_ade20k": (
        semantic.pointrend(2) | SWIN | ADE20K | SWIN_ADE20K
        | {"MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": True}
    ),
    "pointrend_semantic_MobileNetV3_L_FPN_1x_coco": (
        STUFF_POINTREND | COCO_STUFF | MOBILE | MOBILE_STUFF
    ),
}  # fmt: skip


def load(name: str, opts: tuple[str, ...] = ()) -> CfgNode:
    return load_config(str(LEAVES[name]), opts)


def test_the_table_names_every_config() -> None:
    assert sorted(PUBLISHED) == sorted(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_a_config_has_the_values_of_its_recipe(name: str) -> None:
    values, expected = flat(load(name)), PUBLISHED[name]
    assert {key: plain(values[key]) for key in expected} == {
        key: plain(value) for key, value in expected.items()
    }


@pytest.mark.parametrize("name", LEAVES)
def test_a_config_does_not_contradict_itself_and_its_model_can_be_built(name: str) -> None:
    cfg = load(name)
    for training in (True, False):
        check_config(cfg, training=training)
    if not any(size in name for size in ("_L_100ep", "_L_FPN_50ep")):  # larger twins of others
        check_model(cfg, training=False)


@pytest.mark.parametrize("name", LEAVES)
def test_detectron2_reads_a_config_alike(name: str) -> None:
    expected = get_cfg()
    add_pointrend_config(expected)
    expected.merge_from_file(str(LEAVES[name]), allow_unsafe=False)
    assert load(name) == expected


# --- one step of every architecture -------------------------------------------------------------

# Transformers of a few narrow blocks, in which no kind of block is missing.
TINY = (
    *("MODEL.VIT.IMAGE_SIZE", "128", "MODEL.VIT.EMBED_DIM", "16", "MODEL.VIT.DEPTH", "2"),
    *("MODEL.VIT.NUM_HEADS", "2", "MODEL.VIT.GLOBAL_BLOCKS", "[1]", "INPUT.LSJ.SIZE", "[128, 128]"),
    *("MODEL.SWIN.EMBED_DIM", "12", "MODEL.SWIN.DEPTHS", "[1, 1, 2, 1]"),
    *("MODEL.SWIN.NUM_HEADS", "[1, 2, 3, 6]", "MODEL.MVIT.EMBED_DIM", "8"),
    *("MODEL.MVIT.LAST_BLOCKS", "[0, 2, 3, 4]", "MODEL.TIMM.NAME", "mobilenetv3_small_050"),
    *("INPUT.MAX_SIZE_TEST", "128"),
)
OF_HEADS = {"_rcnn_": SMALL, "_panoptic_": semantic.SMALL, "_semantic_": semantic.SMALL}
# Twins differ in the size of the backbone alone.
ARCHITECTURES = [
    "pointrend_rcnn_ViTDet_B_100ep_LSJ_coco",
    "pointrend_rcnn_Swin_T_FPN_3x_coco",
    "pointrend_rcnn_MViTv2_T_FPN_3x_coco",
    "pointrend_rcnn_MobileNetV3_L_FPN_3x_coco",
    "pointrend_panoptic_Swin_T_FPN_3x_coco",
    "pointrend_semantic_Swin_T_FPN_160k_ade20k",
    "pointrend_semantic_MobileNetV3_L_FPN_1x_coco",
]
INSTANCE_LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"} | {
    "loss_mask",
    "loss_mask_point",
}
SEMANTIC_LOSSES = {"loss_sem_seg", "loss_sem_seg_point"}


def tiny(name: str, *opts: str) -> CfgNode:
    (small,) = (value for key, value in OF_HEADS.items() if key in name)
    return load(name, (*small, *TINY, *opts))


@cache
def step_and_inference(name: str) -> tuple[dict[str, float], list[str], Any]:
    """Losses, names of parameters without a finite gradient, and outputs of one small image."""
    torch.manual_seed(0)
    cfg = tiny(name)
    model = build_model(cfg)
    data = sample(cfg) if "_rcnn_" in name else semantic.sample(cfg)
    with EventStorage():
        losses = model([data])
    sum(losses.values()).backward()
    missing = without_finite_gradient(model)
    with torch.no_grad():
        outputs = model.eval()([data])[0]
    return {key: loss.item() for key, loss in losses.items()}, missing, outputs


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_config_trains_one_step_and_predicts(name: str) -> None:
    losses, missing, outputs = step_and_inference(name)
    expected = INSTANCE_LOSSES if "_semantic_" not in name else set()
    expected = expected | (SEMANTIC_LOSSES if "_rcnn_" not in name else set())
    assert losses.keys() == expected
    assert all(math.isfinite(loss) for loss in losses.values())
    assert missing == []
    if "_rcnn_" in name:
        assert outputs["instances"].pred_masks.shape == (3, 64, 96)
    else:
        assert torch.isfinite(outputs["sem_seg"]).all()


@pytest.mark.parametrize(
    "name",
    ["pointrend_panoptic_Swin_T_FPN_3x_coco", "pointrend_semantic_MobileNetV3_L_FPN_1x_coco"],
)
def test_panoptic_and_semantic_models_take_vision_transformers_and_pad_to_squares(
    name: str,
) -> None:
    vitdet = ("MODEL.BACKBONE.NAME", "build_vitdet_backbone", "MODEL.FPN.NORM", "LN")
    cfg = tiny(name, *vitdet, "MODEL.BACKBONE.FREEZE_AT", "0")
    model, seen = build_model(cfg), []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    data = semantic.sample(cfg)
    with EventStorage():
        losses = model([data])
    sum(losses.values()).backward()
    assert without_finite_gradient(model) == []
    with torch.no_grad():
        outputs = model.eval()([data])[0]
    assert seen == [(1, 3, 128, 128)] * 2
    assert outputs["sem_seg"].shape[1:] == (semantic.HEIGHT, semantic.WIDTH)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_faster_modules_give_the_same_maps(name: str) -> None:
    backbone = build_model(tiny(name)).backbone.eval()
    images = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        expected = backbone(images)
        with prepared_for_inference(backbone):
            found = backbone(images)
    assert found.keys() == expected.keys()
    for level, maps in expected.items():
        torch.testing.assert_close(found[level], maps, rtol=1e-4, atol=1e-5)


def test_every_leaf_lies_in_a_folder_of_its_task() -> None:
    folders = {"rcnn": "Instance", "panoptic": "Panoptic", "semantic": "Semantic"}
    for name, path in LEAVES.items():
        assert Path(path).parent.name == f"{folders[name.split('_')[1]]}Segmentation"
