"""A new uncertainty: the entropy over all classes instead of the margin of the best two."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

from point_rend import PointRendSemSegHead, get_config_file, load_config
from point_rend.rendering.recording import recorded_renderings


def entropy(logits: Tensor) -> Tensor:
    """Rate logits (N, K, ...) by the entropy of their softmax, (N, 1, ...) from 0 to log K."""
    log_probabilities = logits.log_softmax(dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1, keepdim=True)


@SEM_SEG_HEADS_REGISTRY.register()
class EntropySemSegHead(PointRendSemSegHead):
    """A PointRend head that trains and renders where the entropy is largest."""

    @classmethod
    def from_config(cls, cfg, input_shape):
        """Read all arguments from the config, except for the uncertainty."""
        return super().from_config(cfg, input_shape) | {"uncertainty": entropy}


def main() -> list[float]:
    """Print the share of each step's points that both uncertainties select."""
    config_file = get_config_file("Demo/pointrend_semantic_streets.yaml")
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    shapes = {name: ShapeSpec(channels=64, stride=stride) for name, stride in strides.items()}
    torch.manual_seed(0)
    features = {name: torch.randn(1, 64, 128 // s, 256 // s) for name, s in strides.items()}
    cells, weights = [], None
    for name in ("PointRendSemSegHead", "EntropySemSegHead"):
        cfg = load_config(config_file, ["MODEL.SEM_SEG_HEAD.NAME", name])
        head = SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.NAME)(cfg, shapes).eval()
        weights = weights or head.state_dict()
        head.load_state_dict(weights)  # the same network: only the points differ
        with torch.no_grad(), recorded_renderings(head) as renderings:
            head(features)
        _, *steps = renderings[0].steps()
        cells.append([{tuple(point.tolist()) for point in step.coords[0]} for step in steps])
    shares = [len(ours & theirs) / len(ours) for ours, theirs in zip(*cells, strict=True)]
    print("points in common:", ", ".join(f"{share:.0%}" for share in shares))
    return shares


if __name__ == "__main__":
    main()
