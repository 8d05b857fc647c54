"""Training on shared masks, against the stock project with a copy of a mask per proposal."""

import pytest
import torch
from detectron2.modeling import build_roi_heads
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from point_rend import stock_heads
from point_rend.ground_truth.point_labels import sample_point_labels
from point_rend.ground_truth.shared_masks import SharedMasks, share_masks
from point_rend.mask_head import coarse_mask_loss
from tests.memory import LargestTensor
from tests.synthetic import (
    SHAPES,
    random_features,
    random_proposals,
    randomize,
    small_head_config,
)
from tests.test_roi_heads import images_of, proposals_of, targets_of

pytest.importorskip("detectron2.projects.point_rend")
from detectron2.projects.point_rend import point_features as stock

PATHS = {
    "PointRendROIHeads": (),
    "StandardROIHeads": (),
    "CascadeROIHeads": ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
}
BASELINE = (
    "MODEL.ROI_MASK_HEAD.NAME",
    "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NORM",
    "",
)


def config(name: str, *opts, implicit: bool = False):
    return small_head_config(
        *("MODEL.ROI_HEADS.NAME", name, "MODEL.POINT_HEAD.NUM_CLASSES", 5),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 8, "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, *PATHS[name], *opts),
        implicit=implicit,
    )


def train_step(heads, counts, targets):
    features = random_features(len(counts))
    heads.train().zero_grad()
    with EventStorage():
        torch.manual_seed(4)
        proposals = proposals_of([8] * len(counts))
        _, losses = heads(images_of(len(counts)), features, proposals, targets)
        sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in heads.named_parameters()}


def assert_equal_steps(expected, found):
    (expected_losses, expected_gradients), (losses, gradients) = expected, found
    assert losses.keys() == expected_losses.keys()
    for name, loss in expected_losses.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=0)
    assert any(name.startswith("mask_head") for name in gradients)
    for name, gradient in expected_gradients.items():
        if gradient is None:
            assert gradients[name] is None
        else:
            error = (gradients[name] - gradient).norm() / gradient.norm().clamp(min=1e-8)
            assert error < 1e-4, name


# The stock PointRendROIHeads refuses the implicit head.
PAIRS = [(name, implicit) for name in PATHS for implicit in (False, True)]
STOCK_PAIRS = [pair for pair in PAIRS if pair != ("PointRendROIHeads", True)]


@pytest.mark.parametrize("shared", [False, True], ids=["bitmasks", "shared"])
@pytest.mark.parametrize(("name", "implicit"), STOCK_PAIRS)
def test_all_roi_heads_train_like_those_of_the_stock_project(name, implicit, shared):
    cfg = config(name, implicit=implicit)
    ours = build_roi_heads(cfg, SHAPES)
    with stock_heads():
        stock_roi_heads = build_roi_heads(cfg, SHAPES)
    randomize(ours, scale=0.2)
    stock_roi_heads.load_state_dict(ours.state_dict())
    expected = train_step(stock_roi_heads, [3, 2], targets_of([3, 2]))
    targets = share_masks(targets_of([3, 2])) if shared else targets_of([3, 2])
    assert_equal_steps(expected, train_step(ours, [3, 2], targets))


def with_polygons(targets):
    """Replace the objects by hexagons in the same boxes."""
    unit = torch.tensor([[0.3, 0.0], [0.8, 0.1], [1.0, 0.6], [0.7, 1.0], [0.1, 0.9], [0.0, 0.4]])
    for target in targets:
        boxes = target.gt_boxes.tensor
        corners = boxes[:, None, :2] + unit * (boxes[:, None, 2:] - boxes[:, None, :2])
        target.gt_masks = PolygonMasks([[x.flatten().numpy()] for x in corners])
    return targets


@pytest.mark.parametrize(("name", "implicit"), PAIRS)
def test_shared_polygons_train_like_those_of_detectron2(name, implicit):
    heads = build_roi_heads(config(name, implicit=implicit), SHAPES)
    expected = train_step(heads, [3, 2], with_polygons(targets_of([3, 2])))
    shared = share_masks(with_polygons(targets_of([3, 2])))
    assert_equal_steps(expected, train_step(heads, [3, 2], shared))
    assert expected[0]["loss_mask_point"] > 0


@pytest.mark.parametrize("prepare", [lambda x: x, with_polygons], ids=["bitmasks", "polygons"])
def test_the_4xconv_head_trains_on_shared_masks_as_on_those_of_detectron2(prepare):
    cfg = config("StandardROIHeads", *BASELINE, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2")
    heads = build_roi_heads(cfg, SHAPES)
    expected = train_step(heads, [3, 2], prepare(targets_of([3, 2])))
    shared = share_masks(prepare(targets_of([3, 2])))
    assert_equal_steps(expected, train_step(heads, [3, 2], shared))


@pytest.mark.parametrize("channels", [5, 1], ids=["by-class", "agnostic"])
@pytest.mark.parametrize("counts", [[3, 0, 5], [0, 0], [1]], ids=str)
def test_the_coarse_loss_its_gradient_and_its_log_are_those_of_detectron2(counts, channels):
    instances = share_masks(random_proposals(counts))
    logits = torch.randn(sum(counts), channels, 7, 7, generator=torch.Generator().manual_seed(7))
    results = []
    for loss_of in (mask_rcnn_loss, coarse_mask_loss):
        own = logits.clone().requires_grad_()
        with EventStorage() as storage:
            loss = loss_of(own, instances)
            loss.backward()
        results.append((loss.detach(), own.grad, storage.latest()))
    (expected, expected_gradient, expected_log), (loss, gradient, log) = results
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient)
    assert log == expected_log
    assert len(log) == (3 if sum(counts) else 0)


def scene(size, objects: int, proposals: int, seed: int):
    """Return ellipses, and the object and a box around it for each proposal."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor(size[::-1]).float()
    extent = limits * (0.1 + 0.3 * torch.rand(objects, 2, generator=generator))
    centers = extent / 2 + torch.rand(objects, 2, generator=generator) * (limits - extent)
    ys, xs = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    offsets = torch.stack((xs, ys), dim=-1) - centers[:, None, None]
    masks = (2 * offsets / extent[:, None, None]).norm(dim=-1) < 1
    index = torch.randint(objects, (proposals,), generator=generator)
    noise = 1 + 0.2 * torch.rand(proposals, 2, generator=generator)
    corner, opposite = (centers[index] + s * extent[index] / 2 * noise for s in (-1, 1))
    boxes = Boxes(torch.cat((corner, opposite), dim=1))
    boxes.clip(size)
    return masks, index, boxes


@pytest.mark.parametrize("size", [(64, 96), (800, 1333)])
def test_labels_of_large_images_are_equal_up_to_rounding_and_crops_bit_for_bit(size):
    masks, index, boxes = scene(size, objects=4, proposals=12, seed=0)
    coords = torch.rand(12, 196, 2, generator=torch.Generator().manual_seed(1))
    coords = coords * (boxes.tensor[:, None, 2:] - boxes.tensor[:, None, :2])
    coords = coords + boxes.tensor[:, None, :2]
    copies = Instances(size, gt_masks=BitMasks(masks)[index])
    shared = Instances(size, gt_masks=SharedMasks.of(BitMasks(masks), size)[index])
    expected = stock.sample_point_labels([copies], coords)
    labels = sample_point_labels([shared], coords)
    assert labels.dtype == expected.dtype
    assert labels.shape == expected.shape == (12, 196)
    torch.testing.assert_close(labels, expected, rtol=0, atol=1e-6)
    assert ((labels > 0) & (labels < 1)).any()
    crops = shared.gt_masks.crop_and_resize(boxes.tensor, 7)
    assert torch.equal(crops, copies.gt_masks.crop_and_resize(boxes.tensor, 7))


def test_a_proposal_takes_memory_for_bin_weights_but_not_for_an_image():
    masks, index, boxes = scene((400, 600), objects=5, proposals=300, seed=2)
    targets = share_masks([Instances((400, 600), gt_masks=BitMasks(masks))])
    largest = []
    for count in (30, 300):
        with LargestTensor() as seen:
            proposals = Instances((400, 600), proposal_boxes=boxes[:count])
            proposals.gt_masks = targets[0].gt_masks[index[:count]]
            proposals = proposals[torch.arange(count) < count - 1]
            proposals.gt_masks.crop_and_resize(proposals.proposal_boxes.tensor, 7)
            sample_point_labels([proposals], torch.rand(count - 1, 9, 2) * 400)
        largest.append(seen.bytes)
    weights = 7 * 600 * 8  # bytes: of each of 7 bins for each column of the image
    assert largest == [29 * weights, 299 * weights]
    assert weights < 400 * 600 / 7
