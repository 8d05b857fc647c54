"""Random weights, features and detections of the benchmarks.

They are random such that agreement is meaningful: features are noise at all scales, and weights
preserve the magnitude of what passes through them, so that masks and label maps have large regions
with fine boundaries.

Shapes: N boxes (x0, y0, x1, y1) in pixels, S side of a mask; image sizes are (height, width).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from point_rend.experiments.benchmark.settings import Settings

PYRAMID = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}  # strides


def smooth_noise(channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return noise (1, channels, *size) of standard deviation 1 with structure at all scales."""
    noise = torch.zeros(1, channels, *size)
    for octave in range(int(math.log2(min(size)))):
        sides = [-(-side // 2**octave) for side in size]
        layer = torch.randn(1, channels, *sides, generator=generator)
        noise += 2 ** (octave / 2) * F.interpolate(layer, size=size, mode="bilinear")
    return noise / noise.std()


def random_image(size: tuple[int, int], generator: torch.Generator, cfg: CfgNode) -> Tensor:
    """Return an image (C, *size) with values from 0 to 255 and as many channels as a model takes.

    Args:
        size: Height and width.
        generator: Source of the noise.
        cfg: Config of the model.
    """
    channels = len(cfg.MODEL.PIXEL_MEAN)
    return (128 + 60 * smooth_noise(channels, size, generator)[0]).clamp(0, 255)


def random_boxes(num_boxes: int, image_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return boxes (N, 4) inside an image, from its short side down to 1/32 of it."""
    height, width = image_size
    sides = min(image_size) * 2 ** (-5 * torch.rand(num_boxes, generator=generator))
    aspect = 2 ** (torch.rand(num_boxes, generator=generator) - 0.5)
    limit = torch.tensor([width, height])
    extent = torch.minimum(torch.stack((sides * aspect, sides / aspect), dim=1), limit)
    corner = torch.rand(num_boxes, 2, generator=generator) * (limit - extent)
    return torch.cat((corner, corner + extent), dim=1)


@dataclass(frozen=True)
class Detections:
    """Detections in an image.

    Attributes:
        image_size: Size of the image.
        boxes: Boxes (N, 4).
        classes: Classes (N,).
    """

    image_size: tuple[int, int]
    boxes: Tensor
    classes: Tensor

    @classmethod
    def random(
        cls,
        num_boxes: int,
        num_classes: int,
        image_size: tuple[int, int],
        generator: torch.Generator,
    ) -> "Detections":
        """Draw random boxes and classes."""
        boxes = random_boxes(num_boxes, image_size, generator)
        classes = torch.randint(num_classes, (num_boxes,), generator=generator)
        return cls(image_size, boxes, classes)

    def instances(self, device: str | torch.device) -> list[Instances]:
        """Return fresh instances, since heads attach their masks to those they are given."""
        found = Instances(self.image_size)
        found.pred_boxes = Boxes(self.boxes.to(device))
        found.pred_classes = self.classes.to(device)
        return [found]


@dataclass(frozen=True)
class DetectedImage:
    """Features and detections of an image, as a mask head receives them."""

    features: dict[str, Tensor]
    detections: Detections

    @classmethod
    def random(cls, num_boxes: int, num_classes: int, settings: Settings) -> "DetectedImage":
        """Draw random features and detections."""
        generator = torch.Generator().manual_seed(settings.seed)
        size = settings.sizes.instance_image
        features = random_pyramid(size, 1, generator, settings)
        return cls(features, Detections.random(num_boxes, num_classes, size, generator))

    def instances(self) -> list[Instances]:
        """Return fresh instances on the device of the features."""
        return self.detections.instances(self.features["p2"].device)

    def masks(self, head: nn.Module) -> Tensor:
        """Return the masks (N, 1, S, S) of a head."""
        return head(self.features, self.instances())[0].pred_masks


def random_pyramid(
    image_size: tuple[int, int], num_images: int, generator: torch.Generator, settings: Settings
) -> dict[str, Tensor]:
    """Return features of images: noise at the finest level, averaged for the coarser ones."""
    finest_stride = PYRAMID["p2"]
    height, width = (side // finest_stride for side in image_size)
    channels = settings.sizes.pyramid_channels
    noise = [smooth_noise(channels, (height, width), generator) for _ in range(num_images)]
    finest = torch.cat(noise)
    return {
        name: F.avg_pool2d(finest, stride // finest_stride, ceil_mode=True).to(settings.device)
        for name, stride in PYRAMID.items()
    }


def pyramid_shapes(settings: Settings) -> dict[str, ShapeSpec]:
    """Return the shapes of the feature levels, for building heads."""
    channels = settings.sizes.pyramid_channels
    return {name: ShapeSpec(channels=channels, stride=stride) for name, stride in PYRAMID.items()}


def randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of a head such that activations keep their magnitude, and its biases.

    Weights of normalization layers stay. The parameters that an implicit head predicts come out as
    small as the weights of such a layer would be.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.05 if name.startswith("parameter_head.prediction.") else 1.0
            if parameter.dim() > 1:
                parameter.normal_(0, scale * (2 / parameter[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, scale * 0.1, generator=generator)


def share_weights(ours: nn.Module, stock: nn.Module) -> None:
    """Make the stock module use the parameters of ours.

    Raises:
        ValueError: If their names or shapes differ.
    """
    shapes = [
        {(name, tuple(value.shape)) for name, value in module.state_dict().items()}
        for module in (ours, stock)
    ]
    differing = sorted(shapes[0] ^ shapes[1])
    if differing:
        raise ValueError(
            f"--opts change the weights, e.g. {differing[0][0]}: expected options that keep the "
            "names and shapes of the stock project's weights"
        )
    stock.load_state_dict(ours.state_dict(), strict=True, assign=True)
