"""Agreement of masks and label maps."""

import pytest
import torch

from point_rend.experiments.benchmark.case import label_agreement, mask_agreement


def masks() -> torch.Tensor:
    return torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(0))


def halves() -> torch.Tensor:
    """A mask whose right half is 1."""
    return torch.cat((torch.zeros(1, 1, 8, 4), torch.ones(1, 1, 8, 4)), dim=3)


def test_equal_masks_agree() -> None:
    agreement = mask_agreement(masks(), masks())
    assert (agreement.differing, agreement.largest) == (0.0, 0.0)


def test_a_planted_difference_of_masks_is_found_exactly() -> None:
    baseline = masks() * 0.25  # all below 0.5
    ours = baseline.clone()
    ours.view(-1)[[5, 77, 400]] += 0.5
    agreement = mask_agreement(ours, baseline)
    assert agreement.differing == 3 / 1200
    assert agreement.largest == pytest.approx(0.5)


def test_a_difference_that_crosses_no_threshold_shows_in_the_probability_only() -> None:
    agreement = mask_agreement(masks() * 0.25 + 0.125, masks() * 0.25)
    assert agreement.differing == 0.0
    assert agreement.largest == pytest.approx(0.125)


def test_masks_of_another_side_are_resized_to_the_baselines() -> None:
    agreement = mask_agreement(halves()[..., ::2, ::2], halves())
    assert agreement.differing == 0.0
    assert agreement.largest == 0.25  # half a cell from the edge


def test_the_boundary_is_the_share_of_neighbors_that_differ() -> None:
    assert mask_agreement(halves(), halves()).boundary == 1 / 7


def test_a_planted_difference_of_label_maps_is_found_exactly() -> None:
    logits = torch.zeros(2, 4, 5)
    logits[0] = 40.0
    changed = logits.clone()
    changed[:, 1, 2] = torch.tensor([0.0, 40.0])
    agreement = label_agreement((changed, changed.argmax(dim=0)), (logits, logits.argmax(dim=0)))
    assert agreement.differing == 1 / 20
    assert agreement.largest == pytest.approx(1.0)
