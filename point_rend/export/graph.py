"""Graphs over tensors, which PyTorch's exporters accept, and the part common to whole models.

Shapes: B images of C channels, H × W pixels.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

MAX_BATCH = 64
MAX_SIDE = 8192  # of a batch, in pixels
LEAST_SIDE = 33  # of a batch that is not padded, in pixels: two cells of stride 32

DynamicShapes = tuple[Any, ...]


class Graph(nn.Module):
    """A model, or a part of one, as a module from tensors to tensors.

    It computes the same in eager mode, as an exported program, as a trace and as an ONNX file, for
    all sizes of its dynamic axes; nothing in it depends on data but the shapes of some results.

    Attributes:
        task: What the graph computes, one of :data:`point_rend.runtime.description.TASKS`.
        input_names: Names of the arguments of ``forward``.
        output_names: Names of its results.
    """

    task: ClassVar[str]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def example(self) -> tuple[Tensor, ...]:
        """Return arguments to trace with; every dynamic axis has a length of 2 or more."""
        raise NotImplementedError

    def dynamic_shapes(self) -> DynamicShapes:
        """Return the dynamic axes of each argument, as ``torch.export.export`` takes them."""
        raise NotImplementedError


class ImageGraph(Graph):
    """A model as a graph from padded images.

    The arguments are ``images`` (B, C, H, W), float32 from 0 to 255 in the model's order of
    channels, padded at the bottom and on the right to multiples of :attr:`divisor`, and ``sizes``
    (B, 2), int64, the height and width of each image without padding.

    Args:
        model: A meta-architecture of Detectron2, in inference mode.
        divisor: Height and width of a batch are multiples of this number.

    Attributes:
        units: Numbers of which H and W are multiples in the graph, the divisor or a multiple of it.
        max_batch: Largest B.
        max_side: Largest H and W.
    """

    input_names = ("images", "sizes")
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: Any, divisor: int) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.divisor = divisor
        self.units = (divisor, divisor)
        self.max_batch = MAX_BATCH
        self.max_side = MAX_SIDE // divisor * divisor
        self.register_buffer("pixel_mean", model.pixel_mean.detach().clone())
        self.register_buffer("pixel_std", model.pixel_std.detach().clone())

    def features(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Return the feature maps of the images, whose padding becomes zero."""
        return self.backbone(self.normalized(images, sizes))

    def normalized(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Return images with the mean and deviation of the model, and zeros as padding."""
        images = (images - self.pixel_mean) / self.pixel_std
        rows = torch.arange(images.shape[2], device=images.device) < sizes[:, :1]  # (B, H)
        columns = torch.arange(images.shape[3], device=images.device) < sizes[:, 1:]  # (B, W)
        inside = (rows[:, :, None] & columns[:, None])[:, None]  # (B, 1, H, W)
        return torch.where(inside, images, torch.zeros((), device=images.device))

    def example(self) -> tuple[Tensor, ...]:
        """Return two images of random pixels, of different sizes."""
        generator = torch.Generator().manual_seed(0)
        sides = zip((128, 192), self.units, strict=True)
        height, width = (-(-side // unit) * unit for side, unit in sides)
        channels = len(self.pixel_mean)
        images = torch.rand(2, channels, height, width, generator=generator) * 255
        sizes = torch.tensor([[height - 3, width], [height, width - 5]])
        return images.to(self.pixel_mean.device), sizes.to(self.pixel_mean.device)

    def dynamic_shapes(self) -> DynamicShapes:
        """Return batch, height and width, the latter two in multiples of the units."""
        dim = torch.export.Dim
        batch = dim("batch", min=1, max=self.max_batch)
        # The exporter takes no range, except of multiples, in which the last map may be one cell.
        rows, columns = (
            unit * dim(name, min=1 if unit > 1 else LEAST_SIDE, max=self.max_side // unit)
            for name, unit in zip(("rows", "columns"), self.units, strict=True)
        )
        return {0: batch, 2: rows, 3: columns}, {0: batch}


def check_kind(key: str, part: object, *kinds: type) -> None:
    """Refuse a part of a model unless its class is one of those that have a graph.

    Args:
        key: Its config key, or another name for it.
        part: The part.
        kinds: Classes; subclasses may compute something else.

    Raises:
        ValueError: If it has another class.
    """
    if type(part) not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{key} is {type(part).__name__}, which has no graph: expected {expected}")


def check_backbone(backbone: Any) -> None:
    """Refuse a backbone for images of one size only.

    Raises:
        ValueError: If it takes squares of one size.
    """
    square = backbone.padding_constraints.get("square_size", 0)
    if square > 0:
        raise ValueError(
            f"MODEL.BACKBONE.NAME is {type(backbone).__name__}, which takes squares of {square} "
            "pixels only and has no graph: expected a backbone for images of any size"
        )
