"""Reading maps at points and choosing points, against slow loops."""

import math

import pytest
import torch

from point_rend.rendering.sampling import PointSampler, most_uncertain_cells, point_sample
from point_rend.rendering.uncertainty import foreground_uncertainty

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_bilinear(values: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Sum the four neighbors of a point (C,), in cells beyond the map 0; x, y in [0, 1]."""
    height, width = values.shape[1:]
    column, row = x * width - 0.5, y * height - 0.5  # cell i has its center at i + 0.5
    result = torch.zeros(values.shape[0], dtype=values.dtype)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                result += (1 - abs(row - i)) * (1 - abs(column - j)) * values[:, i, j]
    return result


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("contiguous", [True, False])
def test_point_sample_equals_a_slow_loop(dtype, contiguous):
    maps = torch.randn(2, 3, 5, 7, dtype=dtype, generator=generator())
    if not contiguous:
        maps = maps.transpose(2, 3)
    coords = torch.rand(2, 40, 2, dtype=dtype, generator=generator(1)) * 1.4 - 0.2  # outside, too
    sampled = point_sample(maps, coords)
    assert sampled.dtype == dtype
    assert sampled.shape == (2, 3, 40)
    for region in range(2):
        for point, (x, y) in enumerate(coords[region].tolist()):
            expected = slow_bilinear(maps[region], x, y)
            error = (sampled[region, :, point] - expected).abs().max()
            assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_single_map_is_read_as_one_of_several(layout):
    maps = torch.randn(2, 3, 5, 7, generator=generator()).contiguous(memory_format=layout)
    coords = torch.rand(2, 40, 2, generator=generator(1)) * 1.4 - 0.2
    for of_points in (coords, coords.unflatten(1, (5, 8))):
        leaf = maps.clone().requires_grad_()
        together = point_sample(leaf, of_points)
        single = [point_sample(leaf[i : i + 1], of_points[i : i + 1]) for i in range(2)]
        assert torch.equal(torch.cat(single), together)
        gradients = [
            torch.autograd.grad(outputs.square().sum(), leaf)[0]
            for outputs in (together, torch.cat(single))
        ]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_point_sample_returns_the_cell_at_its_center():
    maps = torch.randn(1, 2, 3, 4, generator=generator())
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    coords = torch.stack(((columns + 0.5) / 4, (rows + 0.5) / 3), dim=-1)[None]  # (1, 3, 4, 2)
    torch.testing.assert_close(point_sample(maps, coords), maps)
    flat = point_sample(maps, coords.flatten(1, 2))
    torch.testing.assert_close(flat, maps.flatten(2))


def test_maps_fade_to_zero_at_the_border_or_continue():
    ones = torch.ones(1, 1, 4, 4)
    coords = torch.tensor([[[0.5, 0.5], [0.0, 0.5], [0.0, 0.0], [-0.125, 0.5], [2.0, 2.0]]])
    fading = point_sample(ones, coords)
    assert fading.flatten().tolist() == pytest.approx([1, 0.5, 0.25, 0, 0])
    continued = point_sample(ones, coords, padding_mode="border")
    assert continued.flatten().tolist() == pytest.approx([1] * 5)


def test_nearest_mode_reads_the_cell_that_holds_the_point():
    maps = torch.arange(6.0).reshape(1, 1, 2, 3)
    coords = torch.tensor([[[0.1, 0.1], [0.6, 0.1], [0.9, 0.9]]])
    assert point_sample(maps, coords, mode="nearest").flatten().tolist() == [0, 1, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_read_as_float32(dtype):
    maps = torch.randn(1, 2, 30, 200, generator=generator()).to(dtype)
    coords = torch.rand(1, 50, 2, generator=generator(1))
    sampled = point_sample(maps, coords)
    assert sampled.dtype == torch.float32
    torch.testing.assert_close(sampled, point_sample(maps.float(), coords), rtol=0, atol=0)


def test_autocast_does_not_lower_the_precision_of_sampling():
    maps = torch.randn(1, 2, 30, 200, generator=generator())
    coords = torch.rand(1, 50, 2, generator=generator(1))
    expected = point_sample(maps, coords)
    with torch.autocast("cpu", torch.bfloat16):
        sampled = point_sample(maps, coords)
    assert sampled.dtype == torch.float32
    assert torch.equal(sampled, expected)


def test_gradients_of_sampling_are_those_of_finite_differences():
    maps = torch.randn(2, 2, 4, 5, dtype=torch.float64, generator=generator())
    coords = torch.rand(2, 6, 2, dtype=torch.float64, generator=generator(1)) * 1.2 - 0.1
    inputs = (maps.requires_grad_(), coords.requires_grad_())
    assert torch.autograd.gradcheck(point_sample, inputs)


@pytest.mark.parametrize(("regions", "points"), [(0, 5), (2, 0), (0, 0)])
def test_no_regions_and_no_points_are_sizes(regions, points):
    maps = torch.zeros(regions, 3, 4, 4, requires_grad=True)
    sampled = point_sample(maps, torch.zeros(regions, points, 2))
    assert sampled.dtype == torch.float32
    assert sampled.shape == (regions, 3, points)
    sampled.sum().backward()
    assert maps.grad.shape == maps.shape


def test_aligned_corners_are_refused():
    with pytest.raises(ValueError, match="align_corners"):
        point_sample(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 2), align_corners=True)


@pytest.mark.parametrize("shape", [(5, 2), (1, 5, 3), (1, 1, 1, 5, 2)])
def test_coordinates_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(N, P, 2\).*got"):
        point_sample(torch.zeros(1, 1, 4, 4), torch.zeros(shape))


# --- the training sampler -----------------------------------------------------------------------

SETTINGS = {
    "uniform": PointSampler(64, 1, 0.0),
    "mild": PointSampler(64, 3, 0.75),
    "heavy": PointSampler(64, 10, 1.0),
    "all-important": PointSampler(64, 2, 1.0),
}


def disc_logits(num_regions: int = 3, side: int = 7) -> torch.Tensor:
    centers = (torch.arange(side) + 0.5) / side
    distance = ((centers[:, None] - 0.5) ** 2 + (centers - 0.5) ** 2).sqrt()
    radii = torch.linspace(0.2, 0.4, num_regions)
    return 20 * (radii[:, None, None] - distance)[:, None]  # (N, 1, side, side)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_most_uncertain_candidates_are_kept(name):
    sampler, logits = SETTINGS[name], disc_logits()
    coords = sampler.sample(logits, foreground_uncertainty, generator())
    assert coords.dtype == torch.float32
    assert coords.shape == (3, 64, 2)
    assert not coords.requires_grad
    assert coords.min() >= 0
    assert coords.max() < 1
    # The same draws again: candidates first, then the uniform rest.
    draws = generator()
    num_candidates = int(64 * sampler.oversample_ratio)
    num_important = int(64 * sampler.importance_sample_ratio)
    candidates = torch.rand(3, num_candidates, 2, generator=draws)
    rest = torch.rand(3, 64 - num_important, 2, generator=draws)
    assert torch.equal(coords[:, num_important:], rest)
    for region in range(3):
        scored = []
        for x, y in candidates[region].tolist():
            scored.append((abs(slow_bilinear(logits[region], x, y).item()), x, y))
        expected = [[x, y] for _, x, y in sorted(scored)[:num_important]]
        assert sorted(coords[region, :num_important].tolist()) == sorted(expected)


def test_important_points_come_most_uncertain_first():
    coords = SETTINGS["all-important"].sample(disc_logits(), foreground_uncertainty, generator())
    distances = point_sample(disc_logits(), coords)[:, 0].abs()
    assert (distances.diff(dim=1) >= 0).all()


def test_points_crowd_at_the_boundary_the_more_the_heavier_the_bias():
    logits = disc_logits(20)
    nearness = [
        point_sample(logits, SETTINGS[name].sample(logits, foreground_uncertainty, generator()))
        .abs()
        .mean()
        for name in ("uniform", "mild", "heavy")
    ]
    assert nearness[0] > 1.5 * nearness[1] > 1.5 * nearness[2]


def test_uniform_points_are_uniform():
    sampler = PointSampler(20_000, 1, 0.0)
    coords = sampler.sample(disc_logits(1), foreground_uncertainty, generator())[0]
    cells = (coords * 4).long()
    counts = torch.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=16)
    assert (counts / 20_000 - 1 / 16).abs().max() < 5 * math.sqrt(1 / 16 / 20_000)


def test_the_regular_grid_is_fixed_and_draws_nothing():
    sampler = PointSampler(9, on_regular_grid=True)
    before = torch.get_rng_state()
    coords = sampler.sample(disc_logits(2), foreground_uncertainty)
    assert torch.equal(torch.get_rng_state(), before)
    assert coords.dtype == torch.float32
    assert coords.shape == (2, 9, 2)
    thirds = [1 / 6, 3 / 6, 5 / 6]
    expected = torch.tensor([[x, y] for y in thirds for x in thirds])
    torch.testing.assert_close(coords, expected.expand(2, -1, -1))


def test_a_generator_repeats_the_points_and_spares_the_global_state():
    before = torch.get_rng_state()
    first, again, other = (
        SETTINGS["mild"].sample(disc_logits(), foreground_uncertainty, generator(seed))
        for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", SETTINGS)
def test_without_a_generator_the_global_seed_decides(name):
    torch.manual_seed(5)
    coords = SETTINGS[name].sample(disc_logits(), foreground_uncertainty)
    assert torch.equal(
        coords, SETTINGS[name].sample(disc_logits(), foreground_uncertainty, generator(5))
    )


@pytest.mark.parametrize("sampler", [*SETTINGS.values(), PointSampler(64, on_regular_grid=True)])
def test_no_regions_have_no_points(sampler):
    coords = sampler.sample(torch.zeros(0, 1, 7, 7), foreground_uncertainty)
    assert coords.dtype == torch.float32
    assert coords.shape == (0, 64, 2)


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("TRAIN_NUM_POINTS", {"num_points": 0}),
        ("OVERSAMPLE_RATIO", {"oversample_ratio": 0.9}),
        ("IMPORTANCE_SAMPLE_RATIO", {"importance_sample_ratio": -0.1}),
        ("IMPORTANCE_SAMPLE_RATIO", {"importance_sample_ratio": 1.1}),
        ("TRAIN_NUM_POINTS", {"num_points": 195, "on_regular_grid": True}),
    ],
)
def test_impossible_settings_are_refused_with_the_key(key, arguments):
    with pytest.raises(ValueError, match=f"{key}.*got"):
        PointSampler(**arguments)


# --- the selector on a grid ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "count"), [(4, 4, 5), (3, 6, 1), (5, 2, 10), (16, 12, 7), (20, 20, 11)]
)
def test_the_chosen_cells_are_the_most_uncertain_in_row_major_order(height, width, count):
    scores = torch.rand(3, 1, height, width, generator=generator())
    indices, coords = most_uncertain_cells(scores, count)
    assert indices.dtype == torch.int64
    assert indices.shape == (3, count)
    assert coords.dtype == torch.float32
    assert coords.shape == (3, count, 2)
    for region in range(3):
        cells = [
            (scores[region, 0, i, j].item(), i, j) for i in range(height) for j in range(width)
        ]
        best = sorted(sorted(cells, reverse=True)[:count], key=lambda cell: cell[1:])
        assert indices[region].tolist() == [i * width + j for _, i, j in best]
        expected = [[(j + 0.5) / width, (i + 0.5) / height] for _, i, j in best]
        torch.testing.assert_close(coords[region], torch.tensor(expected))


def test_more_points_than_cells_choose_every_cell_once():
    indices, coords = most_uncertain_cells(torch.rand(2, 1, 3, 3), 100)
    assert coords.shape == (2, 9, 2)
    assert indices.tolist() == [list(range(9))] * 2


@pytest.mark.parametrize(("regions", "count"), [(0, 4), (2, 0)])
def test_no_regions_and_no_cells_are_sizes(regions, count):
    indices, coords = most_uncertain_cells(torch.zeros(regions, 1, 3, 3), count)
    assert indices.shape == (regions, count)
    assert coords.shape == (regions, count, 2)
