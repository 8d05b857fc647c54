"""Frames and the regular grid, against coordinates that are counted by hand."""

import pytest
import torch

from point_rend.rendering.coordinates import box_to_image_coords, cell_centers, regular_grid


def test_cell_centers_lie_half_a_cell_from_the_edges():
    centers = cell_centers(torch.arange(6), height=2, width=3)
    assert centers.dtype == torch.float32
    assert centers.shape == (6, 2)
    by_hand = [(1, 1), (3, 1), (5, 1), (1, 3), (3, 3), (5, 3)]  # in sixths and quarters
    torch.testing.assert_close(centers, torch.tensor(by_hand) / torch.tensor([6.0, 4.0]))


def test_cell_centers_keep_the_shape_of_their_indices():
    assert cell_centers(torch.zeros(2, 5, dtype=torch.long), 3, 3).shape == (2, 5, 2)
    assert cell_centers(torch.zeros(0, 7, dtype=torch.long), 3, 3).shape == (0, 7, 2)


@pytest.mark.parametrize(("num_regions", "side"), [(1, 1), (3, 4), (0, 7)])
def test_regular_grid_equals_a_slow_loop(num_regions, side):
    grid = regular_grid(num_regions, side)
    assert grid.dtype == torch.float32
    assert grid.shape == (num_regions, side * side, 2)
    for region in grid:
        points = iter(region.tolist())
        for row in range(side):
            for column in range(side):
                expected = [(column + 0.5) / side, (row + 0.5) / side]
                assert next(points) == pytest.approx(expected, abs=1e-7)


def test_box_corners_go_to_image_corners():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [-5.0, 0.0, 5.0, 1.0]])
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    coords = box_to_image_coords(corners.expand(2, -1, -1), boxes)
    assert coords.shape == (2, 4, 2)
    expected = [
        [[10.0, 20.0], [30.0, 20.0], [10.0, 60.0], [20.0, 40.0]],
        [[-5.0, 0.0], [5.0, 0.0], [-5.0, 1.0], [0.0, 0.5]],
    ]
    torch.testing.assert_close(coords, torch.tensor(expected), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 5, 2), (3, 0, 2)])
def test_no_boxes_and_no_points_are_sizes(shape):
    assert box_to_image_coords(torch.rand(shape), torch.rand(shape[0], 4)).shape == shape


def test_box_to_image_coords_leaves_its_arguments_alone():
    coords, boxes = torch.rand(2, 3, 2), torch.rand(2, 4)
    kept = coords.clone(), boxes.clone()
    box_to_image_coords(coords, boxes)
    assert torch.equal(coords, kept[0])
    assert torch.equal(boxes, kept[1])
