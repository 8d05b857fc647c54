"""The outputs of each meta-architecture."""

from detectron2.config import CfgNode

# Names of the meta-architectures that have ROI heads, and of those with a semantic head.
MODELS_WITH_ROI_HEADS = ("GeneralizedRCNN", "PanopticFPN", "PointRendPanopticFPN")
MODELS_WITH_SEMANTIC_HEAD = (
    "SemanticSegmentor",
    "PanopticFPN",
    "PointRendSemanticSegmentor",
    "PointRendPanopticFPN",
)
SEMANTIC_MODELS = ("SemanticSegmentor", "PointRendSemanticSegmentor")  # names in the registry
INSTANCES = frozenset({"instances"})
SEM_SEG = frozenset({"sem_seg"})
PANOPTIC = INSTANCES | SEM_SEG | {"panoptic_seg"}
PANOPTIC_MODELS = ("PanopticFPN", "PointRendPanopticFPN")  # names in the registry


def model_outputs(cfg: CfgNode) -> frozenset[str]:
    """Tell which fields the results of a model have."""
    if cfg.MODEL.META_ARCHITECTURE in SEMANTIC_MODELS:
        return SEM_SEG
    return PANOPTIC if cfg.MODEL.META_ARCHITECTURE in PANOPTIC_MODELS else INSTANCES
