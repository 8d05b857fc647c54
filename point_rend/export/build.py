"""The graph of a model, or the reason why it has none.

Backbones, RPN heads and box heads are called as they are, whatever their classes. The parts that a
graph replaces by a form of its own must be of exactly the classes that it knows: a subclass may
compute something else.
"""

from typing import Any

from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN, SemanticSegmentor
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from torch import nn

from point_rend.export.graph import Graph, check_backbone, check_kind
from point_rend.export.instance_graph import InstanceGraph
from point_rend.export.mask_graph import MaskHeadGraph, MaskRendering
from point_rend.export.semantic_graph import SemanticGraph
from point_rend.meta_arch import PointRendSemanticSegmentor
from point_rend.roi_heads import PointRendCascadeROIHeads, PointRendROIHeads

MODEL, MASK_HEAD = PARTS = ("model", "mask-head")
SEMANTIC = SemanticSegmentor, PointRendSemanticSegmentor


def build_graph(model: nn.Module, *, part: str = MODEL) -> Graph:
    """Build the graph of a model, or of its mask head alone, in inference mode.

    Args:
        model: A model that was built from a config.
        part: "model" or "mask-head".

    Raises:
        ValueError: If a part of the model has no graph; the message names its key and class.
    """
    if part not in PARTS:
        raise ValueError(f"--part {part}: expected {' or '.join(PARTS)}")
    graph: Graph
    if part == MASK_HEAD:
        graph = _mask_head_graph(model)
    elif type(model) in SEMANTIC:
        graph = SemanticGraph(model)
    else:
        check_kind("MODEL.META_ARCHITECTURE", model, GeneralizedRCNN, *SEMANTIC)
        graph = _instance_graph(model)
    return graph.eval()


def _mask_head_graph(model: Any) -> MaskHeadGraph:
    head = getattr(getattr(model, "roi_heads", None), "mask_head", None)
    if head is None:
        raise ValueError(
            f"--part {MASK_HEAD}: {type(model).__name__} has no mask head: expected a model with "
            "ROI heads and MODEL.MASK_ON True"
        )
    shapes = model.backbone.output_shape()
    return MaskHeadGraph(head, {name: shape.channels for name, shape in shapes.items()})


def _instance_graph(model: Any) -> InstanceGraph:
    check_backbone(model.backbone)
    _check_proposals(model.proposal_generator)
    _check_heads(model.roi_heads)
    return InstanceGraph(model, MaskRendering(model.roi_heads.mask_head))


def _check_proposals(rpn: Any) -> None:
    if rpn is None:
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, which has no graph: expected "
            "RPN"
        )
    check_kind("MODEL.PROPOSAL_GENERATOR.NAME", rpn, RPN)
    check_kind("MODEL.ANCHOR_GENERATOR.NAME", rpn.anchor_generator, DefaultAnchorGenerator)
    check_kind("box2box_transform of the RPN", rpn.box2box_transform, Box2BoxTransform)


def _check_heads(heads: Any) -> None:
    known = StandardROIHeads, PointRendROIHeads, CascadeROIHeads, PointRendCascadeROIHeads
    check_kind("MODEL.ROI_HEADS.NAME", heads, *known)
    for key, is_on, expected in (
        ("MODEL.MASK_ON", heads.mask_on, True),
        ("MODEL.KEYPOINT_ON", heads.keypoint_on, False),
    ):
        if is_on != expected:
            raise ValueError(f"{key} is {is_on}, which has no graph: expected {expected}")
    for level in heads.box_pooler.level_poolers:
        check_kind("MODEL.ROI_BOX_HEAD.POOLER_TYPE", level, ROIAlign)
    predictors = heads.box_predictor
    for predictor in predictors if isinstance(heads, CascadeROIHeads) else [predictors]:
        check_kind("box_predictor of the ROI heads", predictor, FastRCNNOutputLayers)
        transform = predictor.box2box_transform
        check_kind("box2box_transform of the ROI heads", transform, Box2BoxTransform)
