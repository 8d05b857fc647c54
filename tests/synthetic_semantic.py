"""Small random inputs for the semantic head. All of it from a seed."""

import torch
from detectron2.config import CfgNode, get_cfg

from point_rend import add_pointrend_config
from tests.synthetic import IMAGE_SIZE, SHAPES

__all__ = ["IGNORE", "SHAPES", "random_labels", "small_semantic_config"]

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


def random_labels(num_images: int, num_classes: int, seed: int = 5) -> torch.Tensor:
    """Return label maps of ``IMAGE_SIZE`` in blocks of 8×8 pixels, some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = IMAGE_SIZE[0] // 8, IMAGE_SIZE[1] // 8
    blocks = torch.randint(num_classes + 1, (num_images, rows, columns), generator=generator)
    blocks[blocks == num_classes] = IGNORE
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
