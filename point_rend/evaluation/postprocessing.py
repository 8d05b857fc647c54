"""From the boxes and masks that a model detects in its input to results in the given image."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from detectron2.structures import Instances
from torch import nn

from point_rend.rendering.box_masks import BoxMasks

PROBABILITIES = "mask_probabilities"  # a field that Detectron2 selects, but does not paste


def postprocess(instances: Instances, height: int, width: int) -> Instances:
    """Scale detections to the size of their image, as Detectron2's `detector_postprocess`.

    Boxes are clipped to the image, and empty ones are removed. The masks are those of Detectron2,
    too, but each is pasted only when it is read.

    Args:
        instances: Detections of an image at the size of the model's input, with `pred_boxes`, and
            perhaps with `pred_masks`, (N, 1, S, S) probabilities. The boxes are scaled in place.
        height, width: Size of the image in pixels.

    Returns:
        Detections in which `pred_masks` are :class:`BoxMasks`.
    """
    fields = dict(instances.get_fields())
    masks = fields.pop("pred_masks", None)
    if masks is not None:
        fields[PROBABILITIES] = masks
    found = detector_postprocess(Instances(instances.image_size, **fields), height, width)
    if masks is not None:
        probabilities = found.get(PROBABILITIES)[:, 0]
        found.remove(PROBABILITIES)
        found.pred_masks = BoxMasks(probabilities, found.pred_boxes.tensor, (height, width))
    return found


def paste(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result of a model in which `pred_masks` are a tensor, as Detectron2 returns them."""
    output = dict(output)
    found = output.get("instances")
    if found is not None and found.has("pred_masks") and isinstance(found.pred_masks, BoxMasks):
        fields = {**found.get_fields(), "pred_masks": found.pred_masks.tensor()}
        output["instances"] = Instances(found.image_size, **fields)
    return output


class UnpastedMasks(nn.Module):
    """A model whose results hold masks as :class:`BoxMasks`, where it detects boxes only.

    Panoptic models and those with test-time augmentation paste their masks themselves.

    Args:
        model: Maps a batch to Detectron2's results.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run the model on a batch."""
        model: Any = self.model
        if getattr(type(model), "inference", None) is not GeneralizedRCNN.inference:
            return model(batched_inputs)
        outputs = []
        for record, found in zip(
            batched_inputs, model.inference(batched_inputs, do_postprocess=False), strict=True
        ):
            height, width = found.image_size
            size = record.get("height", height), record.get("width", width)
            outputs.append({"instances": postprocess(found, *size)})
        return outputs
