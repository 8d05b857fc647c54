"""What is done around a model at test time: multi-scale and flip, mixed precision.

Shapes: K classes; H and W rows and columns of the output.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import Tensor, nn

from point_rend.config.tasks import SEM_SEG, model_outputs

ROWS = 64  # of a map that are turned into probabilities at once


def build_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a model so that it sees each image in all variants of TEST.AUG.

    Args:
        cfg: The config, with TEST.AUG.ENABLED True.
        model: A semantic model or a GeneralizedRCNN.

    Returns:
        A model with the inputs and outputs of `model`.
    """
    if model_outputs(cfg) != SEM_SEG:
        return GeneralizedRCNNWithTTA(cfg, model)
    augmentation = cfg.TEST.AUG
    return MultiScaleSegmentor(
        model,
        min_sizes=augmentation.MIN_SIZES,
        max_size=augmentation.MAX_SIZE,
        flip=augmentation.FLIP,
    )


class MultiScaleSegmentor(nn.Module):
    """A semantic model whose probabilities are means over several scales, with and without flip.

    The model sees one variant of one image at a time. Beside its result for this variant there is
    one buffer of the size of the output.

    Args:
        model: Maps a list of one input to a list of one result with `sem_seg`, (K, H, W) logits.
        min_sizes: Short sides to which an image is resized, in pixels.
        max_size: Bound of the long side, in pixels.
        flip: Whether each resized image is also seen flipped horizontally.

    Raises:
        ValueError: If there is no short side.
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
            batched_inputs: Per image "image", (C, h, w) uint8, and optionally "height" and "width"
                of the output.

        Returns:
            Per image "sem_seg", (K, H, W) float32 probabilities in place of logits.
        """
        return [{"sem_seg": self._mean_probabilities(image)} for image in batched_inputs]

    def _mean_probabilities(self, inputs: Mapping[str, Any]) -> Tensor:
        height, width = inputs["image"].shape[-2:]
        size = {"height": inputs.get("height", height), "width": inputs.get("width", width)}
        total: Tensor | None = None
        count = 0
        for image, flipped in self._variants(inputs["image"]):
            # Results are held by nobody but the callee, and are gone before the next ones come.
            total = _add_probabilities(
                total, self.model([{"image": image, **size}])[0].pop("sem_seg"), flipped
            )
            count += 1
        assert total is not None
        return total.div_(count)

    def _variants(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Yield resized images (C, h, w), and whether they are flipped."""
        pixels = image.permute(1, 2, 0).numpy()
        height, width = pixels.shape[:2]
        for side in self.min_sizes:
            sides = ResizeShortestEdge.get_output_shape(height, width, side, self.max_size)
            new_height, new_width = (max(length, 1) for length in sides)
            resized = ResizeTransform(height, width, new_height, new_width).apply_image(pixels)
            scaled = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
            yield scaled, False
            if self.flip:
                yield scaled.flip(-1), True


def _add_probabilities(total: Tensor | None, logits: Tensor, flipped: bool) -> Tensor:
    """Add the softmax of (K, H, W) logits to a sum, a few rows at a time."""
    if total is None:
        total = torch.zeros_like(logits, dtype=torch.float32)
    for some, rows in zip(total.split(ROWS, dim=1), logits.split(ROWS, dim=1), strict=True):
        probabilities = rows.float().softmax(dim=0)
        some += probabilities.flip(-1) if flipped else probabilities
    return total


class InMixedPrecision(nn.Module):
    """A model whose inference runs under autocast.

    Args:
        model: maps a batch to results.
        dtype: in which matrix products are computed.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Return the model's results for a batch."""
        device = next(self.model.parameters()).device
        with torch.autocast(device.type, dtype=self.dtype):
            return self.model(batched_inputs)
