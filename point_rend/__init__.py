"""PointRend: image segmentation as rendering, for Detectron2.

Importing the package registers its heads. Nothing heavy is imported before it is used: the heads
are registered as soon as Detectron2's models have been imported, in whichever order that happens.
``add_pointrend_config`` or ``load_config`` gives a config with the keys of the heads.

Source: Kirillov, Wu, He, Girshick, "PointRend: Image Segmentation as Rendering", CVPR 2020.
"""

import importlib
from typing import TYPE_CHECKING, Any

from point_rend.utils.imports import NO_DETECTRON2, after_import, lacks_detectron2
from point_rend.utils.package_alias import alias_package
from point_rend.utils.version import __version__ as __version__

if TYPE_CHECKING:
    from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
    from point_rend.color_augmentation import ColorAugSSD, ColorAugSSDTransform
    from point_rend.config.checks import check_config
    from point_rend.config.defaults import add_pointrend_config
    from point_rend.config.files import get_config_file
    from point_rend.config.loading import load_config
    from point_rend.data.augmentation import build_augmentations
    from point_rend.data.loader.loaders import build_test_loader, build_train_loader
    from point_rend.data.mapper import NamingDatasetMapper
    from point_rend.engine.trainer import Trainer
    from point_rend.inference.predictor import Predictor
    from point_rend.mask_head import ImplicitPointRendMaskHead, PointRendMaskHead
    from point_rend.meta_arch import PointRendPanopticFPN, PointRendSemanticSegmentor
    from point_rend.point_head import (
        POINT_HEAD_REGISTRY,
        ImplicitPointHead,
        ResidualPointHead,
        StandardPointHead,
        build_point_head,
    )
    from point_rend.registration import stock_heads
    from point_rend.rendering.bound_head import BoundPointHead, bind_point_head
    from point_rend.rendering.features import FineGrainedFeatures
    from point_rend.rendering.sampling import PointSampler, point_sample
    from point_rend.rendering.subdivision import PointPredictor, SubdivisionPlan, subdivide
    from point_rend.rendering.uncertainty import (
        Uncertainty,
        foreground_uncertainty,
        top2_margin_uncertainty,
    )
    from point_rend.roi_heads import PointRendCascadeROIHeads, PointRendROIHeads
    from point_rend.semantic_seg import CoarseSemSegHead, PointRendSemSegHead

__all__ = [
    "POINT_HEAD_REGISTRY",
    "BoundPointHead",
    "CoarseSemSegHead",
    "ColorAugSSD",
    "ColorAugSSDTransform",
    "FineGrainedFeatures",
    "ImplicitPointHead",
    "ImplicitPointRendMaskHead",
    "NamingDatasetMapper",
    "PointPredictor",
    "PointRendCascadeROIHeads",
    "PointRendMaskHead",
    "PointRendPanopticFPN",
    "PointRendROIHeads",
    "PointRendSemSegHead",
    "PointRendSemanticSegmentor",
    "PointSampler",
    "Predictor",
    "ResidualPointHead",
    "SafeDetectionCheckpointer",
    "StandardPointHead",
    "SubdivisionPlan",
    "Trainer",
    "Uncertainty",
    "add_pointrend_config",
    "bind_point_head",
    "build_augmentations",
    "build_point_head",
    "build_test_loader",
    "build_train_loader",
    "check_config",
    "foreground_uncertainty",
    "get_config_file",
    "load_config",
    "point_sample",
    "stock_heads",
    "subdivide",
    "top2_margin_uncertainty",
]

# The public names of each module.
_NAMES = {
    "checkpoint.checkpointer": ("SafeDetectionCheckpointer",),
    "color_augmentation": ("ColorAugSSD", "ColorAugSSDTransform"),
    "config.checks": ("check_config",),
    "config.defaults": ("add_pointrend_config",),
    "config.files": ("get_config_file",),
    "config.loading": ("load_config",),
    "data.augmentation": ("build_augmentations",),
    "data.loader.loaders": ("build_test_loader", "build_train_loader"),
    "data.mapper": ("NamingDatasetMapper",),
    "engine.trainer": ("Trainer",),
    "inference.predictor": ("Predictor",),
    "mask_head": ("ImplicitPointRendMaskHead", "PointRendMaskHead"),
    "meta_arch": ("PointRendPanopticFPN", "PointRendSemanticSegmentor"),
    "point_head": (
        "POINT_HEAD_REGISTRY",
        "ImplicitPointHead",
        "ResidualPointHead",
        "StandardPointHead",
        "build_point_head",
    ),
    "registration": ("stock_heads",),
    "rendering.bound_head": ("BoundPointHead", "bind_point_head"),
    "rendering.features": ("FineGrainedFeatures",),
    "rendering.sampling": ("PointSampler", "point_sample"),
    "rendering.subdivision": ("PointPredictor", "SubdivisionPlan", "subdivide"),
    "rendering.uncertainty": ("Uncertainty", "foreground_uncertainty", "top2_margin_uncertainty"),
    "roi_heads": ("PointRendCascadeROIHeads", "PointRendROIHeads"),
    "semantic_seg": ("CoarseSemSegHead", "PointRendSemSegHead"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if not lacks_detectron2(error):
            raise
        message = f"{__name__}.{name} cannot be imported: {NO_DETECTRON2}"
        raise ImportError(message, name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_heads() -> None:
    importlib.import_module(f"{__name__}.registration").register()
    for name in ("zoo", "timm_weights"):  # zoo:// and timm://, for Detectron2, too
        importlib.import_module(f"{__name__}.checkpoint.{name}")


after_import(
    "detectron2.modeling",
    _register_heads,
    undisturbed=("detectron2.projects", __name__),
)
# The official Detectron2 imports the tools of Cityscapes by a name of Meta's own repository.
alias_package("deeplearning.projects.cityscapesApi.cityscapesscripts", "cityscapesscripts")
