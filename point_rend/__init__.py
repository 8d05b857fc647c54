"""PointRend: image segmentation as rendering, for Detectron2.

Importing the package registers its heads; ``add_pointrend_config`` or ``load_config`` gives a
config that knows their keys.

Source: Kirillov, Wu, He, Girshick, "PointRend: Image Segmentation as Rendering", CVPR 2020.
"""

from . import registration
from .bound_head import BoundPointHead, bind_point_head
from .checkpoint import SafeDetectionCheckpointer
from .config import add_pointrend_config, check_config, get_config_file, load_config
from .data.augmentation import ColorAugSSD, ColorAugSSDTransform
from .mask_head import ImplicitPointRendMaskHead, PointRendMaskHead
from .meta_arch import PointRendPanopticFPN, PointRendSemanticSegmentor
from .point_features import FineGrainedFeatures
from .point_head import (
    POINT_HEAD_REGISTRY,
    ImplicitPointHead,
    StandardPointHead,
    build_point_head,
)
from .registration import stock_heads
from .roi_heads import PointRendROIHeads
from .sampling import PointSampler, point_sample
from .semantic_seg import CoarseSemSegHead, PointRendSemSegHead
from .subdivision import PointPredictor, SubdivisionPlan, subdivide
from .uncertainty import Uncertainty, foreground_uncertainty, top2_margin_uncertainty

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
