"""Linear layers at points: both orders against explicit sampling followed by a matrix product."""

import math

import pytest
import torch

from point_rend.rendering.bilinear_gather import CornerCells
from point_rend.rendering.projected_sampling import (
    POINTS_PER_COPIED_POSITION,
    POINTS_PER_PROJECTED_POSITION,
    Affine,
    ProjectThenSample,
    SampleThenProject,
    linear_at_points,
)
from point_rend.rendering.sampling import point_sample
from tests.pairwise import pairwise_rows

MAPS, CHANNELS, OUTPUTS, POINTS = 2, 5, 3, 40
SIZES = [(7, 7), (4, 9), (2, 2), (1, 1), (1, 6), (6, 1)]
# Fewer and more points than the maps have positions.
FEW, MANY = 1, 10**6
ORDERS = pytest.mark.parametrize("num_points", [FEW, MANY], ids=["sample-first", "project-first"])


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
        "per-map": [Affine(random(MAPS, 1, CHANNELS), random(MAPS, 1))],
        "identity": [Affine()],
        "several": [
            Affine(random(OUTPUTS, CHANNELS), random(OUTPUTS)),
            Affine(random(1, CHANNELS)),
            Affine(random(MAPS, 2, CHANNELS)),
        ],
    }[kind]


def expected(maps: torch.Tensor, layer: Affine, coords: torch.Tensor) -> torch.Tensor:
    """Sample, then multiply, one map and one point at a time."""
    samples = point_sample(maps, coords)
    rows = []
    for index, sampled in enumerate(samples):
        for point in sampled.T:
            if layer.weight is None:
                rows.append(point)
                continue
            per_map = layer.weight.dim() == 3
            weight = layer.weight[index] if per_map else layer.weight
            value = weight @ point
            if layer.bias is not None:
                value = value + (layer.bias[index] if per_map else layer.bias)
            rows.append(value)
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("size", "kind", "num_points"),
    pairwise_rows(SIZES, ["shared", "biased", "per-map", "identity", "several"], [FEW, MANY]),
)
def test_both_orders_equal_sampling_followed_by_the_layer(size, kind, num_points):
    maps, coords, layers = random_map(size), coordinates(), layers_of(kind)
    outputs = list(linear_at_points(maps, layers, num_points)(coords)(slice(None)))
    assert len(outputs) == len(layers)
    for output, layer in zip(outputs, layers, strict=True):
        oracle = expected(maps, layer, coords)
        assert output.dtype == torch.float32
        assert output.shape == oracle.shape
        torch.testing.assert_close(output, oracle, rtol=1e-5, atol=2e-5)


@ORDERS
@pytest.mark.parametrize(
    "rows",
    [
        slice(0, 10),
        slice(35, 47),  # points of both maps
        slice(79, 80),
        slice(None, 10),
        slice(70, None),
        slice(70, 100),  # ends beyond the last row, as slices may
        slice(0, 0),
    ],
    ids=str,
)
def test_a_slice_of_rows_equals_those_rows_of_all_outputs(num_points, rows):
    layers = layers_of("several")
    outputs = linear_at_points(random_map((7, 7)), layers, num_points)(coordinates())
    for part, whole in zip(outputs(rows), outputs(slice(None)), strict=True):
        assert part.shape == whole[rows].shape
        torch.testing.assert_close(part, whole[rows], rtol=1e-6, atol=1e-6)


@ORDERS
def test_both_orders_compile_without_a_graph_break(num_points):
    maps, coords, layers = random_map((7, 7)), coordinates(), layers_of("several")

    def outputs(maps, coords):
        bound = linear_at_points(maps, layers, num_points)(coords)
        return [part for rows in (slice(0, 35), slice(35, 80)) for part in bound(rows)]

    compiled = torch.compile(outputs, backend="aot_eager", fullgraph=True)
    for actual, expected_part in zip(compiled(maps, coords), outputs(maps, coords), strict=True):
        torch.testing.assert_close(actual, expected_part, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_points", [0, FEW, MANY])
def test_zero_maps_and_zero_points_are_valid_sizes(num_points):
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


@pytest.mark.parametrize(
    ("layer", "points_per_position"),
    [
        (Affine(torch.randn(OUTPUTS, CHANNELS)), POINTS_PER_PROJECTED_POSITION),
        (Affine(), POINTS_PER_COPIED_POSITION),
    ],
    ids=["linear", "identity"],
)
def test_the_order_depends_on_the_number_of_points_per_position(layer, points_per_position):
    enough = math.ceil(MAPS * 35 * points_per_position)
    maps = random_map((5, 7))
    assert isinstance(linear_at_points(maps, [layer], enough - 1), SampleThenProject)
    assert isinstance(linear_at_points(maps, [layer], enough), ProjectThenSample)


@pytest.mark.parametrize(
    ("kind", "num_points", "layout"),
    pairwise_rows(
        ["shared", "identity", "several"],
        [FEW, MANY],
        [torch.contiguous_format, torch.channels_last],
    ),
)
def test_maps_of_any_layout_are_read_and_not_modified(kind, num_points, layout):
    maps, coords, layers = random_map((5, 7)), coordinates(), layers_of(kind)
    wider = torch.cat((maps, maps), dim=3).contiguous(memory_format=layout)
    kept = wider.clone()
    cropped = wider[..., : maps.shape[3]]  # a view into wider rows
    outputs = linear_at_points(cropped, layers, num_points)(coords)(slice(None))
    for output, layer in zip(outputs, layers, strict=True):
        torch.testing.assert_close(output, expected(maps, layer, coords), rtol=1e-5, atol=2e-5)
    assert torch.equal(wider, kept)


@pytest.mark.parametrize("ring", [0, 1])
def test_corner_cells_match_a_slow_loop_over_all_cells(ring):
    height, width = 3, 4
    coords = coordinates()
    indices, weights = CornerCells(height, width, ring=ring)(coords)
    assert indices.dtype == torch.int32
    assert indices.shape == weights.shape == (MAPS * POINTS, 4)
    stored = (height + 2 * ring) * (width + 2 * ring)
    for row, (index, point) in enumerate((m, p) for m in range(MAPS) for p in coords[m].tolist()):
        found = torch.zeros(MAPS * stored)
        found.index_add_(0, indices[row], weights[row])
        oracle = torch.zeros(MAPS, height + 2 * ring, width + 2 * ring)
        for y in range(height + 2 * ring):
            for x in range(width + 2 * ring):
                # A point beyond the ring reads the ring; without a ring it reads nothing.
                px, py = point[0] * width + ring - 0.5, point[1] * height + ring - 0.5
                if ring:
                    px, py = min(max(px, 0), width + 1), min(max(py, 0), height + 1)
                dx, dy = abs(px - x), abs(py - y)
                oracle[index, y, x] = max(0, 1 - dx) * max(0, 1 - dy)
        torch.testing.assert_close(found, oracle.flatten(), rtol=0, atol=2e-6)


def test_both_orders_have_the_same_gradients():
    maps, coords = random_map((4, 5)), coordinates()
    layer = layers_of("biased")[0]
    gradients = []
    for order in (FEW, MANY):
        leaf = maps.clone().requires_grad_()
        (output,) = linear_at_points(leaf, [layer], order)(coords)(slice(None))
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ring", [0, 1])
def test_nan_coordinates_have_nan_weights_on_valid_cells(ring):
    coords = torch.tensor([[[math.nan, 0.5]], [[0.5, math.nan]]])
    indices, weights = CornerCells(3, 4, ring=ring)(coords)
    assert weights.isnan().all()
    assert indices.min() >= 0
    assert indices.max() < 2 * (3 + 2 * ring) * (4 + 2 * ring)
