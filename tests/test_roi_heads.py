"""The ROI heads: their mask heads, old configs and old checkpoints."""

import logging

import pytest
import torch
from detectron2.modeling import build_roi_heads
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import box_iou

from point_rend import (
    ImplicitPointRendMaskHead,
    PointRendCascadeROIHeads,
    PointRendMaskHead,
    PointRendROIHeads,
)
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


CASCADE = ("MODEL.ROI_HEADS.NAME", "PointRendCascadeROIHeads")
CASCADE += ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)


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
@pytest.mark.parametrize("cascade", [(), CASCADE], ids=["one stage", "cascade"])
@pytest.mark.parametrize("counts", [[3], [0, 0], [2, 0, 4]])
def test_defect_8_both_mask_heads_train_and_infer_with_and_without_objects(
    implicit, cascade, counts
):
    heads = build_roi_heads(config(*cascade, implicit=implicit), SHAPES)
    assert type(heads) is (PointRendCascadeROIHeads if cascade else PointRendROIHeads)
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


def test_cascaded_box_heads_of_detectron2_take_our_mask_heads():
    heads = build_roi_heads(config(*CASCADE, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"), SHAPES)
    inputs = images_of(1), random_features(1), proposals_of([8])
    with EventStorage():
        _, losses = heads.train()(*inputs, targets_of([2]))
    assert {"loss_mask", "loss_mask_point"} < losses.keys()
    with torch.no_grad():
        (result,), _ = heads.eval()(*inputs)
    assert len(result) > 0
    assert result.pred_masks.shape == (len(result), 1, 224, 224)


PRED_BOXES = "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES"


def cascades(*opts) -> list[CascadeROIHeads]:
    """Our cascade and that of Detectron2, with the same weights that move boxes a little."""
    ours = build_roi_heads(config(*CASCADE, *opts), SHAPES)
    randomize(ours)
    for predictor in ours.box_predictor:
        predictor.bbox_pred.weight.data *= 0.1
    names = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads")
    theirs = build_roi_heads(config(*CASCADE, *opts, *names), SHAPES)
    theirs.load_state_dict(ours.state_dict())
    assert type(theirs) is CascadeROIHeads
    return [ours, theirs]


def one_step(heads: CascadeROIHeads) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    torch.manual_seed(3)
    with EventStorage() as storage:
        inputs = images_of(2), random_features(2), proposals_of([30, 30]), targets_of([4, 3])
        _, losses = heads.train()(*inputs)
    return losses, {name: value for name, (value, _) in storage.latest().items()}


@pytest.mark.parametrize("on_pred_boxes", [False, True])
def test_a_cascade_trains_its_boxes_as_that_of_detectron2_does(on_pred_boxes):
    ours, theirs = (one_step(heads) for heads in cascades(PRED_BOXES, on_pred_boxes))
    assert list(ours[0]) == list(theirs[0])
    of_masks = {"loss_mask", "loss_mask_point"}
    assert len(ours[0].keys() - of_masks) == 6
    for name, loss in ours[0].items():
        # Detectron2's cascade ignores the key: its masks are those of the proposals.
        is_equal = torch.equal(loss, theirs[0][name])
        assert is_equal == (name not in of_masks or not on_pred_boxes)
    of_boxes = {name for name in theirs[1] if name.startswith(("stage", "roi_head"))}
    assert len(of_boxes) > 10
    for name in of_boxes:
        assert ours[1][name] == theirs[1][name]


def test_a_cascade_infers_as_that_of_detectron2_does():
    inputs = images_of(1), random_features(1), proposals_of([12])
    with torch.no_grad():
        (ours,), (theirs,) = (heads.eval()(*inputs)[0] for heads in cascades())
    assert len(ours) == 6
    for name, value in ours.get_fields().items():
        expected = theirs.get(name)
        assert torch.equal(*(getattr(x, "tensor", x) for x in (value, expected)))


def test_masks_of_a_cascade_are_trained_on_the_boxes_of_the_last_stage(monkeypatch):
    heads, _ = cascades(PRED_BOXES, True)
    seen = []
    forward = heads.mask_head.forward
    monkeypatch.setattr(
        heads.mask_head, "forward", lambda x, regions: seen.extend(regions) or forward(x, regions)
    )
    sampled = []
    sample = heads.label_and_sample_proposals
    monkeypatch.setattr(
        heads, "label_and_sample_proposals", lambda *x: sampled.extend(sample(*x)) or sampled
    )
    one_step(heads)
    targets, features = targets_of([4, 3]), random_features(2)
    assert len(seen) == 2
    for number, (region, target) in enumerate(zip(seen, targets, strict=True)):
        boxes = sampled[number].proposal_boxes.tensor
        levels = [features[name][number : number + 1] for name in ("p2", "p3")]
        with torch.no_grad():
            for head, predictor in zip(heads.box_head, heads.box_predictor, strict=True):
                inputs = boxes
                _, deltas = predictor(head(heads.box_pooler(levels, [Boxes(inputs)])))
                predicted = predictor.box2box_transform.apply_deltas(deltas, inputs)
                boxes = predicted.clone()
                boxes[:, 0::2] = boxes[:, 0::2].clamp(0, IMAGE_SIZE[1])
                boxes[:, 1::2] = boxes[:, 1::2].clamp(0, IMAGE_SIZE[0])
        overlaps = box_iou(target.gt_boxes.tensor, inputs)
        expected = [
            (box, int(overlaps[:, k].argmax()))
            for k, box in enumerate(predicted)
            if overlaps[:, k].max() >= 0.7
        ][:4]  # a quarter of 16 proposals
        assert len(expected) > 1
        assert len(region) == len(expected)
        for k, (box, matched) in enumerate(expected):
            assert torch.allclose(region.proposal_boxes.tensor[k], box, atol=1e-4)
            assert region.gt_classes[k] == target.gt_classes[matched]
            assert torch.equal(region.gt_boxes.tensor[k], target.gt_boxes.tensor[matched])
            assert torch.equal(region.gt_masks.tensor[k], target.gt_masks.tensor[matched])


# StandardROIHeads themselves do not see the oldest names, outside the mask head: the checkpointer
# converts those.
@pytest.mark.parametrize(
    "roi_heads", ["PointRendROIHeads", "PointRendCascadeROIHeads", "StandardROIHeads"]
)
def test_weights_of_the_first_version_load_strictly(roi_heads):
    cfg = config(*CASCADE, "MODEL.ROI_HEADS.NAME", roi_heads)
    heads = build_roi_heads(cfg, SHAPES)
    randomize(heads)
    state = heads.state_dict()
    old = {}
    for name, value in state.items():
        if roi_heads != "StandardROIHeads":
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
