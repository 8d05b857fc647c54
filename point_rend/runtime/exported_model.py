"""An exported file in place of Detectron2's model: same inputs, same outputs.

Letters in shapes: B images, M boxes, K classes, S side of a mask.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from point_rend.evaluation.postprocessing import paste, postprocess
from point_rend.runtime.description import INSTANCES, MASK_HEAD
from point_rend.runtime.sessions import Session, open_session

Inputs = Sequence[Mapping[str, Any]]


class ExportedModel(nn.Module):
    """A model in a file, which computes what the model would that it was exported from.

    Args:
        session: The loaded file.
        score_threshold: Lowest score of an instance, if it is above that of the file.
        detections_per_image: Largest number of instances of an image, if it is below the file's.

    Attributes:
        session: The loaded file.
        description: Its description.

    Raises:
        ValueError: If it is a mask head without its model.
    """

    def __init__(
        self,
        session: Session,
        *,
        score_threshold: float = 0.0,
        detections_per_image: int | None = None,
    ) -> None:
        super().__init__()
        self.session = session
        self.description = session.description
        if self.description.task == MASK_HEAD:
            raise ValueError(
                f"{session.path} is a mask head without its model, which needs features and boxes: "
                "expected a file of `pointrend export` without --part mask-head"
            )
        self.score_threshold = score_threshold
        self.detections_per_image = detections_per_image
        self.eval()

    def forward(self, batched_inputs: Inputs) -> list[dict[str, Any]]:
        """Segment images.

        Args:
            batched_inputs: For each image, "image", (C, h, w), resized and in the order of colors
                of the config, and optionally the "height" and "width" of the results.

        Returns:
            For each image, "instances" or "sem_seg", (K, height, width) logits.

        Raises:
            ValueError: If an image is larger than the file was exported for, or the runtime fails.
        """
        return [paste(output) for output in self.unpasted(batched_inputs)]

    @torch.no_grad()
    def unpasted(self, batched_inputs: Inputs) -> list[dict[str, Any]]:
        """Segment images as :meth:`forward` does; the masks of instances are not pasted yet."""
        outputs = []
        for image, found in zip(batched_inputs, self.inference(batched_inputs), strict=True):
            size = tuple(image["image"].shape[-2:])
            height, width = image.get("height", size[0]), image.get("width", size[1])
            if isinstance(found, Instances):
                outputs.append({"instances": postprocess(found, height, width)})
            elif size == (height, width):
                outputs.append({"sem_seg": found})
            else:
                outputs.append({"sem_seg": sem_seg_postprocess(found, size, height, width)})
        return outputs

    @torch.no_grad()
    def inference(self, batched_inputs: Inputs) -> list[Instances | Tensor]:
        """Run the file; return the results in the frame of the resized images.

        Args:
            batched_inputs: As of :meth:`forward`.

        Returns:
            For each image its instances, with masks (M, 1, S, S) of probabilities in their boxes;
            or logits (K, h, w).

        Raises:
            ValueError: As :meth:`forward`.
        """
        results: list[Instances | Tensor] = []
        most = self.description.max_batch
        for start in range(0, len(batched_inputs), most):
            results += self._run([x["image"] for x in batched_inputs[start : start + most]])
        return results

    def _run(self, images: list[Tensor]) -> list[Instances | Tensor]:
        """Run the file on the images of one batch."""
        for image in images:
            if max(image.shape[-2:]) > self.description.max_side:
                height, width = image.shape[-2:]
                raise ValueError(
                    f"{self.session.path} was exported for images of up to "
                    f"{self.description.max_side} pixels a side, got {height} x {width} after "
                    "resizing: lower INPUT.MIN_SIZE_TEST or INPUT.MAX_SIZE_TEST"
                )
        outputs = self.session(*padded_batch(images, self.description.divisor))
        sizes = [image.shape[-2:] for image in images]
        if self.description.task != INSTANCES:
            self._check_logits(outputs["logits"], len(images), sizes)
            return [x[:, :h, :w] for x, (h, w) in zip(outputs["logits"], sizes, strict=True)]
        self._check(outputs, len(images))
        return [self._instances(outputs, i, (h, w)) for i, (h, w) in enumerate(sizes)]

    def _check(self, outputs: Mapping[str, Tensor], num_images: int) -> None:
        """Refuse outputs that no graph of ours has."""
        count, boxes, masks = len(outputs["boxes"]), outputs["boxes"], outputs["masks"]
        sound = all(len(value) == count for value in outputs.values())
        sound = sound and all(outputs[x].is_floating_point() for x in ("boxes", "scores", "masks"))
        sound = sound and boxes.shape[1] == 4 and bool(boxes.isfinite().all())
        sound = sound and masks.shape[1] == 1 and masks.shape[2] == masks.shape[3] > 0
        for name, number in (("image", num_images), ("classes", len(self.description.classes))):
            value = outputs[name]
            known = number or torch.iinfo(torch.int64).max  # the file may lack class names
            sound = sound and value.dtype == torch.int64
            sound = sound and bool(((value >= 0) & (value < known)).all())
        if not sound:
            raise ValueError(f"{self.session.path} is damaged: its outputs do not fit each other")

    def _check_logits(self, logits: Tensor, num_images: int, sizes: Sequence[torch.Size]) -> None:
        """Refuse logits that no graph of ours has."""
        batch, classes, height, width = logits.shape
        sound = batch == num_images and classes in (len(self.description.classes) or classes,)
        sound = sound and classes > 0 and logits.is_floating_point()
        if not sound or any(h > height or w > width for h, w in sizes):
            raise ValueError(
                f"{self.session.path} is damaged: its logits have shape {tuple(logits.shape)}"
            )

    def _instances(
        self, outputs: Mapping[str, Tensor], image: int, size: tuple[int, int]
    ) -> Instances:
        """Collect the instances of an image, the best first."""
        chosen = (outputs["image"] == image) & (outputs["scores"] > self.score_threshold)
        index = chosen.nonzero()[: self.detections_per_image, 0]
        return Instances(
            size,
            pred_boxes=Boxes(outputs["boxes"][index]),
            scores=outputs["scores"][index],
            pred_classes=outputs["classes"][index],
            pred_masks=outputs["masks"][index],
        )


def padded_batch(images: Sequence[Tensor], divisor: int) -> tuple[Tensor, Tensor]:
    """Collect images (C, h, w) in a batch of a graph.

    Args:
        images: Resized images in the order of colors of the config.
        divisor: Height and width of the batch are multiples of this number.

    Returns:
        Images (B, C, H, W), float32, with zeros as padding, and their sizes (B, 2), int64.
    """
    padded = ImageList.from_tensors([x.float() for x in images], divisor)
    return padded.tensor, torch.tensor(padded.image_sizes, dtype=torch.int64).reshape(-1, 2)


def build_exported_model(
    cfg: CfgNode,
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    threads: int = 0,
    allow_unsafe: bool = False,
) -> ExportedModel:
    """Load an exported file, for a run with a config as of `run_config.build_run_config`.

    Args:
        cfg: The config, whose score threshold and number of detections are applied.
        path, backend, threads, allow_unsafe: As of :func:`open_session`.

    Raises:
        FileNotFoundError, OSError, ValueError: As :func:`open_session` and :class:`ExportedModel`.
    """
    session = open_session(path, backend=backend, threads=threads, allow_unsafe=allow_unsafe)
    most = cfg.TEST.DETECTIONS_PER_IMAGE
    return ExportedModel(
        session,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        detections_per_image=most if most >= 0 else None,
    )
