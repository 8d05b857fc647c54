"""A new point head: it predicts a correction that is added to the coarse logits."""

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

import point_rend
from point_rend import BoundPointHead, FineGrainedFeatures, PointPredictor, point_sample
from point_rend.rendering.uncertainty import select_class_channel


@point_rend.POINT_HEAD_REGISTRY.register()
class ResidualPointHead(point_rend.StandardPointHead):
    """A head that returns the interpolated coarse logits before any training."""

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Map (N, D, P) and (N, K, P) to logits (N, K, P). This alone makes a complete head."""
        return coarse + super().forward(fine, coarse)

    def bind(
        self, fine: FineGrainedFeatures, num_regions: int, points_per_region: int
    ) -> BoundPointHead:
        """Bind the correction as the standard head does: the same logits for less work."""
        return BoundResidual(super().bind(fine, num_regions, points_per_region))


class BoundResidual:
    """A residual head that is bound to the features of its images."""

    def __init__(self, correction: BoundPointHead) -> None:
        self.correction = correction

    def at(
        self, coarse: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None
    ) -> PointPredictor:
        """Bind regions: points (N, P, 2) to logits of their classes, (N, 1, P), or of all."""
        correct = self.correction.at(coarse, boxes, classes)
        logits = coarse if classes is None else select_class_channel(coarse, classes)
        return lambda coords: point_sample(logits, coords) + correct(coords)


def main() -> None:
    """Build the head from a config, and evaluate 784 points of an image in both forms."""
    config_file = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
    opts = ["MODEL.POINT_HEAD.NAME", "ResidualPointHead"]
    cfg = point_rend.load_config(point_rend.get_config_file(config_file), opts)
    head = point_rend.build_point_head(cfg, ShapeSpec(channels=256), num_classes=80)
    p2, coarse, points = torch.rand(1, 256, 50, 76), torch.rand(1, 80, 7, 7), torch.rand(1, 784, 2)
    with torch.no_grad():
        plain = head(point_sample(p2, points), point_sample(coarse, points))
        features = FineGrainedFeatures([p2], frames=[1.0])
        bound = point_rend.bind_point_head(head, features, 1, 784).at(coarse)(points)
    print(f"logits {tuple(bound.shape)}, largest difference {(bound - plain).abs().max():.0e}")


if __name__ == "__main__":
    main()
