"""Meta-architectures with a semantic head: independence of the batch, resizing."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SemanticSegmentor, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from point_rend import PointRendSemanticSegmentor, meta_arch
from tests.synthetic import randomize
from tests.synthetic_semantic import (
    IGNORE,
    pointwise_head,
    smooth_images,
    tiny_model_config,
)

SIZES = [(64, 96), (40, 52)]


class PointwiseBackbone(Backbone):
    """Every feature is an affine function of the mean of its own 4×4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 16, 1)

    size_divisibility = 32

    def forward(self, x):
        return {"p2": self.mix(nn.functional.avg_pool2d(x, 4))}

    def output_shape(self):
        return {"p2": ShapeSpec(channels=16, stride=4)}


def model_of(meta: type) -> SemanticSegmentor:
    model = meta(
        backbone=PointwiseBackbone(),
        sem_seg_head=pointwise_head(),
        pixel_mean=[10.0, 20.0, 30.0],
        pixel_std=[50.0, 60.0, 70.0],
    )
    randomize(model)
    return model


@torch.no_grad()
def predict(model: SemanticSegmentor, inputs: list[dict]) -> list[torch.Tensor]:
    return [output["sem_seg"] for output in model.eval()(inputs)]


def test_the_logits_of_an_image_do_not_depend_on_its_batch():  # defect 12
    model = model_of(PointRendSemanticSegmentor)
    inputs = smooth_images([(40, 52), (64, 96), (64, 160)])
    alone = [predict(model, [one])[0] for one in inputs]
    together = predict(model, inputs)
    for one, among_others, image in zip(alone, together, inputs, strict=True):
        assert one.shape == among_others.shape == (6, *image["image"].shape[1:])
        torch.testing.assert_close(among_others, one, rtol=0, atol=1e-4)


def test_without_padding_the_result_is_that_of_the_stock_meta_architecture():
    ours = model_of(PointRendSemanticSegmentor)
    stock = model_of(SemanticSegmentor)
    stock.load_state_dict(ours.state_dict(), strict=True)
    inputs = smooth_images([(64, 96)])
    torch.testing.assert_close(predict(ours, inputs)[0], predict(stock, inputs)[0])
    inputs = [inputs[0] | {"height": 128, "width": 100}]
    (result,) = predict(ours, inputs)
    assert result.shape == (6, 128, 100)
    torch.testing.assert_close(result, predict(stock, inputs)[0])


def test_logits_of_the_right_size_are_not_resized(monkeypatch):
    def refuse(*_):
        raise AssertionError("resized")

    monkeypatch.setattr(meta_arch, "sem_seg_postprocess", refuse)
    model = model_of(PointRendSemanticSegmentor)
    inputs = [
        image | {"height": h, "width": w}
        for image, (h, w) in zip(smooth_images(SIZES), SIZES, strict=True)
    ]
    assert [tuple(x.shape) for x in predict(model, inputs)] == [(6, *size) for size in SIZES]
    with pytest.raises(AssertionError, match="resized"):
        predict(model, [inputs[0] | {"height": 65}])


def test_the_padding_of_labels_does_not_count():
    model = model_of(PointRendSemanticSegmentor).train()
    inputs = smooth_images(SIZES)
    inputs[1]["sem_seg"] = torch.full_like(inputs[1]["sem_seg"], IGNORE)
    losses = model(inputs)
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_point"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    # The labeled image alone has the same dense loss: everything else is ignored.
    alone = model(inputs[:1])
    torch.testing.assert_close(losses["loss_sem_seg"], alone["loss_sem_seg"])


def test_a_backbone_that_pads_nothing_gets_sizes_that_fit_the_head():
    model = model_of(PointRendSemanticSegmentor)
    model.backbone.size_divisibility = 0  # as DeepLab's backbone
    inputs = smooth_images([(37, 50)])
    assert set(model.train()(inputs)) == {"loss_sem_seg", "loss_sem_seg_point"}
    assert predict(model, inputs)[0].shape == (6, 37, 50)


def test_a_head_that_takes_no_image_sizes_is_refused():
    cfg = tiny_model_config("PointRendSemanticSegmentor")
    cfg.MODEL.SEM_SEG_HEAD.NAME = "SemSegFPNHead"
    with pytest.raises(ValueError, match="SemSegFPNHead takes none"):
        build_model(cfg)


def test_a_panoptic_model_has_point_heads_of_both_kinds():
    cfg = tiny_model_config("PointRendPanopticFPN")
    semantic = cfg.MODEL.POINT_HEAD.clone()
    semantic.NAME = "StandardPointHead"
    semantic.IN_FEATURES = ["p2", "p6"]  # p6 needs more padding than an FPN
    cfg.MODEL.SEM_SEG_HEAD.POINT_HEAD = semantic
    instances = [
        *("MODEL.MASK_ON", True, "MODEL.ROI_HEADS.NAME", "PointRendROIHeads"),
        *("MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']"),
        *("MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']"),
        *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [256]]"),
        *("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20),
        *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
        *("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "MODEL.ROI_MASK_HEAD.FC_DIM", 16),
        *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "''", "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
        *("TEST.DETECTIONS_PER_IMAGE", 4, "MODEL.POINT_HEAD.SUBDIVISION_STEPS", 5),
        *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.0),
    ]
    cfg.merge_from_list([str(x) for x in instances])
    torch.manual_seed(0)
    model = build_model(cfg)
    assert model.sem_seg_head.point_head.predictor.out_channels == 6
    assert model.roi_heads.mask_head.point_head.predictor.out_channels == 3

    inputs = smooth_images(SIZES)
    for image, size in zip(inputs, SIZES, strict=True):
        masks = torch.zeros(1, *size, dtype=torch.bool)
        masks[:, 8:36, 8:40] = True
        image["instances"] = Instances(
            size,
            gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 40.0, 36.0]])),
            gt_classes=torch.tensor([1]),
            gt_masks=BitMasks(masks),
        )
    model.train()
    with EventStorage():
        losses = model(inputs)
    assert {"loss_sem_seg", "loss_sem_seg_point", "loss_mask", "loss_mask_point"} <= set(losses)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name

    with torch.no_grad():
        results = model.eval()([{"image": image["image"]} for image in inputs])
    for result, size in zip(results, SIZES, strict=True):
        assert result["sem_seg"].shape == (6, *size)
        assert result["instances"].pred_masks.shape[1:] == size
        segments, _ = result["panoptic_seg"]
        assert segments.shape == size
