"""The heads and the outputs of each meta-architecture."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# Fields of a model's results.
INSTANCES = frozenset({"instances"})
SEM_SEG = frozenset({"sem_seg"})
PANOPTIC = INSTANCES | SEM_SEG | {"panoptic_seg"}


class MetaArchitecture(NamedTuple):
    """The parts of a meta-architecture on which this package depends.

    Attributes:
        outputs: Fields of the model's results.
        has_roi_heads: Whether it reads MODEL.ROI_HEADS.
        stock_name: Name of the one of Detectron2 for the same weights, if it is one of ours.
    """

    outputs: frozenset[str] = INSTANCES
    has_roi_heads: bool = False
    stock_name: str = ""

    @property
    def has_semantic_head(self) -> bool:
        """Whether it reads MODEL.SEM_SEG_HEAD."""
        return "sem_seg" in self.outputs


META_ARCHITECTURES = {
    "GeneralizedRCNN": MetaArchitecture(INSTANCES, has_roi_heads=True),
    "PanopticFPN": MetaArchitecture(PANOPTIC, has_roi_heads=True),
    "PointRendPanopticFPN": MetaArchitecture(
        PANOPTIC, has_roi_heads=True, stock_name="PanopticFPN"
    ),
    "SemanticSegmentor": MetaArchitecture(SEM_SEG),
    "PointRendSemanticSegmentor": MetaArchitecture(SEM_SEG, stock_name="SemanticSegmentor"),
}


def meta_architecture(cfg: "CfgNode") -> MetaArchitecture:
    """Look up MODEL.META_ARCHITECTURE; others, as RetinaNet, detect instances without ROI heads."""
    return META_ARCHITECTURES.get(cfg.MODEL.META_ARCHITECTURE, MetaArchitecture())


def point_head_user(cfg: "CfgNode") -> str:
    """Return the section below MODEL of the head that MODEL.POINT_HEAD belongs to."""
    return "SEM_SEG_HEAD" if model_outputs(cfg) == SEM_SEG else "ROI_HEADS"


def model_outputs(cfg: "CfgNode") -> frozenset[str]:
    """Return the fields of a model's results."""
    return meta_architecture(cfg).outputs


def reads_proposals(cfg: "CfgNode") -> bool:
    """Return whether the model reads precomputed proposals in place of generating them."""
    is_precomputed = cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals"
    return meta_architecture(cfg).has_roi_heads and is_precomputed
