"""From the boxes and masks that a model detects in its input to results in the given image.

A result holds its masks as :class:`BoxMasks`, which commands and evaluators read box by box, until
:func:`paste` turns them into the tensor that Detectron2's models return.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from point_rend.rendering.box_masks import THRESHOLD, BoxMasks, LazyMasks


class Unpasted(NamedTuple):
    """Masks in place of Detectron2's `BitMasks`, of which its post-processing reads the tensor."""

    tensor: BoxMasks


class UnpastedROIMasks(ROIMasks):
    """Masks of boxes that Detectron2's post-processing leaves unpasted, as :class:`BoxMasks`."""

    def __getitem__(self, item: Any) -> "UnpastedROIMasks":
        return type(self)(self.tensor[item])

    def to_bitmasks(
        self, boxes: Boxes, height: int, width: int, threshold: float = THRESHOLD
    ) -> Unpasted:
        """Return the masks in an image of this size; the threshold must be 0.5."""
        assert threshold == THRESHOLD
        return Unpasted(BoxMasks(self.tensor, boxes.tensor, (height, width)))


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
    if "pred_masks" in fields:
        fields["pred_masks"] = UnpastedROIMasks(fields["pred_masks"][:, 0])
    return detector_postprocess(Instances(instances.image_size, **fields), height, width)


def paste(output: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result of a model in which `pred_masks` are a tensor, as Detectron2 returns them."""
    output = dict(output)
    found = output.get("instances")
    if found is not None and found.has("pred_masks") and isinstance(found.pred_masks, LazyMasks):
        fields = {**found.get_fields(), "pred_masks": found.pred_masks.tensor()}
        output["instances"] = Instances(found.image_size, **fields)
    return output


def coco_records(instances: Instances, image_id: Any) -> list[dict[str, Any]]:
    """Return instances of an image in COCO's result format, with class indices as categories.

    Args:
        instances: Detections in the image, on the CPU. Their masks may be :class:`LazyMasks`.
        image_id: Id of the image.

    Returns:
        The records that Detectron2's `instances_to_coco_json` returns.
    """
    fields = dict(instances.get_fields())
    masks = fields.get("pred_masks")
    if not isinstance(masks, LazyMasks):
        return instances_to_coco_json(instances, image_id)
    del fields["pred_masks"]
    records = instances_to_coco_json(Instances(instances.image_size, **fields), image_id)
    for record, rle in zip(records, masks.rles(), strict=True):
        keypoints = record.pop("keypoints", None)  # they follow the mask
        record["segmentation"] = rle | {"counts": rle["counts"].decode()}
        if keypoints is not None:
            record["keypoints"] = keypoints
    return records


class UnpastedMasks(nn.Module):
    """A model whose results hold masks as :class:`BoxMasks`, where it detects boxes only.

    Detectron2's panoptic model pastes its masks itself. So does a model whose `forward` does more
    than `inference`: one with hooks, or of a class with a `forward` of its own.

    Args:
        model: Maps a batch to Detectron2's results; a method `unpasted` of it does so with
            unpasted masks, or a method `inference` that takes another `postprocess`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.train(model.training)

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Run the model on a batch."""
        model: Any = self.model
        if _is_called_differently(model):
            return model(batched_inputs)
        if hasattr(model, "unpasted"):
            return model.unpasted(batched_inputs)
        inference = getattr(type(model), "inference", None)
        if inference and "postprocess" in inspect.signature(inference).parameters:
            return model.inference(batched_inputs, postprocess=postprocess)
        if inference is not GeneralizedRCNN.inference:
            return model(batched_inputs)
        outputs = []
        for record, found in zip(
            batched_inputs, model.inference(batched_inputs, do_postprocess=False), strict=True
        ):
            height, width = found.image_size
            size = record.get("height", height), record.get("width", width)
            outputs.append({"instances": postprocess(found, *size)})
        return outputs


def _is_called_differently(model: nn.Module) -> bool:
    """Return whether somebody has changed what a call of a model does, but not its inference."""
    if model._forward_hooks or model._forward_pre_hooks:
        return True
    if "forward" in vars(model) or "inference" in vars(model):
        return True
    for kind in type(model).__mro__:
        if "inference" in vars(kind) or "unpasted" in vars(kind):
            return False
        if "forward" in vars(kind):
            return True
    return False
