"""Small seeded random inputs for the semantic head, a small head, and the config of a model."""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab import add_deeplab_config
from torch import nn

from point_rend import PointRendSemSegHead, PointSampler, StandardPointHead, add_pointrend_config
from tests.synthetic import CHANNELS, IMAGE_SIZE, SHAPES, randomize

__all__ = [
    "IGNORE",
    "SHAPES",
    "PointwiseCoarseHead",
    "pointwise_head",
    "random_labels",
    "small_deeplab_config",
    "small_semantic_config",
    "smooth_images",
    "tiny_model_config",
]

IGNORE = 255


def small_semantic_config(*opts: object) -> CfgNode:
    """Return the config of a small head over SemanticFPN; ``opts`` are further keys and values."""
    cfg = get_cfg()
    add_pointrend_config(cfg)
    small = [
        *("MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NAME", "PointRendSemSegHead"),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 6, "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"]),
        *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 4),
        *("MODEL.SEM_SEG_HEAD.NORM", "", "MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", False),
        *("MODEL.POINT_HEAD.TRAIN_NUM_POINTS", 50, "MODEL.POINT_HEAD.FC_DIM", 16),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2, "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 200),
    ]
    cfg.merge_from_list([x if isinstance(x, list) else str(x) for x in (*small, *opts)])
    return cfg


def small_deeplab_config(name: str) -> CfgNode:
    """Return the config of a small head over ``DeepLabV3Head`` or ``DeepLabV3PlusHead``."""
    cfg = small_semantic_config(
        *("MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME", name),
        *("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8, "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 3),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3"]),
    )
    add_deeplab_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.ASPP_CHANNELS = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 8
    if name == "DeepLabV3PlusHead":
        cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3"]
        cfg.MODEL.SEM_SEG_HEAD.PROJECT_FEATURES = ["p2"]
        cfg.MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS = [4]
        cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 4
        cfg.MODEL.POINT_HEAD.SUBDIVISION_STEPS = 2
    return cfg


def random_labels(num_images: int, num_classes: int, seed: int = 5) -> torch.Tensor:
    """Return label maps of ``IMAGE_SIZE`` in blocks of 8×8 pixels, some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = IMAGE_SIZE[0] // 8, IMAGE_SIZE[1] // 8
    blocks = torch.randint(num_classes + 1, (num_images, rows, columns), generator=generator)
    blocks[blocks == num_classes] = IGNORE
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


class PointwiseCoarseHead(nn.Module):
    """A user's coarse head, one 1×1 convolution: cells do not see each other or the padding."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self.common_stride = 4
        self.conv = nn.Conv2d(input_shape["p2"].channels, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 1)

    def layers(self, features):
        return self.conv(features["p2"])

    def losses(self, predictions, targets):
        upsampled = nn.functional.interpolate(predictions, scale_factor=4, mode="bilinear")
        return {
            "loss_sem_seg": nn.functional.cross_entropy(upsampled, targets, ignore_index=IGNORE)
        }


def pointwise_head() -> PointRendSemSegHead:
    """Return a head built without a config, in which only rendering could mix cells or images."""
    torch.manual_seed(0)
    head = PointRendSemSegHead(
        coarse_sem_seg_head=PointwiseCoarseHead(small_semantic_config(), SHAPES),
        point_head=StandardPointHead(in_channels=CHANNELS, coarse_channels=6, num_classes=6),
        in_features={"p2": 4},
        sampler=PointSampler(num_points=40),
        steps=2,
        points_per_step=150,
        ignore_value=IGNORE,
    )
    randomize(head)
    return head


def smooth_images(sizes: list[tuple[int, int]], seed: int = 0) -> list[dict]:
    """Return smooth images with labels; each depends only on its number and size."""
    inputs = []
    for number, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(seed + number)
        small = torch.rand(1, 3, 6, 6, generator=generator) * 255
        image = nn.functional.interpolate(small, size=size, mode="bicubic")[0].clamp(0, 255)
        labels = torch.randint(6, size, generator=generator)
        inputs.append({"image": image, "sem_seg": labels})
    return inputs


def tiny_model_config(meta_architecture: str) -> CfgNode:
    """Return the config of a model of a small ResNet-18 FPN and the semantic PointRend head."""
    cfg = get_cfg()
    add_pointrend_config(cfg)
    opts = [
        *("MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", meta_architecture),
        *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RESNETS.DEPTH", 18),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16),
        *("MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
        *("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']"),
        *("MODEL.PIXEL_STD", "[1e6, 1e6, 1e6]"),  # frozen norms of an untrained network explode
        *("MODEL.SEM_SEG_HEAD.NAME", "PointRendSemSegHead", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 6),
        *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.NORM", "''"),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", 2, "MODEL.POINT_HEAD.FC_DIM", 16),
    ]
    cfg.merge_from_list([str(x) for x in opts])
    return cfg
