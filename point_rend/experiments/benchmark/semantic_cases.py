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


def given_coarse_logits(stride: int) -> list[str]:
    """Return the options of a semantic head on given coarse logits of a stride."""
    return [
        *("MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME", GivenCoarseLogits.__name__),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", str(stride.bit_length() - 1)),
    ]


def given_shapes(stride: int, num_classes: int, settings: Settings) -> dict[str, ShapeSpec]:
    """Return the shapes of the features of :func:`given_features`, for building a head."""
    return {
        "p2": ShapeSpec(channels=settings.sizes.pyramid_channels, stride=PYRAMID["p2"]),
        "coarse": ShapeSpec(channels=num_classes, stride=stride),
    }


def case_name(stride: int, num_classes: int, image_size: tuple[int, int]) -> str:
    """Return the title of a case."""
    (height, width), (rows, columns) = image_size, (side // stride for side in image_size)
    return f"semantic head, {rows}×{columns} → {height}×{width}, {num_classes} classes"


def given_features(
    stride: int, num_classes: int, settings: Settings, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw the features of an image and its coarse logits of a stride."""

    def noise(channels: int, stride: int) -> Tensor:
        height, width = (side // stride for side in settings.sizes.semantic_image)
        return smooth_noise(channels, (height, width), generator).to(settings.device)

    return {
        "p2": noise(settings.sizes.pyramid_channels, PYRAMID["p2"]),
        "coarse": noise(num_classes, stride),
    }


def labels(
    head: nn.Module, features: Mapping[str, Tensor], image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the logits (K, H, W) of one of our heads, and the label map."""
    logits = resize_logits(head(features, None, [image_size])[0][0], *image_size)
    return logits, label_map(logits)


def _semantic_case(stride: int, num_classes: int, image_size: tuple[int, int]) -> Case:
    def build(settings: Settings) -> Comparison:
        ours, stock = _semantic_head_pair(stride, num_classes, settings)
        generator = torch.Generator().manual_seed(settings.seed)
        randomize(ours, generator)
        ours.to(settings.device).eval()
        share_weights(ours, stock)
        stock.to(settings.device).eval()
        features = given_features(stride, num_classes, settings, generator)

        def stock_run() -> tuple[Tensor, Tensor]:
            logits = sem_seg_postprocess(stock(features)[0][0], image_size, *image_size)
            return logits, logits.argmax(dim=0)

        return Comparison(lambda: labels(ours, features, image_size), stock_run, label_agreement)

    return Case(
        name=case_name(stride, num_classes, image_size),
        parameters={"stride": stride, "classes": num_classes},
        baseline="stock",
        build=build,
    )


def _semantic_head_pair(
    stride: int, num_classes: int, settings: Settings
) -> tuple[nn.Module, nn.Module]:
    """Build our semantic head and the stock project's on given coarse logits of a stride."""
    shapes = given_shapes(stride, num_classes, settings)
    our_cfg, stock_cfg = semantic_configs(num_classes, settings, given_coarse_logits(stride))
    ours = build_sem_seg_head(our_cfg, shapes)
    with stock_heads():
        return ours, build_sem_seg_head(stock_cfg, shapes)
