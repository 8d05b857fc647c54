"""Meta-architectures that pass the sizes of the images in a batch to the semantic head.

Shapes: K classes; a label map and the logits of an image have its height and width.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import PanopticFPN, SemanticSegmentor
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from point_rend.rendering.uncertainty import label_map

Inputs = Sequence[Mapping[str, Any]]


def resize_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """Resize (K, h, w) logits bilinearly to (K, height, width), unless they have that size."""
    if tuple(logits.shape[-2:]) == (height, width):
        return logits
    return sem_seg_postprocess(logits, tuple(logits.shape[-2:]), height, width)


class PointRendSemanticSegmentor(SemanticSegmentor):
    """:class:`SemanticSegmentor` whose results do not depend on the padding of the batch.

    The padding still affects convolutions, but not the choice of points or interpolation.

    Raises:
        ValueError: if the head takes no image sizes.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from a config."""
        parts = super().from_config(cfg)
        _check_head(parts["sem_seg_head"], cls.__name__)
        return parts

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return losses in training, and per image ``sem_seg`` logits in inference.

        Args:
            batched_inputs: per image ``image`` (3, h, w), in training ``sem_seg`` (h, w), and
                optionally ``height`` and ``width`` of the output.

        Returns:
            Losses by name; or per image a dict with ``sem_seg``, (K, height, width) logits.
        """
        images = _padded_images(self, batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            labels = _padded_labels(self, batched_inputs)
            return self.sem_seg_head(features, labels, images.image_sizes)[1]
        logits, _ = self.sem_seg_head(features, None, images.image_sizes)
        return [
            {"sem_seg": resize_logits(result, *_output_size(image, size))}
            for result, image, size in zip(logits, batched_inputs, images.image_sizes, strict=True)
        ]


class PointRendPanopticFPN(PanopticFPN):
    """:class:`PanopticFPN` whose semantic results do not depend on the padding of the batch.

    Raises:
        ValueError: if the semantic head takes no image sizes.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from a config."""
        parts = super().from_config(cfg)
        _check_head(parts["sem_seg_head"], cls.__name__)
        weight = cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT
        if weight != 1.0:  # Detectron2 leaves the classes of boxes out
            parts["roi_heads"].box_predictor.loss_weight.setdefault("loss_cls", weight)
        return parts

    def forward(self, batched_inputs: Inputs) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return losses in training, and results per image in inference.

        Args:
            batched_inputs: as for :class:`PanopticFPN`.

        Returns:
            Losses by name; or per image ``sem_seg``, ``instances`` and ``panoptic_seg``.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = _padded_images(self, batched_inputs)
        features = self.backbone(images.tensor)
        labels = _padded_labels(self, batched_inputs)
        instances = [image["instances"].to(self.device) for image in batched_inputs]
        proposals, proposal_losses = self.proposal_generator(images, features, instances)
        _, detector_losses = self.roi_heads(images, features, proposals, instances)
        _, semantic_losses = self.sem_seg_head(features, labels, images.image_sizes)
        return semantic_losses | proposal_losses | detector_losses

    def inference(
        self,
        batched_inputs: Inputs,
        do_postprocess: bool = True,
        postprocess: Callable[[Instances, int, int], Instances] = detector_postprocess,
    ) -> Any:
        """Return results per image, as :meth:`PanopticFPN.inference` does.

        Args:
            batched_inputs: as for :class:`PanopticFPN`.
            do_postprocess: whether results are in the frame of the given image.
            postprocess: scales the instances of an image to its height and width. Their masks are
                read one by one.
        """
        images = _padded_images(self, batched_inputs)
        features = self.backbone(images.tensor)
        semantic, _ = self.sem_seg_head(features, None, images.image_sizes)
        proposals, _ = self.proposal_generator(images, features, None)
        detected, _ = self.roi_heads(images, features, proposals, None)
        if not do_postprocess:
            return detected, semantic
        results = []
        for logits, found, image, size in zip(
            semantic, detected, batched_inputs, images.image_sizes, strict=True
        ):
            height, width = _output_size(image, size)
            sem_seg = resize_logits(logits, height, width)
            instances = postprocess(found, height, width)
            panoptic = combine_semantic_and_instance_outputs(
                instances,
                label_map(sem_seg),
                self.combine_overlap_thresh,
                self.combine_stuff_area_thresh,
                self.combine_instances_score_thresh,
            )
            results.append({"sem_seg": sem_seg, "instances": instances, "panoptic_seg": panoptic})
        return results


def _check_head(head: nn.Module, meta_arch: str) -> None:
    if "image_sizes" not in inspect.signature(head.forward).parameters:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {meta_arch} passes image sizes to its semantic head, but "
            f"{type(head).__name__} takes none: expected MODEL.SEM_SEG_HEAD.NAME "
            "PointRendSemSegHead, or Detectron2's own meta-architecture for this head"
        )


def _pad(model: Any, tensors: list[Tensor], value: float = 0) -> ImageList:
    """Pad images or label maps to a common size that fits the backbone and the semantic head."""
    backbone, head = model.backbone, model.sem_seg_head
    divisor = math.lcm(backbone.size_divisibility or 1, getattr(head, "frame_stride", 1))
    return ImageList.from_tensors(tensors, divisor, value, backbone.padding_constraints)


def _padded_images(model: Any, inputs: Inputs) -> ImageList:
    """Return the images of a batch, normalized and padded."""
    pixels = [image["image"].to(model.device, non_blocking=True) for image in inputs]
    return _pad(model, [(image - model.pixel_mean) / model.pixel_std for image in pixels])


def _padded_labels(model: Any, inputs: Inputs) -> Tensor:
    """Return the label maps of a batch, padded like its images with ignored labels."""
    labels = [image["sem_seg"].to(model.device, non_blocking=True) for image in inputs]
    return _pad(model, labels, model.sem_seg_head.ignore_value).tensor


def _output_size(image: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    return image.get("height", size[0]), image.get("width", size[1])
