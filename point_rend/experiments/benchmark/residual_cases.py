"""Benchmark cases of the residual point head against the standard one, with the same weights."""

from collections.abc import Callable

import torch
from detectron2.modeling import build_mask_head, build_sem_seg_head
from torch import nn

from point_rend.experiments.benchmark.case import Case, Comparison
from point_rend.experiments.benchmark.instance_cases import (
    POINTREND,
    boxes_and_classes,
    instance_config,
)
from point_rend.experiments.benchmark.random_inputs import (
    DetectedImage,
    pyramid_shapes,
    randomize,
    share_weights,
)
from point_rend.experiments.benchmark.semantic_cases import (
    COARSE_STRIDES,
    case_name,
    given_coarse_logits,
    given_features,
    given_shapes,
    labels,
    semantic_config,
)
from point_rend.experiments.benchmark.settings import Settings


def residual_cases(settings: Settings) -> list[Case]:
    """Return cases of the mask head and of the semantic head, each with both point heads."""
    grid = boxes_and_classes(settings, (100,), (80,))
    classes = settings.classes or (19,)
    return [
        *(_mask_case(n, k) for n, k in grid),
        *(_semantic_case(stride, k, settings) for stride in COARSE_STRIDES for k in classes),
    ]


def _head_pair(
    build: Callable[[list[str]], nn.Module], settings: Settings
) -> tuple[nn.Module, nn.Module]:
    """Build a head with the residual and with the standard point head, by options."""
    residual, standard = (
        build([*settings.shared_opts, *settings.opts, "MODEL.POINT_HEAD.NAME", name])
        for name in ("ResidualPointHead", "StandardPointHead")
    )
    randomize(residual, torch.Generator().manual_seed(settings.seed))
    residual.to(settings.device).eval()
    share_weights(residual, standard)
    return residual, standard.to(settings.device).eval()


def _mask_case(num_boxes: int, num_classes: int) -> Case:
    def build(settings: Settings) -> Comparison:
        def build_head(opts: list[str]) -> nn.Module:
            cfg = instance_config(POINTREND, num_classes, opts)
            return build_mask_head(cfg, pyramid_shapes(settings))

        residual, standard = _head_pair(build_head, settings)
        image = DetectedImage.random(num_boxes, num_classes, settings)
        return Comparison(lambda: image.masks(residual), lambda: image.masks(standard))

    return Case(
        name=f"mask head, residual, {num_boxes} × {num_classes}",
        parameters={"boxes": num_boxes, "classes": num_classes},
        baseline="standard",
        build=build,
    )


def _semantic_case(stride: int, num_classes: int, settings: Settings) -> Case:
    size = settings.sizes.semantic_image

    def build(settings: Settings) -> Comparison:
        def build_head(opts: list[str]) -> nn.Module:
            cfg = semantic_config(num_classes, [*opts, *given_coarse_logits(stride)])
            return build_sem_seg_head(cfg, given_shapes(stride, num_classes, settings))

        residual, standard = _head_pair(build_head, settings)
        generator = torch.Generator().manual_seed(settings.seed)
        features = given_features(stride, num_classes, settings, generator)
        return Comparison(
            lambda: labels(residual, features, size), lambda: labels(standard, features, size)
        )

    return Case(
        name=f"{case_name(stride, num_classes, size)}, residual",
        parameters={"stride": stride, "classes": num_classes},
        baseline="standard",
        build=build,
    )
