"""Counted operations: planted sizes, and fvcore."""

from collections.abc import Callable

import pytest
import torch
from detectron2.layers import ShapeSpec
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from point_rend import StandardPointHead
from point_rend.coarse_mask_head import CoarseMaskHead
from point_rend.experiments.operation_counts import count
from point_rend.rendering.projected_sampling import Affine, linear_at_points


def coarse_head() -> CoarseMaskHead:
    shape = ShapeSpec(channels=6, height=4, width=4)
    return CoarseMaskHead(input_shape=shape, conv_dim=5, fc_dims=[7], output_shape=(3, 2, 2))


def point_head() -> StandardPointHead:
    return StandardPointHead(in_channels=6, coarse_channels=3, num_classes=3, fc_dim=8, num_fc=2)


def test_a_coarse_head_costs_the_sum_of_its_layers():
    convolutions = 6 * 5 * 16 + 5 * 5 * 4 * 4  # 1×1 on a grid of 4×4; 2×2 with stride 2
    expected = (convolutions + 20 * 7 + 7 * 12, 5 * 16 + 5 * 4 + 7 + 12)
    assert count(coarse_head(), torch.zeros(1, 6, 4, 4)) == expected


def test_a_point_head_costs_its_layers_at_every_point():
    cost = count(point_head(), torch.zeros(1, 6, 10), torch.zeros(1, 3, 10))
    assert cost == (10 * (9 * 8 + 11 * 8 + 11 * 3), 10 * (8 + 8 + 3))


@pytest.mark.parametrize("build", [coarse_head, point_head])
def test_layers_are_counted_as_fvcore_counts_them(build: Callable[[], nn.Module]):
    head = build()
    inputs: tuple[Tensor, ...] = (torch.zeros(2, 6, 4, 4),)
    if isinstance(head, StandardPointHead):
        inputs = torch.zeros(2, 6, 10), torch.zeros(2, 3, 10)
    flops = FlopCountAnalysis(head, inputs).unsupported_ops_warnings(False).total()
    activations = ActivationCountAnalysis(head, inputs).unsupported_ops_warnings(False).total()
    assert count(head, *inputs) == (flops, activations)


def read_at(num_points: int) -> None:
    """Apply a layer of 6 × 8 to a map of 4 × 5 at points."""
    maps, layer = torch.zeros(1, 6, 4, 5), Affine(torch.zeros(8, 6))
    read = linear_at_points(maps, [layer], num_points)
    list(read(torch.zeros(1, num_points, 2))(slice(None)))


def test_a_layer_on_a_map_costs_its_positions_and_four_reads_per_point():
    assert count(read_at, 100).multiply_adds == 4 * 5 * 6 * 8 + 100 * 4 * 8


def test_a_layer_at_few_points_costs_reading_and_multiplying_them():
    assert count(read_at, 3) == (3 * 4 * 6 + 3 * 6 * 8, 3 * 8)


def test_products_with_weights_of_each_box_are_counted():
    weights, rows, bias = torch.zeros(4, 6, 8), torch.zeros(4, 10, 6), torch.zeros(4, 1, 8)
    expected = (4 * 10 * 6 * 8, 4 * 10 * 8)
    assert count(torch.bmm, rows, weights) == expected
    assert count(torch.baddbmm, bias, rows, weights) == expected


def test_a_product_added_in_place_is_counted():
    sums = torch.zeros(10, 8)
    assert count(sums.addmm_, torch.zeros(10, 6), torch.zeros(6, 8)) == (10 * 6 * 8, 80)


def test_attention_costs_its_two_products_in_either_form():
    query, key, value = torch.rand(2, 3, 5, 8), torch.rand(2, 3, 7, 8), torch.rand(2, 3, 7, 8)

    def attend() -> None:
        nn.functional.scaled_dot_product_attention(query, key, value)

    products = 2 * (2 * 3 * 5 * 7 * 8)
    with torch.no_grad():
        assert count(attend).multiply_adds == products
        with sdpa_kernel(SDPBackend.MATH):
            assert count(attend).multiply_adds == products
