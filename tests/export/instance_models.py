"""Small instance models with random weights that detect much in noise and nothing in black."""

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from torch import Tensor, nn

from point_rend import load_config
from tests.synthetic import randomize
from tests.tiny_datasets import POINTREND, TINY_MODEL

SMALL = [
    *TINY_MODEL,
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "150", "MODEL.RPN.POST_NMS_TOPK_TEST", "200"),
    *("MODEL.RPN.NMS_THRESH", "0.9", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "0.7"),
    *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", "3", "TEST.DETECTIONS_PER_IMAGE", "100"),
]
CASCADE = [
    *("MODEL.ROI_HEADS.NAME", "PointRendCascadeROIHeads"),
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "200"),
]


class Pyramid(Backbone):
    """Three levels of 16 channels from three convolutions: an export takes a third of the time."""

    size_divisibility = 16

    def __init__(self) -> None:
        super().__init__()
        self.p2 = nn.Conv2d(3, 16, 7, stride=4, padding=3)
        self.p3, self.p4 = (nn.Conv2d(16, 16, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        p2 = self.p2(images)
        p3 = self.p3(F.relu(p2))
        return {"p2": p2, "p3": p3, "p4": self.p4(F.relu(p3))}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{level}": ShapeSpec(channels=16, stride=2**level) for level in (2, 3, 4)}


def noise(height: int, width: int, *, share: float = 1.0, seed: int = 0) -> Tensor:
    """Return an image (3, height, width) of uniform noise from 0 to 255 · share."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, height, width, generator=generator) * 255 * share


def detecting_model(*opts: str, config_file: str = POINTREND) -> nn.Module:
    """Build a model, and make its scores of objects small in black images, not in noise."""
    torch.manual_seed(0)
    model = build_model(load_config(config_file, [*SMALL, *opts])).eval()
    heads = model.roi_heads
    model.backbone = Pyramid()
    for part in (model.backbone, heads.box_head, heads.mask_head):
        randomize(part)
    stages = heads.box_head if isinstance(heads.box_head, nn.ModuleList) else [heads.box_head]
    predictors = heads.box_predictor if len(stages) > 1 else [heads.box_predictor]
    with torch.no_grad():
        model.backbone.p2.weight /= 64  # features of size 1 from pixels of size 64
        for head, predictor in zip(stages, predictors, strict=True):
            seen: list[Tensor] = []
            handle = head.register_forward_hook(lambda *x, seen=seen: seen.append(x[2].mean(0)))
            for image in (noise(64, 96, share=0), noise(64, 96)):
                infer(model, [image])
            handle.remove()
            black, noisy = seen
            direction = (black - noisy) / (black - noisy).square().sum()
            predictor.cls_score.weight[:-1] -= 20 * direction
            predictor.cls_score.bias[:-1] += 20 * direction @ noisy
    return model


@torch.no_grad()
def infer(model: nn.Module, images: list[Tensor]) -> list:
    """Return the instances of Detectron2's model in its frame of resized images."""
    return model.inference([{"image": image} for image in images], do_postprocess=False)


def image_with_one_object(model: nn.Module, height: int, width: int) -> Tensor:
    """Find a dim image with exactly one object."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        image = noise(height, width, share=middle)
        count = len(infer(model, [image])[0])
        if count == 1:
            return image
        low, high = (middle, high) if count == 0 else (low, middle)
    raise AssertionError("no image with one object")
