"""Training from annotated points, compared with the heads of the PointSup project.

The project is not installed. Its heads are the stock heads, trained at points that are given; what
its source does with them is written here as slow loops, and its loss is that of the stock project.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.projects.point_rend import mask_head as stock_mask_head
from detectron2.projects.point_rend.point_features import point_sample as stock_point_sample
from detectron2.projects.point_rend.point_head import roi_mask_point_loss as stock_loss
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from point_rend.mask_head import ImplicitPointRendPointSupHead, MaskRCNNConvUpsamplePointSupHead
from tests.synthetic import (
    CHANNELS,
    IMAGE_SIZE,
    SHAPES,
    random_features,
    random_mask_head,
    random_proposals,
    randomize,
    small_head_config,
)


def with_points(boxes_per_image: list[int], points: int = 10) -> list[Instances]:
    """Give proposals points in and around them; some are out of the image, with the label −1."""
    generator = torch.Generator().manual_seed(3)
    proposals = random_proposals(boxes_per_image)
    for x in proposals:
        x.remove("gt_masks")
        near, far = x.proposal_boxes.tensor[:, None].split(2, dim=2)
        shares = 1.4 * torch.rand(len(x), points, 2, generator=generator) - 0.2
        x.gt_point_coords = near + shares * (far - near)
        x.gt_point_labels = torch.randint(-1, 2, (len(x), points), generator=generator).float()
    return proposals


def official_points(instances: list[Instances]) -> tuple[Tensor, Tensor]:
    """Points in the frame of their boxes; those outside of them have the label −1."""
    coords, labels = [], []
    for x in instances:
        for box, points, given in zip(
            x.proposal_boxes.tensor, x.gt_point_coords, x.gt_point_labels, strict=True
        ):
            x0, y0, x1, y1 = box.numpy()
            for (px, py), label in zip(points.numpy(), given.numpy(), strict=True):
                u, v = (px - x0) / (x1 - x0), (py - y0) / (y1 - y0)
                coords.append((u, v))
                labels.append(-1.0 if u < 0 or u > 1 or v < 0 or v > 1 else label)
    shape = (sum(map(len, instances)), -1)
    return torch.tensor(np.array(coords)).view(*shape, 2), torch.tensor(np.array(labels)).view(
        shape
    )


def official_loss(logits: Tensor, instances: list[Instances], labels: Tensor) -> Tensor:
    with EventStorage():
        return stock_loss(logits, instances, labels)


def slow_loss(logits: Tensor, instances: list[Instances], labels: Tensor) -> float:
    """Binary cross entropy of the class's logits, divided by the number of all points."""
    classes = [c for x in instances for c in x.gt_classes.tolist()]
    total = 0.0
    for region, label in ((n, k) for n in range(len(labels)) for k in range(labels.shape[1])):
        truth = labels[region, label].item()
        if truth != -1:
            logit = logits[region, classes[region] if logits.shape[1] > 1 else 0, label].item()
            share = 1 / (1 + np.exp(-logit))
            total -= np.log(share if truth else 1 - share)
    return total / labels.numel()


def interpolated(mask: np.ndarray, u: float, v: float) -> float:
    """A mask (S, S) at a position in its box, between the centers of its cells, 0 beyond."""
    side = len(mask)
    x, y = u * side - 0.5, v * side - 0.5
    value = 0.0
    for column in (int(np.floor(x)), int(np.floor(x)) + 1):
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            if 0 <= column < side and 0 <= row < side:
                value += (1 - abs(x - column)) * (1 - abs(y - row)) * mask[row, column]
    return value


def losses_of(head: torch.nn.Module, features: object, instances: list[Instances]) -> dict:
    with EventStorage():
        return head.train()(features, instances)


def as_float(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def test_the_implicit_head_has_the_losses_of_the_project():
    class Official(stock_mask_head.ImplicitPointRendMaskHead):
        def _uniform_sample_train_points(self, instances):
            return official_points(instances)

    cfg = small_head_config("MODEL.POINT_HEAD.NUM_CLASSES", 5, implicit=True)
    ours, official = ImplicitPointRendPointSupHead(cfg, SHAPES), Official(cfg, SHAPES)
    randomize(ours, scale=0.2)
    official.load_state_dict(ours.state_dict())
    found, expected = (
        losses_of(x, random_features(2), with_points([4, 2])) for x in (ours, official)
    )
    assert as_float(found) == pytest.approx(as_float(expected), rel=1e-5)
    for losses in (found, expected):
        sum(losses.values()).backward()
    for name, parameter in official.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, msg=name)


@pytest.mark.parametrize("agnostic", [False, True], ids=["per class", "agnostic"])
def test_the_convolutional_head_has_the_loss_of_the_project(agnostic):
    cfg = small_head_config("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsamplePointSupHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 2
    shape = type(SHAPES["p2"])(channels=CHANNELS, height=7, width=7)
    head = ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, shape)
    assert isinstance(head, MaskRCNNConvUpsamplePointSupHead)
    randomize(head)
    instances = with_points([3, 0, 2])
    features = torch.randn(5, CHANNELS, 7, 7, generator=torch.Generator().manual_seed(1))
    logits = head.layers(features)
    coords, labels = official_points([x for x in instances if len(x)])
    at_points = stock_point_sample(logits, coords.float(), align_corners=False)
    expected = official_loss(at_points, instances, labels)
    assert expected.item() == pytest.approx(slow_loss(at_points, instances, labels), rel=1e-5)
    found = losses_of(head, features, instances)
    assert as_float(found) == {"loss_mask": pytest.approx(expected.item(), rel=1e-5)}


def test_the_standard_head_trains_the_coarse_mask_and_the_point_head_at_the_same_points():
    head = random_mask_head()
    features, instances = random_features(2), with_points([3, 2])
    coarse, fine = [], []
    head.coarse_head.register_forward_hook(lambda *x: coarse.append(x[2].detach()))
    head.point_head.register_forward_hook(lambda *x: fine.append((x[1], x[2].detach())))
    found = losses_of(head, features, instances)
    coords, labels = official_points(instances)
    masks = coarse[0].numpy()
    at_points = torch.tensor(
        [
            [[interpolated(mask, u, v) for u, v in points] for mask in per_class]
            for per_class, points in zip(masks, coords.tolist(), strict=True)
        ]
    )
    (_, seen), logits = fine[0]
    counted = (labels != -1)[:, None].expand_as(seen)
    torch.testing.assert_close(seen[counted], at_points.float()[counted], rtol=1e-4, atol=1e-5)
    assert found["loss_mask"].item() == pytest.approx(slow_loss(at_points, instances, labels))
    expected = official_loss(logits, instances, labels)
    assert found["loss_mask_point"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("implicit", [False, True], ids=["standard", "implicit"])
def test_points_outside_of_their_proposal_lower_the_mean_and_teach_nothing(implicit):
    head = random_mask_head(implicit=implicit)
    losses = []
    for position in (0.5, 1.5):
        (instances,) = with_points([2], points=1)
        near, far = instances.proposal_boxes.tensor[:, None].split(2, dim=2)
        instances.gt_point_coords = near + torch.tensor([[0.3], [position]])[..., None] * (
            far - near
        )
        instances.gt_point_labels = torch.ones(2, 1)
        losses.append(losses_of(head, random_features(1), [instances])["loss_mask_point"])
    (first,) = with_points([2], points=1)
    first = first[:1]
    near, far = first.proposal_boxes.tensor[:, None].split(2, dim=2)
    first.gt_point_coords, first.gt_point_labels = near + 0.3 * (far - near), torch.ones(1, 1)
    alone = losses_of(head, random_features(1), [first])["loss_mask_point"]
    torch.testing.assert_close(losses[1], alone / 2)
    assert losses[0] > losses[1]


def test_the_sampled_positions_are_those_of_the_image():
    """A map of x and y, read at the points by the implicit head, is their position."""
    instances = Instances(IMAGE_SIZE, proposal_boxes=Boxes(torch.tensor([[8.0, 4.0, 40.0, 36.0]])))
    instances.gt_classes = torch.tensor([0])
    instances.gt_point_coords = torch.tensor([[[10.5, 30.5], [39.5, 4.5]]])
    instances.gt_point_labels = torch.tensor([[1, 0]])
    head = random_mask_head(implicit=True)
    height, width = IMAGE_SIZE
    ys, xs = torch.meshgrid(
        torch.arange(height / 4) + 0.5, torch.arange(width / 4) + 0.5, indexing="ij"
    )
    maps = F.pad(torch.stack((4 * xs, 4 * ys))[None], (0, 0, 0, 0, 0, CHANNELS - 2))
    seen = []
    head.point_head.register_forward_pre_hook(lambda _, given: seen.append(given))
    losses_of(head, random_features(1) | {"p2": maps}, [instances])
    fine, coords, _ = seen[0]
    torch.testing.assert_close(fine[0, :2].T, instances.gt_point_coords[0])
    torch.testing.assert_close(coords[0, 0], torch.tensor([2.5 / 32, 26.5 / 32]))
