"""Test-time augmentation (scales and flips) and mixed precision, as wrappers of a model.

Shape letters: K classes; H and W output height and width.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import Tensor, nn

from point_rend.config.tasks import SEM_SEG, model_outputs
from point_rend.data.augmentation import ResizeEachChannel
from point_rend.evaluation.postprocessing import UnpastedROIMasks

ROWS = 64  # number of rows that are turned into probabilities at once


def build_test_time_augmentation(
    cfg: CfgNode, model: nn.Module, *, paste_masks: bool = True
) -> nn.Module:
    """Wrap a model so that it averages over the variants of each image that TEST.AUG defines.

    Args:
        cfg: The config, with TEST.AUG.ENABLED True.
        model: A semantic model or a GeneralizedRCNN.
        paste_masks: Whether `pred_masks` are a tensor (N, H, W), not :class:`BoxMasks`.

    Returns:
        A model with the inputs and outputs of `model`.
    """
    if model_outputs(cfg) != SEM_SEG:
        augmented = GeneralizedRCNNWithTTA if paste_masks else UnpastedRCNNWithTTA
        return augmented(cfg, model)
    augmentation = cfg.TEST.AUG
    return MultiScaleSegmentor(
        model,
        min_sizes=augmentation.MIN_SIZES,
        max_size=augmentation.MAX_SIZE,
        flip=augmentation.FLIP,
    )


class UnpastedRCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's augmentation of instance models, whose masks are not pasted."""

    def _reduce_pred_masks(self, outputs: Any, tfms: Any) -> UnpastedROIMasks:
        return UnpastedROIMasks(super()._reduce_pred_masks(outputs, tfms)[:, 0])


class MultiScaleSegmentor(nn.Module):
    """A semantic model whose probabilities are averaged over several scales and flips.

    The model sees one variant of one image at a time. Memory holds its result for this variant and
    one buffer of the output size.

    Args:
        model: Maps a list of one input to a list of one result with `sem_seg`, (K, H, W) logits.
        min_sizes: Lengths in pixels to which the short side of an image is resized.
        max_size: Upper bound of the long side in pixels.
        flip: Whether each resized image is also flipped horizontally.

    Raises:
        ValueError: If `min_sizes` is empty.
    """

    def __init__(
        self, model: nn.Module, *, min_sizes: Sequence[int], max_size: int, flip: bool
    ) -> None:
        super().__init__()
        if not min_sizes:
            raise ValueError("min_sizes (TEST.AUG.MIN_SIZES): expected one or more, got none")
        self.model = model
        self.min_sizes = tuple(min_sizes)
        self.max_size = max_size
        self.flip = flip
        self.train(model.training)

    @torch.no_grad()
    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Segment images.

        Args:
            batched_inputs: For each image, "image", (C, h, w) uint8 or float32, and optionally the
                output "height" and "width".

        Returns:
            For each image, "sem_seg", (K, H, W) float32 probabilities instead of logits.
        """
        return [{"sem_seg": self._mean_probabilities(image)} for image in batched_inputs]

    def _mean_probabilities(self, inputs: Mapping[str, Any]) -> Tensor:
        height, width = inputs["image"].shape[-2:]
        size = {"height": inputs.get("height", height), "width": inputs.get("width", width)}
        total: Tensor | None = None
        count = 0
        for image, flipped in self._variants(inputs["image"]):
            # No variable holds the result here, so it is freed before the next one is computed.
            total = _add_probabilities(
                total, self.model([{"image": image, **size}])[0].pop("sem_seg"), flipped
            )
            count += 1
        assert total is not None
        return total.div_(count)

    def _variants(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Yield resized images (C, h, w), each with a flag that is true if it is flipped."""
        pixels = image.permute(1, 2, 0).numpy()
        height, width = pixels.shape[:2]
        for side in self.min_sizes:
            sides = ResizeShortestEdge.get_output_shape(height, width, side, self.max_size)
            new_height, new_width = (max(length, 1) for length in sides)
            resize = ResizeEachChannel(height, width, new_height, new_width)
            resized = resize.apply_image(pixels)
            scaled = torch.from_numpy(resized.transpose(2, 0, 1).copy())
            yield scaled, False
            if self.flip:
                yield scaled.flip(-1), True


def _add_probabilities(total: Tensor | None, logits: Tensor, flipped: bool) -> Tensor:
    """Add the softmax of (K, H, W) logits to the total, a few rows at a time."""
    if total is None:
        total = torch.zeros_like(logits, dtype=torch.float32)
    for sums, rows in zip(total.split(ROWS, dim=1), logits.split(ROWS, dim=1), strict=True):
        probabilities = rows.float().softmax(dim=0)
        sums += probabilities.flip(-1) if flipped else probabilities
    return total


class AutocastModel(nn.Module):
    """A model whose inference runs under autocast.

    Args:
        model: Maps a batch to results.
        dtype: Data type of autocast.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Run the model on a batch under autocast."""
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, dtype=self.dtype):
            return self.model(batched_inputs)
