"""Small seeded random inputs for heads: features, boxes, ground truth; and small heads."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances

from point_rend import get_config_file, load_config

IMAGE_SIZE = (64, 96)
STRIDES = {"p2": 4, "p3": 8}
CHANNELS = 16
SHAPES = {name: ShapeSpec(channels=CHANNELS, stride=stride) for name, stride in STRIDES.items()}


def small_head_config(*opts: object, implicit: bool = False, num_classes: int = 5) -> CfgNode:
    """Return the config of a small mask head; ``opts`` are further keys and values."""
    name = "implicit_pointrend_R_50_FPN_1x_coco" if implicit else "pointrend_rcnn_R_50_FPN_1x_coco"
    small = [
        *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", num_classes),
        *("MODEL.ROI_HEADS.IN_FEATURES", "('p2', 'p3')", "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
        *("MODEL.ROI_MASK_HEAD.FC_DIM", 32, "MODEL.POINT_HEAD.FC_DIM", 16),
    ]
    opts = [str(x) for x in (*small, *opts)]
    return load_config(get_config_file(f"InstanceSegmentation/{name}.yaml"), opts)


def random_features(num_images: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return one random map per level for images of ``IMAGE_SIZE``."""
    generator = torch.Generator().manual_seed(seed)
    height, width = IMAGE_SIZE
    return {
        name: torch.randn(num_images, CHANNELS, height // s, width // s, generator=generator)
        for name, s in STRIDES.items()
    }


def random_boxes(num_boxes: int, generator: torch.Generator) -> Boxes:
    """Return boxes inside the image, at least 6 pixels wide and high."""
    height, width = IMAGE_SIZE
    size = torch.tensor([width, height])
    corners = torch.rand(num_boxes, 2, generator=generator) * (size - 8)
    extent = 6 + torch.rand(num_boxes, 2, generator=generator) * (size - 8 - corners)
    return Boxes(torch.cat((corners, torch.minimum(corners + extent, size)), dim=1))


def random_proposals(
    boxes_per_image: list[int], num_classes: int = 5, seed: int = 1
) -> list[Instances]:
    """Return the foreground proposals of a training step, with classes and round masks."""
    generator = torch.Generator().manual_seed(seed)
    height, width = IMAGE_SIZE
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    proposals = []
    for count in boxes_per_image:
        boxes = random_boxes(count, generator)
        centers = boxes.get_centers()[:, :, None, None] + torch.randn(
            count, 2, 1, 1, generator=generator
        )
        radii = boxes.tensor[:, 2:3, None] / 4 + 3
        distance = (xs - centers[:, 0]) ** 2 + (ys - centers[:, 1]) ** 2
        proposals.append(
            Instances(
                IMAGE_SIZE,
                proposal_boxes=boxes,
                gt_classes=torch.randint(num_classes, (count,), generator=generator),
                gt_masks=BitMasks(distance < radii**2),
            )
        )
    return proposals


def as_detections(proposals: list[Instances]) -> list[Instances]:
    """Return the proposals' boxes and classes as detections."""
    return [
        Instances(p.image_size, pred_boxes=p.proposal_boxes, pred_classes=p.gt_classes)
        for p in proposals
    ]


def randomize(module: torch.nn.Module, seed: int = 2, scale: float = 0.5) -> None:
    """Draw parameters large enough that masks have boundaries and classes differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * scale * 2 / fan_in**0.5)


def random_mask_head(
    *opts: object, implicit: bool = False, num_classes: int = 5
) -> torch.nn.Module:
    """Return the mask head of :func:`small_head_config` with random weights."""
    torch.manual_seed(0)  # the implicit head draws its frequencies
    cfg = small_head_config(*opts, implicit=implicit, num_classes=num_classes)
    head = build_mask_head(cfg, SHAPES)
    randomize(head, scale=0.2 if implicit else 0.5)  # the implicit head multiplies predictions
    return head
