"""Random features and boxes."""

import pytest
import torch

from point_rend.experiments.benchmark.random_inputs import random_boxes, smooth_noise


def test_features_vary_slowly_and_have_a_standard_deviation_of_one() -> None:
    noise = smooth_noise(3, (64, 96), torch.Generator().manual_seed(0))
    assert noise.shape == (1, 3, 64, 96)
    assert noise.std().item() == pytest.approx(1.0, abs=1e-5)
    assert (noise[..., 1:] - noise[..., :-1]).std() < 0.6  # √2 if they were independent


def test_boxes_lie_in_the_image_and_range_from_small_to_its_short_side() -> None:
    boxes = random_boxes(500, (800, 1216), torch.Generator().manual_seed(0))
    assert boxes.shape == (500, 4)
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([1216, 800, 1216, 800])).all()
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    assert sides.min() < 30
    assert sides.max() > 600
