"""Results in the class order of a data set."""

from typing import Any

import torch
from detectron2.structures import Instances
from torch import nn

from point_rend.evaluation.class_order import ReorderedClasses


class Planted(nn.Module):
    """Returns the same result for every image."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result

    def forward(self, batched_inputs: list[Any]) -> list[dict[str, Any]]:
        return [self.result for _ in batched_inputs]


def test_every_kind_of_result_gets_the_indices_of_the_data_set():
    instances = Instances((4, 6), pred_classes=torch.tensor([2, 0, 1, 2]), scores=torch.rand(4))
    logits = torch.rand(2, 4, 6)
    segments = [
        {"id": 1, "isthing": True, "category_id": 2},
        {"id": 2, "isthing": False, "category_id": 0},
    ]
    ids = torch.zeros(4, 6, dtype=torch.int32)
    result = {"instances": instances, "sem_seg": logits, "panoptic_seg": (ids, segments)}
    # The model's thing 0 is thing 1 of the set, 1 is 2, 2 is 0; both kinds of stuff are swapped.
    model = ReorderedClasses(Planted(result), {"thing": [1, 2, 0], "stuff": [1, 0]}).eval()
    first, second = model([{}, {}])
    assert first["instances"].pred_classes.tolist() == [0, 1, 2, 0]
    assert torch.equal(first["instances"].scores, instances.scores)
    assert torch.equal(first["sem_seg"], torch.stack([logits[1], logits[0]]))
    assert [x["category_id"] for x in first["panoptic_seg"][1]] == [0, 1]
    assert second["instances"].pred_classes.tolist() == [0, 1, 2, 0]
    assert instances.pred_classes.tolist() == [2, 0, 1, 2]
    assert [x["category_id"] for x in segments] == [2, 0]


def test_the_channel_of_every_class_of_the_model_is_that_of_the_data_set():
    order = [2, 0, 3, 1]
    logits = torch.arange(4.0)[:, None, None].expand(4, 2, 2)
    (output,) = ReorderedClasses(Planted({"sem_seg": logits}), {"stuff": order})([{}])
    for own, index in enumerate(order):
        assert torch.equal(output["sem_seg"][index], logits[own])


def test_a_kind_of_the_same_order_is_left_as_it_is():
    instances = Instances((4, 6), pred_classes=torch.tensor([2, 0, 1]))
    ids, segments = torch.zeros(4, 6), [{"id": 1, "isthing": True, "category_id": 2}]
    result = {"instances": instances, "panoptic_seg": (ids, segments)}
    (output,) = ReorderedClasses(Planted(result), {"stuff": [1, 0]})([{}])
    assert output["instances"] is instances
    assert output["panoptic_seg"] == (ids, segments)
