"""The operator that suppresses overlapping boxes, against a loop over boxes."""

import pytest
import torch
from torch import Tensor

from point_rend.export.suppression import choose_boxes, nms_of_groups, nms_of_torchvision

CHOICES = [nms_of_groups, nms_of_torchvision]


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


def expected(
    boxes: Tensor, scores: Tensor, limit: float, threshold: float, most: int, group_first: bool
) -> Tensor:
    """Choose boxes one by one, the best first."""
    rows = []
    for image in range(len(scores)):
        places = [(g, n) for g in range(scores.shape[1]) for n in range(scores.shape[2])]
        places.sort(key=lambda place: place if group_first else place[::-1])
        value = {place: scores[image][place].item() for place in places}
        places = sorted((x for x in places if value[x] > threshold), key=lambda x: -value[x])
        chosen: list[tuple[int, int]] = []
        for g, n in places:
            box = boxes[image, g, n].tolist()
            rivals = [boxes[image, g, m].tolist() for h, m in chosen if h == g]
            if all(iou(box, rival) <= limit for rival in rivals):
                chosen.append((g, n))
        indices = [g * scores.shape[2] + n for g, n in chosen[:most]]
        rows.append(indices + [-1] * (most - len(indices)))
    return torch.tensor(rows)


def random_case(seed: int, *, levels: int = 1000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 3, 40, 2, generator=generator) * 50
    sides = 5 + torch.rand(2, 3, 40, 2, generator=generator) * 30
    scores = torch.randint(levels, (2, 3, 40), generator=generator) / levels
    return torch.cat((corners, corners + sides), dim=3), scores


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("group_first", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_boxes_are_kept_unless_they_overlap_a_better_one_of_their_group(
    choose, group_first, seed
):
    boxes, scores = random_case(seed, levels=10**6)
    settings = 0.3, 0.2, 30, group_first
    result = choose(boxes, scores, *settings)
    assert result.dtype == torch.int64
    assert result.tolist() == expected(boxes, scores, *settings).tolist()


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("group_first", [False, True])
def test_of_equal_scores_the_first_is_kept_in_the_order_of_the_model(choose, group_first):
    boxes, scores = random_case(0, levels=4)
    settings = 0.3, 0.2, 100, group_first
    assert choose(boxes, scores, *settings).tolist() == expected(boxes, scores, *settings).tolist()


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("count", [0, 1])
def test_few_or_no_boxes_are_the_same_to_the_operators(choose, count):
    boxes, scores = random_case(0)
    scores = torch.full_like(scores, float("-inf"))
    scores[0, 1, 7] = 0.5 if count else float("-inf")
    result = choose(boxes, scores, 0.5, float("-inf"), 3, True)
    assert result.tolist() == [[47 if count else -1, -1, -1], [-1, -1, -1]]


def test_a_trace_has_operators_of_torchvision_only():
    boxes, scores = random_case(0)

    def choose(boxes: Tensor, scores: Tensor) -> Tensor:
        return choose_boxes(boxes, scores, iou=0.3, threshold=0.2, most=9, group_first=True)

    trace = torch.jit.trace(choose, (boxes, scores))
    kinds = {node.kind() for node in trace.graph.nodes()}
    assert "torchvision::nms" in kinds
    assert not any(kind.startswith("point_rend") for kind in kinds)
    assert trace(boxes[:1], scores[:1]).equal(choose(boxes[:1], scores[:1]))
