"""The ROI heads: their mask heads, old configs and old checkpoints."""

import logging

import pytest
import torch
from detectron2.modeling import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from point_rend import ImplicitPointRendMaskHead, PointRendMaskHead, PointRendROIHeads
from tests.synthetic import (
    IMAGE_SIZE,
    SHAPES,
    random_boxes,
    random_features,
    randomize,
    small_head_config,
)


def config(*opts, implicit: bool = False):
    return small_head_config(
        *("MODEL.ROI_HEADS.NAME", "PointRendROIHeads", "MODEL.ROI_BOX_HEAD.FC_DIM", 8),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
        *("TEST.DETECTIONS_PER_IMAGE", 6),
        *opts,
        implicit=implicit,
    )


def proposals_of(counts: list[int]) -> list[Instances]:
    generator = torch.Generator().manual_seed(0)
    return [
        Instances(
            IMAGE_SIZE,
            proposal_boxes=random_boxes(count, generator),
            objectness_logits=torch.zeros(count),
        )
        for count in counts
    ]


def targets_of(counts: list[int]) -> list[Instances]:
    """Return targets like those of the mapper: an image without objects has no ``gt_masks``."""
    generator = torch.Generator().manual_seed(1)
    targets = []
    for count in counts:
        boxes = random_boxes(count, generator)
        target = Instances(IMAGE_SIZE, gt_boxes=boxes)
        target.gt_classes = torch.arange(count) % 5
        if count:
            masks = torch.zeros(count, *IMAGE_SIZE, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.tensor.long().tolist(), strict=True):
                mask[y0 : y1 + 1, x0 : x1 + 1] = True
            target.gt_masks = BitMasks(masks)
        targets.append(target)
    return targets


def images_of(count: int) -> ImageList:
    return ImageList(torch.zeros(count, 3, *IMAGE_SIZE), [IMAGE_SIZE] * count)


@pytest.mark.parametrize("implicit", [False, True], ids=["standard", "implicit"])
@pytest.mark.parametrize("counts", [[3], [0, 0], [2, 0, 4]])
def test_defect_8_both_mask_heads_train_and_infer_with_and_without_objects(implicit, counts):
    heads = build_roi_heads(config(implicit=implicit), SHAPES)
    assert isinstance(heads, PointRendROIHeads)
    expected = ImplicitPointRendMaskHead if implicit else PointRendMaskHead
    assert type(heads.mask_head) is expected
    features, images = random_features(len(counts)), images_of(len(counts))
    with EventStorage():
        _, losses = heads.train()(
            images, features, proposals_of([8] * len(counts)), targets_of(counts)
        )
        sum(losses.values()).backward()
    assert "loss_mask_point" in losses
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert (losses["loss_mask_point"] > 0) == any(counts)
    assert all(p.grad is not None for p in heads.mask_head.parameters())
    with torch.no_grad():
        instances, _ = heads.eval()(images, features, proposals_of([8 if c else 0 for c in counts]))
    for result, count in zip(instances, counts, strict=True):
        assert result.pred_masks.dtype == torch.float32
        assert result.pred_masks.shape == (len(result), 1, 224, 224)
        assert (len(result) > 0) == (count > 0)


@pytest.mark.parametrize("name", ["PointRendMaskHead", "CoarseMaskHead"])
@pytest.mark.parametrize("frozen", [False, True])
def test_defect_8_the_callers_config_stays_as_it_is(name, frozen):
    cfg = config("MODEL.ROI_MASK_HEAD.NAME", name, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2")
    if name == "PointRendMaskHead":
        cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE = ""
    if frozen:
        cfg.freeze()
    before = cfg.clone()
    build_roi_heads(cfg, SHAPES)
    assert cfg == before
    assert cfg.is_frozen() == frozen


def test_the_oldest_name_of_the_mask_head_is_accepted(caplog):
    opts = ("MODEL.ROI_MASK_HEAD.NAME", "CoarseMaskHead")
    with caplog.at_level(logging.WARNING):
        heads = build_roi_heads(
            config(*opts, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"), SHAPES
        )
    assert "CoarseMaskHead" in caplog.text
    assert type(heads.mask_head) is PointRendMaskHead
    assert heads.mask_pooler is None


def test_other_mask_heads_are_built_as_by_detectron2():
    opts = ("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
    heads = build_roi_heads(config(*opts, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"), SHAPES)
    assert type(heads.mask_head).__name__ == "MaskRCNNConvUpsampleHead"
    assert heads.mask_pooler is not None
    assert not build_roi_heads(config("MODEL.MASK_ON", False), SHAPES).mask_on


def test_cascaded_box_heads_take_our_mask_heads():
    opts = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG")
    heads = build_roi_heads(config(*opts, True), SHAPES)
    inputs = images_of(1), random_features(1), proposals_of([8])
    with EventStorage():
        _, losses = heads.train()(*inputs, targets_of([2]))
    assert {"loss_mask", "loss_mask_point"} < losses.keys()
    with torch.no_grad():
        (result,), _ = heads.eval()(*inputs)
    assert len(result) > 0
    assert result.pred_masks.shape == (len(result), 1, 224, 224)


# StandardROIHeads themselves do not see the oldest names, outside the mask head: the checkpointer
# converts those.
@pytest.mark.parametrize("roi_heads", ["PointRendROIHeads", "StandardROIHeads"])
def test_weights_of_the_first_version_load_strictly(roi_heads):
    cfg = config("MODEL.ROI_HEADS.NAME", roi_heads)
    heads = build_roi_heads(cfg, SHAPES)
    randomize(heads)
    state = heads.state_dict()
    old = {}
    for name, value in state.items():
        if roi_heads == "PointRendROIHeads":
            name = name.replace("mask_head.point_head", "mask_point_head")
            name = name.replace("mask_head.coarse_head.fc", "mask_coarse_head.coarse_mask_fc")
            name = name.replace("mask_head.coarse_head", "mask_coarse_head")
        else:
            name = name.replace("coarse_head.fc", "coarse_head.coarse_mask_fc")
        old[name] = value
    assert old.keys() != state.keys()
    fresh = build_roi_heads(cfg, SHAPES)
    fresh.load_state_dict(old, strict=True)
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_masks_for_given_boxes_are_those_of_the_mask_head():
    heads = build_roi_heads(config(), SHAPES).eval()
    randomize(heads.mask_head)
    boxes = random_boxes(3, torch.Generator().manual_seed(5))
    given = [
        Instances(IMAGE_SIZE, pred_boxes=Boxes(boxes.tensor), pred_classes=torch.tensor([0, 4, 2]))
        for _ in range(2)
    ]
    features = random_features(1)
    with torch.no_grad():
        (result,) = heads.forward_with_given_boxes(features, given[:1])
        (expected,) = heads.mask_head(features, given[1:])
    assert result.pred_masks.shape == (3, 1, 224, 224)
    assert torch.equal(result.pred_masks, expected.pred_masks)


def test_models_are_built_from_keyword_arguments_alone():
    parts = build_roi_heads(config(), SHAPES)
    heads = PointRendROIHeads(
        num_classes=5,
        batch_size_per_image=16,
        positive_fraction=0.25,
        proposal_matcher=parts.proposal_matcher,
        box_in_features=["p2", "p3"],
        box_pooler=parts.box_pooler,
        box_head=parts.box_head,
        box_predictor=parts.box_predictor,
        mask_in_features=["p2", "p3"],
        mask_head=parts.mask_head,
    )
    with torch.no_grad():
        (result,), _ = heads.eval()(images_of(1), random_features(1), proposals_of([5]))
    assert len(result) == 6
    assert result.pred_masks.shape == (6, 1, 224, 224)
