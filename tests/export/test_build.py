"""What has a graph, and what is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
from detectron2.layers import ROIAlign
from detectron2.modeling import PanopticFPN, RetinaNet
from torch import nn

from point_rend.export.build import build_graph
from point_rend.export.instance_graph import InstanceGraph
from point_rend.export.mask_graph import MaskHeadGraph
from tests.export.instance_models import CASCADE, detecting_model


def switch(name: str, value: object) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        *path, last = name.split(".")
        part = model
        for step in path:
            part = getattr(part, step)
        setattr(part, last, value)

    return change


def class_of(name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        part = model
        for step in name.split("."):
            part = getattr(part, step)
        part.__class__ = type("Unknown", (type(part),), {})  # may compute something else

    return change


class Squares(nn.Identity):
    padding_constraints = {"square_size": 1024}  # noqa: RUF012
    size_divisibility = 0


def rotated(model: Any) -> None:
    model.roi_heads.box_pooler.level_poolers = nn.ModuleList([nn.Identity()])


REFUSED: list[tuple[Callable[[Any], None], str]] = [
    (class_of("proposal_generator"), "MODEL.PROPOSAL_GENERATOR.NAME is Unknown.*expected RPN"),
    (switch("proposal_generator", None), "NAME is PrecomputedProposals"),
    (class_of("proposal_generator.anchor_generator"), "MODEL.ANCHOR_GENERATOR.NAME is Unknown"),
    (class_of("roi_heads"), "MODEL.ROI_HEADS.NAME is Unknown.*or PointRendROIHeads"),
    (class_of("roi_heads.box_predictor"), "box_predictor of the ROI heads is Unknown"),
    (class_of("roi_heads.mask_head"), "MODEL.ROI_MASK_HEAD.NAME is Unknown"),
    (class_of("roi_heads.mask_head.point_head"), "MODEL.POINT_HEAD.NAME is Unknown"),
    (switch("roi_heads.keypoint_on", True), "MODEL.KEYPOINT_ON is True"),
    (switch("roi_heads.mask_on", False), "MODEL.MASK_ON is False"),
    (rotated, "MODEL.ROI_BOX_HEAD.POOLER_TYPE is Identity.*expected ROIAlign"),
    (switch("backbone", Squares()), "MODEL.BACKBONE.NAME is Squares.*squares of 1024 pixels"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[x[1][:40] for x in REFUSED])
def test_a_part_without_graph_is_refused_in_one_line_by_key_and_class(change, message):
    model = detecting_model()
    change(model)
    with pytest.raises(ValueError, match=f"^.*{message}.*$"):
        build_graph(model)


@pytest.mark.parametrize(
    "name",
    ["StandardROIHeads", "PointRendROIHeads", "CascadeROIHeads", "PointRendCascadeROIHeads"],
)
def test_our_roi_heads_and_those_of_detectron2_have_a_graph(name):
    model = detecting_model(*CASCADE, "MODEL.ROI_HEADS.NAME", name)
    assert type(model.roi_heads).__name__ == name
    assert isinstance(build_graph(model), InstanceGraph)


@pytest.mark.parametrize("architecture", [RetinaNet, PanopticFPN])
def test_another_architecture_is_refused_by_name(architecture):
    model = architecture.__new__(architecture)
    name = architecture.__name__
    with pytest.raises(ValueError, match=f"META_ARCHITECTURE is {name}, which has no graph"):
        build_graph(model)
    with pytest.raises(ValueError, match="has no mask head"):
        build_graph(RetinaNet.__new__(RetinaNet), part="mask-head")


def test_steps_by_size_of_the_box_are_refused():
    model = detecting_model("MODEL.POINT_HEAD.SUBDIVISION_CELLS_PER_PIXEL", "1.0")
    for part in ("model", "mask-head"):
        with pytest.raises(ValueError, match="SUBDIVISION_CELLS_PER_PIXEL is 1"):
            build_graph(model, part=part)


def test_parts_are_graphs_in_inference_mode_that_leave_the_model_alone():
    model = detecting_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph, head = build_graph(model), build_graph(model, part="mask-head")
    assert type(graph) is InstanceGraph
    assert type(head) is MaskHeadGraph
    assert not any(module.training for module in (*graph.modules(), *head.modules()))
    assert graph.divisor == model.backbone.size_divisibility
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(value.equal(after[name]) for name, value in before.items())
    assert isinstance(model.roi_heads.box_pooler.level_poolers[0], ROIAlign)
    with pytest.raises(ValueError, match="--part legs: expected model or mask-head"):
        build_graph(model, part="legs")
