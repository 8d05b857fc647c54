"""Linear layers at points: both orders against sampling and a product, written out."""

import math

import pytest
import torch

from point_rend.point_linear import (
    POINTS_PER_COPIED_POSITION,
    POINTS_PER_PROJECTED_POSITION,
    Affine,
    CornerCells,
    linear_at_points,
    position_major,
)
from point_rend.sampling import point_sample

MAPS, CHANNELS, OUTPUTS, POINTS = 2, 5, 3, 40
SIZES = [(7, 7), (4, 9), (2, 2), (1, 1), (1, 6), (6, 1)]
# Points, against the positions of the maps.
FEW, SOME, MANY = 1, 60, 10**6
ORDERS = pytest.mark.parametrize(
    "num_points", [FEW, SOME, MANY], ids=["sample-maps", "sample-rows", "project-first"]
)


def coordinates(maps: int = MAPS, points: int = POINTS) -> torch.Tensor:
    """Points in the maps, on their borders and up to half a map outside."""
    generator = torch.Generator().manual_seed(3)
    coords = torch.rand(maps, points, 2, generator=generator) * 2 - 0.5
    coords[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.5]])[:points]
    return coords


def random_map(size: tuple[int, int], maps: int = MAPS, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(maps, CHANNELS, *size, generator=generator).to(dtype)


def layers_of(kind: str) -> list[Affine]:
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "shared": [Affine(random(OUTPUTS, CHANNELS))],
        "biased": [Affine(random(OUTPUTS, CHANNELS), random(OUTPUTS))],
        "of-maps": [Affine(random(MAPS, 1, CHANNELS), random(MAPS, 1))],
        "identity": [Affine()],
        "several": [
            Affine(random(OUTPUTS, CHANNELS), random(OUTPUTS)),
            Affine(random(1, CHANNELS)),
            Affine(random(MAPS, 2, CHANNELS)),
        ],
    }[kind]


def expected(maps: torch.Tensor, layer: Affine, coords: torch.Tensor) -> torch.Tensor:
    """Sample, then multiply, map by map and point by point."""
    samples = point_sample(maps, coords)
    rows = []
    for index, of_map in enumerate(samples):
        for point in of_map.T:
            if layer.weight is None:
                rows.append(point)
                continue
            own = layer.weight.dim() == 3
            weight = layer.weight[index] if own else layer.weight
            value = weight @ point
            if layer.bias is not None:
                value = value + (layer.bias[index] if own else layer.bias)
            rows.append(value)
    return torch.stack(rows)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["shared", "biased", "of-maps", "identity", "several"])
@ORDERS
def test_both_orders_are_sampling_and_a_product(size, kind, num_points):
    maps, coords, layers = random_map(size), coordinates(), layers_of(kind)
    outputs = list(linear_at_points(maps, layers, num_points)(coords)(slice(None)))
    assert len(outputs) == len(layers)
    for output, layer in zip(outputs, layers, strict=True):
        oracle = expected(maps, layer, coords)
        assert output.dtype == torch.float32
        assert output.shape == oracle.shape
        torch.testing.assert_close(output, oracle, rtol=1e-5, atol=2e-5)


@ORDERS
def test_a_slice_has_the_rows_of_the_whole(num_points):
    layers = layers_of("several")
    terms = linear_at_points(random_map((7, 7)), layers, num_points)(coordinates())
    for rows in (slice(0, 10), slice(35, 47), slice(79, 80), slice(0, 0)):
        for part, whole in zip(terms(rows), terms(slice(None)), strict=True):
            torch.testing.assert_close(part, whole[rows], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_points", [0, FEW, MANY])
def test_no_maps_and_no_points_are_sizes(num_points):
    layers = [Affine(torch.randn(OUTPUTS, CHANNELS), torch.randn(OUTPUTS))]
    for maps, points in ((0, POINTS), (MAPS, 0)):
        bound = linear_at_points(random_map((4, 4), maps), layers, num_points)
        (output,) = bound(coordinates(maps, points))(slice(None))
        assert output.shape == (0, OUTPUTS)


def test_maps_of_half_precision_are_interpolated_in_float32():
    maps = random_map((7, 7), dtype=torch.bfloat16)
    (output,) = linear_at_points(maps, [Affine()], MANY)(coordinates())(slice(None))
    assert output.dtype == torch.float32
    oracle = expected(maps.float(), Affine(), coordinates())
    torch.testing.assert_close(output, oracle, rtol=1e-5, atol=1e-5)


def test_the_order_follows_from_the_points_against_the_positions(monkeypatch):
    tables = []
    monkeypatch.setattr(
        "point_rend.point_linear._sample_projections",
        lambda _, layers, **__: tables.append(layers),
    )
    positions, layers = MAPS * 35, [Affine(torch.randn(OUTPUTS, CHANNELS))]
    for points_per_position, expected_tables in (
        (POINTS_PER_COPIED_POSITION * 0.9, []),
        (POINTS_PER_COPIED_POSITION * 1.1, [[Affine()]]),
        (POINTS_PER_PROJECTED_POSITION * 0.9, [[Affine()]]),
        (POINTS_PER_PROJECTED_POSITION * 1.1, [layers]),
    ):
        tables.clear()
        linear_at_points(random_map((5, 7)), layers, int(positions * points_per_position))
        assert tables == expected_tables
    tables.clear()
    laid_out = random_map((5, 7)).contiguous(memory_format=torch.channels_last)
    linear_at_points(laid_out, layers, FEW)
    assert tables == [[Affine()]]  # as the copy is there already


SQUARE = Affine(torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("size", [(5, 7), (50, 60)])
def test_outputs_take_the_place_of_maps_that_may_be_used_up(size):
    maps, coords = random_map(size), coordinates()
    used_up = maps.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        terms = linear_at_points(used_up, [SQUARE], MANY, overwrites=True)(coords)
    (outputs,) = terms(slice(None))
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, expected(maps, SQUARE, coords), rtol=1e-5, atol=1e-5)
    projected = torch.einsum("od,mdhw->mohw", SQUARE.weight, maps)
    torch.testing.assert_close(used_up, projected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_points", [SOME, MANY], ids=["sample-rows", "project-first"])
@pytest.mark.parametrize(
    ("layers", "overwrites"),
    [
        ([SQUARE], False),
        (layers_of("shared"), True),
        (layers_of("of-maps"), True),
        (layers_of("identity"), True),
        ([SQUARE, SQUARE], True),
        ([Affine(SQUARE.weight, torch.ones(CHANNELS))], True),
    ],
    ids=["not-allowed", "other-size", "of-maps", "identity", "several", "biased"],
)
def test_maps_stay_where_outputs_do_not_fit_or_must_not_take_their_place(
    layers, overwrites, num_points
):
    maps = random_map((5, 7)).contiguous(memory_format=torch.channels_last)
    kept, coords = maps.clone(), coordinates()
    with torch.no_grad():
        terms = linear_at_points(maps, layers, num_points, overwrites=overwrites)(coords)
    for layer, outputs in zip(layers, terms(slice(None)), strict=True):
        torch.testing.assert_close(outputs, expected(maps, layer, coords), rtol=1e-5, atol=1e-5)
    assert torch.equal(maps, kept)


def test_gradients_reach_maps_that_may_be_used_up():
    maps = random_map((5, 7)).requires_grad_()
    coords = coordinates()
    (outputs,) = linear_at_points(maps, [SQUARE], MANY, overwrites=True)(coords)(slice(None))
    (gradient,) = torch.autograd.grad(outputs.square().sum(), maps)
    (oracle,) = torch.autograd.grad(expected(maps, SQUARE, coords).square().sum(), maps)
    torch.testing.assert_close(gradient, oracle, rtol=1e-4, atol=1e-4)


def test_maps_are_laid_out_by_positions_where_the_points_pay_for_it():
    maps = random_map((5, 7))
    enough = math.ceil(MAPS * 35 * POINTS_PER_COPIED_POSITION)
    assert position_major(maps, enough - 1) is maps
    laid_out = position_major(maps, enough)
    assert torch.equal(laid_out, maps)
    assert laid_out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("ring", [0, 1])
def test_corner_cells_are_found_as_a_slow_loop_finds_them(ring):
    height, width = 3, 4
    coords = coordinates()
    indices, weights = CornerCells(height, width, ring=ring, like=coords)(coords)
    assert indices.dtype == torch.int64
    assert indices.shape == weights.shape == (MAPS * POINTS, 4)
    stored = (height + 2 * ring) * (width + 2 * ring)
    for row, (index, point) in enumerate((m, p) for m in range(MAPS) for p in coords[m].tolist()):
        found = torch.zeros(MAPS * stored)
        found.index_add_(0, indices[row], weights[row])
        oracle = torch.zeros(MAPS, height + 2 * ring, width + 2 * ring)
        for y in range(height + 2 * ring):
            for x in range(width + 2 * ring):
                # With a ring, a point beyond it reads the ring; without one, nothing.
                px, py = point[0] * width + ring - 0.5, point[1] * height + ring - 0.5
                if ring:
                    px, py = min(max(px, 0), width + 1), min(max(py, 0), height + 1)
                dx, dy = abs(px - x), abs(py - y)
                oracle[index, y, x] = max(0, 1 - dx) * max(0, 1 - dy)
        torch.testing.assert_close(found, oracle.flatten(), rtol=0, atol=2e-6)


def test_gradients_flow_as_through_sampling_and_a_product():
    maps, coords = random_map((4, 5)), coordinates()
    layer = layers_of("biased")[0]
    gradients = []
    for order in (FEW, SOME, MANY):
        leaf = maps.clone().requires_grad_()
        (output,) = linear_at_points(leaf, [layer], order)(coords)(slice(None))
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
        gradients.append(gradient)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-4)
