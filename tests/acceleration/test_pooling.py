"""RoIAlign by rows: the values of torchvision's, for any box; the box head behind it."""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import roi_align

from point_rend.acceleration.pooling import FastROIPooler
from point_rend.acceleration.prepare import prepare_for_inference
from tests.memory import LargestTensor

HEIGHT, WIDTH = 192, 256
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)


def pyramid(images: int, channels: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, channels, int(HEIGHT * s), int(WIDTH * s), generator=generator)
        for s in SCALES
    ]


def boxes_of_all_kinds(count: int, seed: int) -> Boxes:
    """Return boxes of all sizes and proportions, some beyond the image, some without area."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([WIDTH, HEIGHT])
    corner = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * limit
    side = limit * 2 ** (-7 * torch.rand(count, 2, generator=generator))
    boxes = torch.cat((corner, corner + side), dim=1)
    special = [
        *([0, 0, WIDTH, HEIGHT], [10, 20, 10, 20], [30, 40, 30, 80], [50, 60, 20, 30]),
        *([3, 8, 3 + WIDTH * 3, 12], [-999, -999, -900, -900], [WIDTH - 1, HEIGHT - 1, WIDTH, 999]),
    ]
    return Boxes(torch.cat((boxes, torch.tensor(special, dtype=torch.float32))))


@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIAlign"])
@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("side", [7, (3, 3), 14])
def test_pooled_features_are_those_of_torchvision(kind: str, levels: int, side):
    pooler = ROIPooler(side, SCALES[:levels], 0, kind).eval()
    features = pyramid(3)[:levels]
    boxes = [boxes_of_all_kinds(60, 1), Boxes(torch.zeros(0, 4)), boxes_of_all_kinds(3, 2)]
    with torch.no_grad():
        doubles = [Boxes(b.tensor.double()) for b in boxes]
        expected = pooler([x.double() for x in features], doubles)
        single = pooler(features, boxes)
        assert type(prepare_for_inference(pooler)) is FastROIPooler
        for order in (torch.contiguous_format, torch.channels_last):
            pooled = pooler([x.contiguous(memory_format=order) for x in features], boxes)
            assert pooled.dtype == torch.float32
            assert pooled.shape == expected.shape
            torch.testing.assert_close(pooled, single, rtol=0, atol=1e-5)
    # The number of samples of a box of whole bins may depend on the precision.
    is_close = (pooled - expected).abs().flatten(1).amax(dim=1) < 1e-4
    assert is_close.double().mean() > 0.95
    assert expected.abs().amax() > 1


def test_boxes_that_are_not_finite_do_not_harm_the_others():
    pooler = ROIPooler(7, SCALES, 0, "ROIAlignV2").eval()
    features = pyramid(1)
    boxes = boxes_of_all_kinds(5, 3)
    with torch.no_grad():
        expected = pooler(features, [boxes])
        broken = torch.tensor([[float("nan"), 0, 1, 1], [0, 0, float("inf"), 8]])
        both = Boxes(torch.cat((boxes.tensor, broken)))
        pooled = prepare_for_inference(pooler)(features, [both])
    torch.testing.assert_close(pooled[: len(boxes)], expected, rtol=0, atol=1e-5)


def test_boxes_of_no_level_have_features_0(monkeypatch):
    pooler = ROIPooler(7, SCALES, 0, "ROIAlignV2").eval()
    boxes = [Boxes(torch.tensor([[9.0, 9, 3, 40], [float("nan")] * 4]))]  # areas below 0 and NaN
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, 7.0))
    with torch.no_grad():
        assert not pooler(pyramid(1), boxes).any()
        assert not prepare_for_inference(pooler)(pyramid(1), boxes).any()


def test_memory_does_not_grow_with_the_size_of_boxes():
    pooler = prepare_for_inference(ROIPooler(7, [1.0], 0, "ROIAlignV2").eval())
    boxes = [Boxes(torch.tensor([[0.5, 0.25, 400, 300]]).repeat(60, 1))]
    features = [torch.randn(1, 2, 304, 400)]
    with torch.no_grad(), LargestTensor() as largest:
        pooled = pooler(features, boxes)
    assert largest.bytes < 10_000_000  # at once, the cells would take 31 MB
    assert torch.equal(pooled, pooled[:1].expand_as(pooled))
    alone = roi_align(features[0], torch.tensor([[0, 0.5, 0.25, 400, 300]]), 7, aligned=True)
    torch.testing.assert_close(pooled[:1], alone, rtol=0, atol=1e-5)


def test_no_box_gives_no_features():
    pooler = prepare_for_inference(ROIPooler(7, SCALES, 0, "ROIAlignV2").eval())
    with torch.no_grad():
        assert pooler(pyramid(1), [Boxes(torch.zeros(0, 4))]).shape == (0, 5, 7, 7)


def test_other_pooling_and_gradients_take_the_original_way_bit_for_bit():
    boxes = [boxes_of_all_kinds(20, 4)]
    for kind, ratio in (("ROIPool", 0), ("ROIAlignV2", 2)):
        pooler = ROIPooler(7, SCALES, ratio, kind).eval()
        with torch.no_grad():
            expected = pooler(pyramid(1), boxes)
            assert torch.equal(prepare_for_inference(pooler)(pyramid(1), boxes), expected)
    pooler = ROIPooler(7, SCALES, 0, "ROIAlignV2").eval()
    expected = pooler(pyramid(1), boxes)
    assert torch.equal(prepare_for_inference(pooler)(pyramid(1), boxes), expected)


@pytest.mark.parametrize("convolutions", [0, 2])
def test_the_box_head_gives_its_values_for_features_in_either_format(convolutions: int):
    torch.manual_seed(0)
    head = FastRCNNConvFCHead(
        ShapeSpec(channels=6, height=7, width=7), conv_dims=[8] * convolutions, fc_dims=[9, 10]
    ).eval()
    before = copy.deepcopy(head.state_dict())
    x = torch.randn(4, 6, 7, 7)
    with torch.no_grad():
        expected = head(x)
        prepare_for_inference(head)
        for order in (torch.contiguous_format, torch.channels_last):
            y = head(x.contiguous(memory_format=order))
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
        head.fc1.weight.mul_(2)
        assert not torch.allclose(head(x), expected)
        head.load_state_dict(before)
        torch.testing.assert_close(head(x), expected, rtol=1e-5, atol=1e-6)
        assert head(x[:0]).shape == (0, 10)
    assert head.state_dict().keys() == before.keys()


def test_a_layer_that_is_replaced_or_observed_takes_its_own_way():
    torch.manual_seed(0)
    shape = ShapeSpec(channels=6, height=7, width=7)
    head = FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[9, 10]).eval()
    x = torch.randn(4, 6, 7, 7)

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    replaced, observed = copy.deepcopy(head), copy.deepcopy(head)
    replaced.fc1 = Doubled(294, 9)
    observed.fc1.register_forward_hook(lambda *call: 2 * call[-1])
    with torch.no_grad():
        for one in (replaced, observed):
            expected = one(x)
            assert torch.equal(prepare_for_inference(one)(x), expected)
