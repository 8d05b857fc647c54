"""PointRend: image segmentation as rendering, for Detectron2.

Importing the package registers its heads; ``add_pointrend_config`` or ``load_config`` gives a
config that knows their keys.

Source: Kirillov, Wu, He, Girshick, "PointRend: Image Segmentation as Rendering", CVPR 2020.
"""

from point_rend import registration
from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.color_augmentation import ColorAugSSD, ColorAugSSDTransform
from point_rend.config.checks import check_config
from point_rend.config.defaults import add_pointrend_config, get_config_file
from point_rend.config.loading import load_config
from point_rend.mask_head import ImplicitPointRendMaskHead, PointRendMaskHead
from point_rend.meta_arch import PointRendPanopticFPN, PointRendSemanticSegmentor
from point_rend.point_head import (
    POINT_HEAD_REGISTRY,
    ImplicitPointHead,
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
from point_rend.roi_heads import PointRendROIHeads
from point_rend.semantic_seg import CoarseSemSegHead, PointRendSemSegHead

__version__ = "0.1.0"

__all__ = [
    "POINT_HEAD_REGISTRY",
    "BoundPointHead",
    "CoarseSemSegHead",
    "ColorAugSSD",
    "ColorAugSSDTransform",
    "FineGrainedFeatures",
    "ImplicitPointHead",
    "ImplicitPointRendMaskHead",
    "PointPredictor",
    "PointRendMaskHead",
    "PointRendPanopticFPN",
    "PointRendROIHeads",
    "PointRendSemSegHead",
    "PointRendSemanticSegmentor",
    "PointSampler",
    "SafeDetectionCheckpointer",
    "StandardPointHead",
    "SubdivisionPlan",
    "Uncertainty",
    "add_pointrend_config",
    "bind_point_head",
    "build_point_head",
    "check_config",
    "foreground_uncertainty",
    "get_config_file",
    "load_config",
    "point_sample",
    "stock_heads",
    "subdivide",
    "top2_margin_uncertainty",
]

registration.register()
