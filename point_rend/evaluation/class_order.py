"""Results of a model in the class order of a data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from point_rend.data.datasets.class_matching import ClassOrder


class ReorderedClasses(nn.Module):
    """A model whose results have the class indices of a data set in place of its own.

    Args:
        model: Maps a batch to Detectron2's results.
        order: For each kind of classes, thing or stuff, the index in the data set of each class of
            the model; kinds of the same order are absent.
    """

    def __init__(self, model: nn.Module, order: ClassOrder) -> None:
        super().__init__()
        self.model = model
        self.order = {kind: torch.as_tensor(indices) for kind, indices in order.items()}
        self.train(model.training)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run the model on a batch and reorder the classes of its results."""
        return [self._reorder(output) for output in self.model(batched_inputs)]

    def _reorder(self, output: Mapping[str, Any]) -> dict[str, Any]:
        reordered = dict(output)
        if "thing" in self.order and "instances" in output:
            reordered["instances"] = _with_classes(output["instances"], self.order["thing"])
        if "stuff" in self.order and "sem_seg" in output:
            logits = output["sem_seg"]  # (K, H, W)
            of_model = self.order["stuff"].argsort().to(logits.device)
            reordered["sem_seg"] = logits.index_select(0, of_model)
        if "panoptic_seg" in output:
            ids, segments = output["panoptic_seg"]
            reordered["panoptic_seg"] = ids, [self._with_category(segment) for segment in segments]
        return reordered

    def _with_category(self, segment: Mapping[str, Any]) -> dict[str, Any]:
        order = self.order.get("thing" if segment["isthing"] else "stuff")
        category = segment["category_id"]
        return {**segment, "category_id": category if order is None else int(order[category])}


def _with_classes(instances: Instances, order: Tensor) -> Instances:
    fields = instances.get_fields()
    classes = order.to(fields["pred_classes"].device)[fields["pred_classes"]]
    return Instances(instances.image_size, **{**fields, "pred_classes": classes})
