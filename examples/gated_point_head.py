"""A new point head: at each point it weighs the coarse prediction against its own."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

import point_rend as pr
from point_rend.rendering.uncertainty import select_class_channel


@pr.POINT_HEAD_REGISTRY.register()
class GatedPointHead(nn.Module):
    """A mean of the coarse logits and those of an MLP, weighted by a gate in [0, 1]."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.mlp = pr.StandardPointHead(cfg, input_shape)
        inputs = {"in_channels": input_shape.channels, "coarse_channels": self.mlp.coarse_channels}
        self.gate = pr.StandardPointHead(**inputs, num_classes=1, num_fc=0)  # a linear layer

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Map (N, D, P) and (N, K, P) to logits (N, K, P). This alone makes a complete head."""
        return torch.lerp(coarse, self.mlp(fine, coarse), self.gate(fine, coarse).sigmoid())

    def bind(self, fine: pr.FineGrainedFeatures, regions: int, points: int) -> pr.BoundPointHead:
        """Bind both parts as the standard head does: the same logits for less work."""
        return BoundGated(*(x.bind(fine, regions, points) for x in (self.mlp, self.gate)))


class BoundGated:
    """A gated head that is bound to the features of its images."""

    def __init__(self, mlp: pr.BoundPointHead, gate: pr.BoundPointHead) -> None:
        self.mlp, self.gate = mlp, gate

    def at(
        self, coarse: Tensor, boxes: Tensor | None = None, classes: Tensor | None = None
    ) -> pr.PointPredictor:
        """Bind regions: points (N, P, 2) to logits of their classes, (N, 1, P), or of all."""
        mlp, gate = self.mlp.at(coarse, boxes, classes), self.gate.at(coarse, boxes)
        start = coarse if classes is None else select_class_channel(coarse, classes)
        return lambda xy: torch.lerp(pr.point_sample(start, xy), mlp(xy), gate(xy).sigmoid())


def main() -> None:
    """Build the head from a config, and evaluate 784 points of an image in both forms."""
    config_file = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
    cfg = pr.load_config(config_file, ["MODEL.POINT_HEAD.NAME", "GatedPointHead"])
    head = pr.build_point_head(cfg, ShapeSpec(channels=256), num_classes=80)
    p2, coarse, points = torch.rand(1, 256, 50, 76), torch.rand(1, 80, 7, 7), torch.rand(1, 784, 2)
    bound = pr.bind_point_head(head, pr.FineGrainedFeatures([p2], frames=[1.0]), 1, 784)
    logits = head(pr.point_sample(p2, points), pr.point_sample(coarse, points))
    difference = (bound.at(coarse)(points) - logits).abs().max()
    print(f"logits {tuple(logits.shape)}, largest difference {difference:.0e}")


if __name__ == "__main__":
    main()
