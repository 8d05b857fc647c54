"""The rendering engine, against planted fields and a loop over single cells."""

import pytest
import torch
import torch.nn.functional as F

from point_rend.rendering.subdivision import SubdivisionPlan, subdivide
from point_rend.rendering.uncertainty import foreground_uncertainty


def disc(coords: torch.Tensor) -> torch.Tensor:
    """Signed distance to a circle, as logits (N, 1, P)."""
    return (40 * (0.33 - (coords - torch.tensor([0.45, 0.55])).norm(dim=-1)))[:, None]


def ramp(coords: torch.Tensor) -> torch.Tensor:
    """A field that is linear in x and y, (N, 1, P)."""
    return (3 * coords[..., 0] - 2 * coords[..., 1] - 0.4)[:, None]


def on_grid(field, side: int, num_regions: int = 1) -> torch.Tensor:
    """The field's values at all cell centers, counted out one by one."""
    points = [[(j + 0.5) / side, (i + 0.5) / side] for i in range(side) for j in range(side)]
    coords = torch.tensor(points).expand(num_regions, -1, -1)
    return field(coords).unflatten(2, (side, side))


@pytest.mark.parametrize("field", [disc, ramp])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_planted_field_is_rendered_exactly_when_all_points_are_predicted(field, steps):
    side = 5 * 2**steps
    rendered = subdivide(
        on_grid(field, 5, 2), field, foreground_uncertainty, steps=steps, points_per_step=side**2
    )
    assert rendered.dtype == torch.float32
    assert rendered.shape == (2, 1, side, side)
    torch.testing.assert_close(rendered, on_grid(field, side, 2), rtol=1e-5, atol=1e-5)


def test_a_disc_is_rendered_exactly_when_the_points_cover_its_boundary():
    mask = subdivide(on_grid(disc, 7), disc, foreground_uncertainty, steps=4, points_per_step=784)
    assert mask.shape == (1, 1, 112, 112)
    assert torch.equal(mask > 0, on_grid(disc, 112) > 0)


def test_untouched_cells_equal_the_bilinear_upsample():
    start = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([1, 0, 1])
    rendered = subdivide(
        start,
        lambda coords: torch.full((3, 2, coords.shape[1]), 1000.0),
        lambda logits: foreground_uncertainty(logits, classes),
        steps=1,
        points_per_step=20,
    )
    assert rendered.shape == (3, 2, 12, 12)
    upsampled = F.interpolate(start, size=(12, 12), mode="bilinear", align_corners=False)
    touched = rendered == 1000
    assert touched.sum(dim=(2, 3)).tolist() == [[20, 20]] * 3
    assert torch.equal(rendered[~touched], upsampled[~touched])
    assert torch.equal(touched[:, 0], touched[:, 1])  # all channels of a cell together


def test_the_predicted_points_are_the_most_uncertain_of_the_upsample():
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    asked = []

    def predict(coords):
        asked.append(coords)
        return torch.zeros(2, 1, coords.shape[1])

    subdivide(start, predict, foreground_uncertainty, steps=1, points_per_step=9)
    upsampled = F.interpolate(start, size=(8, 8), mode="bilinear", align_corners=False)
    (coords,) = asked
    assert coords.shape == (2, 9, 2)
    for region in range(2):
        values = [
            (abs(upsampled[region, 0, i, j].item()), i, j) for i in range(8) for j in range(8)
        ]
        expected = [[(j + 0.5) / 8, (i + 0.5) / 8] for _, i, j in sorted(values)[:9]]
        assert sorted(coords[region].tolist()) == sorted(expected)


def test_predictions_land_in_the_cells_that_they_were_made_for():
    def predict(coords):  # 100 + the number of the cell in the 8×8 grid
        cells = (coords * 8).long()
        return (100.0 + cells[..., 1] * 8 + cells[..., 0])[:, None]

    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    rendered = subdivide(start, predict, foreground_uncertainty, steps=1, points_per_step=30)
    numbers = torch.arange(100.0, 164.0).reshape(1, 1, 8, 8).expand(2, 1, 8, 8)
    touched = rendered > 99
    assert touched.sum() == 60
    assert torch.equal(rendered[touched], numbers[touched])


def test_no_steps_return_the_first_grid():
    start = torch.randn(2, 3, 5, 5)
    assert torch.equal(
        subdivide(start, disc, foreground_uncertainty, steps=0, points_per_step=4), start
    )


def test_grids_need_not_be_square():
    rendered = subdivide(
        torch.ones(1, 1, 2, 5), disc, foreground_uncertainty, steps=2, points_per_step=7
    )
    assert rendered.shape == (1, 1, 8, 20)


def test_no_regions_are_rendered_at_full_size():
    rendered = subdivide(
        torch.zeros(0, 1, 7, 7), disc, foreground_uncertainty, steps=3, points_per_step=9
    )
    assert rendered.dtype == torch.float32
    assert rendered.shape == (0, 1, 56, 56)


def test_the_first_grid_is_left_as_it_is():
    start = on_grid(disc, 4)
    kept = start.clone()
    subdivide(start, ramp, foreground_uncertainty, steps=2, points_per_step=5)
    assert torch.equal(start, kept)


def test_predictions_in_half_precision_refine_a_float_grid():
    def predict(coords):
        return disc(coords).bfloat16()

    rendered = subdivide(
        on_grid(disc, 4), predict, foreground_uncertainty, steps=1, points_per_step=5
    )
    assert rendered.dtype == torch.float32


@pytest.mark.parametrize("steps", [0, 2])
def test_a_grid_in_half_precision_is_interpolated_and_refined_in_float32(steps):
    start = on_grid(disc, 4).bfloat16()
    arguments = {"steps": steps, "points_per_step": 5}
    rendered = subdivide(start, disc, foreground_uncertainty, **arguments)
    expected = subdivide(start.float(), disc, foreground_uncertainty, **arguments)
    assert rendered.dtype == torch.float32
    assert torch.equal(rendered, expected)


@pytest.mark.parametrize(
    ("plan", "effective"),
    [
        # the published setting: the first two of five steps are one dense 28×28 grid
        (SubdivisionPlan(7, 5, 784), SubdivisionPlan(28, 3, 784)),
        (SubdivisionPlan(7, 5, 783), SubdivisionPlan(14, 4, 783)),
        (SubdivisionPlan(7, 5, 195), SubdivisionPlan(7, 5, 195)),
        (SubdivisionPlan(7, 1, 10**6), SubdivisionPlan(14, 0, 10**6)),
        (SubdivisionPlan(7, 0, 10**6), SubdivisionPlan(7, 0, 10**6)),
    ],
)
def test_covered_steps_are_skipped(plan, effective):
    assert plan.without_covered_steps() == effective
    assert plan.output_side == effective.output_side == plan.start_side * 2**plan.steps


@pytest.mark.parametrize("points", [16, 64, 100, 10**6])
def test_skipping_covered_steps_changes_nothing_in_the_mask(points):
    plan = SubdivisionPlan(4, 3, points)
    masks = [
        subdivide(
            on_grid(disc, p.start_side),
            disc,
            foreground_uncertainty,
            steps=p.steps,
            points_per_step=p.points_per_step,
        )
        for p in (plan, plan.without_covered_steps())
    ]
    assert masks[0].shape == masks[1].shape == (1, 1, 32, 32)
    torch.testing.assert_close(masks[1], masks[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ((0, 5, 784), "side.*0"),
        ((7, -1, 784), "SUBDIVISION_STEPS.*-1"),
        ((7, 5, 0), "SUBDIVISION_NUM_POINTS.*0"),
    ],
)
def test_impossible_plans_are_refused(arguments, culprit):
    with pytest.raises(ValueError, match=culprit):
        SubdivisionPlan(*arguments)


def test_a_plan_cannot_be_changed():
    with pytest.raises(AttributeError):
        SubdivisionPlan(7, 5, 784).steps = 3
