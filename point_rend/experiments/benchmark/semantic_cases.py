"""Benchmark cases of the semantic head, from given coarse logits to the label map.

Shapes: K classes, H and W of the image.
"""

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

from point_rend import get_config_file, load_config, stock_heads
from point_rend.experiments.benchmark.case import Case, Comparison, label_agreement
from point_rend.experiments.benchmark.random_inputs import (
    PYRAMID,
    randomize,
    share_weights,
    smooth_noise,
)
from point_rend.experiments.benchmark.settings import Settings
from point_rend.meta_arch import resize_logits
from point_rend.rendering.uncertainty import label_map

SEMANTIC = "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml"
COARSE_STRIDES = (16, 4)  # 64×128 and 256×512 of an image of 1024×2048


@SEM_SEG_HEADS_REGISTRY.register()
class GivenCoarseLogits(nn.Module):
    """A coarse head that returns the feature "coarse", so that rendering alone is timed."""

    def __init__(self, _: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> None:
        super().__init__()
        self.common_stride = input_shape["coarse"].stride

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the logits."""
        return features["coarse"]

    def losses(self, *_: Tensor) -> dict[str, Tensor]:
        """Return no losses: nothing is trained here."""
        return {}


def semantic_cases(settings: Settings) -> list[Case]:
    """Return the cases of the semantic head, over coarse strides and classes."""
    classes = settings.classes or (19,)
    image_size = settings.sizes.semantic_image
    return [_semantic_case(stride, k, image_size) for stride in COARSE_STRIDES for k in classes]


def semantic_config(num_classes: int, opts: Sequence[str] = ()) -> CfgNode:
    """Read the config of a semantic model."""
    classes = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(num_classes)]
    return load_config(get_config_file(SEMANTIC), [*classes, *opts])


def semantic_configs(
    num_classes: int, settings: Settings, opts: Sequence[str] = ()
) -> tuple[CfgNode, CfgNode]:
    """Read our config of a semantic model and the stock project's, with more options for both."""
    shared = [*settings.shared_opts, *opts]
    return (
        semantic_config(num_classes, [*shared, *settings.opts]),
        semantic_config(num_classes, shared),
    )


def _semantic_case(stride: int, num_classes: int, image_size: tuple[int, int]) -> Case:
    height, width = image_size
    coarse_size = (height // stride, width // stride)
    fine_size = (height // PYRAMID["p2"], width // PYRAMID["p2"])

    def build(settings: Settings) -> Comparison:
        channels = settings.sizes.pyramid_channels
        ours, stock = _semantic_head_pair(stride, num_classes, settings)
        generator = torch.Generator().manual_seed(settings.seed)
        randomize(ours, generator)
        ours.to(settings.device).eval()
        share_weights(ours, stock)
        stock.to(settings.device).eval()
        features = {
            "p2": smooth_noise(channels, fine_size, generator).to(settings.device),
            "coarse": smooth_noise(num_classes, coarse_size, generator).to(settings.device),
        }

        def our_run() -> tuple[Tensor, Tensor]:
            logits = resize_logits(ours(features, None, [image_size])[0][0], height, width)
            return logits, label_map(logits)

        def stock_run() -> tuple[Tensor, Tensor]:
            logits = sem_seg_postprocess(stock(features)[0][0], image_size, height, width)
            return logits, logits.argmax(dim=0)

        return Comparison(our_run, stock_run, label_agreement)

    rows, columns = coarse_size
    return Case(
        name=f"semantic head, {rows}×{columns} → {height}×{width}, {num_classes} classes",
        parameters={"stride": stride, "classes": num_classes},
        baseline="stock",
        build=build,
    )


def _semantic_head_pair(
    stride: int, num_classes: int, settings: Settings
) -> tuple[nn.Module, nn.Module]:
    """Build our semantic head and the stock project's on given coarse logits of a stride."""
    shapes = {
        "p2": ShapeSpec(channels=settings.sizes.pyramid_channels, stride=PYRAMID["p2"]),
        "coarse": ShapeSpec(channels=num_classes, stride=stride),
    }
    opts = [
        *("MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME", GivenCoarseLogits.__name__),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", str(stride.bit_length() - 1)),
    ]
    our_cfg, stock_cfg = semantic_configs(num_classes, settings, opts)
    ours = build_sem_seg_head(our_cfg, shapes)
    with stock_heads():
        return ours, build_sem_seg_head(stock_cfg, shapes)
