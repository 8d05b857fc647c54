"""Random inputs of benchmarks."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from point_rend.experiments.benchmark.case import Settings

# Height and width of the padded images.
INSTANCE_IMAGE = (800, 1216)
PYRAMID = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}  # strides
PYRAMID_CHANNELS = 256


# Weights and inputs
def smooth_noise(channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return (1, channels, *size) noise of standard deviation 1 that has parts of all scales."""
    noise = torch.zeros(1, channels, *size)
    for octave in range(int(math.log2(min(size)))):
        sides = [-(-side // 2**octave) for side in size]
        layer = torch.randn(1, channels, *sides, generator=generator)
        noise += 2 ** (octave / 2) * F.interpolate(layer, size=size, mode="bilinear")
    return noise / noise.std()


def randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Give a head weights that keep the size of what passes through, and biases.

    Weights of normalization layers stay. Predicted parameters of an implicit head come out as
    small as the weights of such a layer would be.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.05 if name.startswith("parameter_head.prediction.") else 1.0
            if parameter.dim() > 1:
                parameter.normal_(0, scale * (2 / parameter[0].numel()) ** 0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, scale * 0.1, generator=generator)


def random_boxes(num_boxes: int, image_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return (num_boxes, 4) boxes in an image, from its short side down to 1/32 of it."""
    height, width = image_size
    sides = min(image_size) * 2 ** (-5 * torch.rand(num_boxes, generator=generator))
    aspect = 2 ** (torch.rand(num_boxes, generator=generator) - 0.5)
    limit = torch.tensor([width, height])
    extent = torch.minimum(torch.stack((sides * aspect, sides / aspect), dim=1), limit)
    corner = torch.rand(num_boxes, 2, generator=generator) * (limit - extent)
    return torch.cat((corner, corner + extent), dim=1)


@dataclass(frozen=True)
class Detections:
    """Boxes (N, 4) and classes (N,) that were found in an image of ``INSTANCE_IMAGE``."""

    boxes: Tensor
    classes: Tensor

    @classmethod
    def random(cls, num_boxes: int, num_classes: int, generator: torch.Generator) -> "Detections":
        """Draw them."""
        boxes = random_boxes(num_boxes, INSTANCE_IMAGE, generator)
        return cls(boxes, torch.randint(num_classes, (num_boxes,), generator=generator))

    def instances(self, device: str | torch.device) -> list[Instances]:
        """Return fresh instances, since heads attach their masks to those they are given."""
        found = Instances(INSTANCE_IMAGE)
        found.pred_boxes = Boxes(self.boxes.to(device))
        found.pred_classes = self.classes.to(device)
        return [found]


@dataclass(frozen=True)
class DetectedImage:
    """The features of an image and what was found in it, as a mask head receives them."""

    features: dict[str, Tensor]
    detections: Detections

    def instances(self) -> list[Instances]:
        """Return fresh instances, on the device of the features."""
        return self.detections.instances(self.features["p2"].device)

    def masks(self, head: nn.Module) -> Tensor:
        """Return the masks of a head, (N, 1, S, S)."""
        return head(self.features, self.instances())[0].pred_masks


def pyramid(
    image_size: tuple[int, int], num_images: int, generator: torch.Generator, settings: Settings
) -> dict[str, Tensor]:
    """Make up the features of images: noise at the finest level, its means at the others."""
    finest_stride = PYRAMID["p2"]
    height, width = (side // finest_stride for side in image_size)
    noise = [smooth_noise(PYRAMID_CHANNELS, (height, width), generator) for _ in range(num_images)]
    finest = torch.cat(noise)
    return {
        name: F.avg_pool2d(finest, stride // finest_stride, ceil_mode=True).to(settings.device)
        for name, stride in PYRAMID.items()
    }


def detected_image(num_boxes: int, num_classes: int, settings: Settings) -> DetectedImage:
    """Make up the features of an image of ``INSTANCE_IMAGE``, and boxes with classes."""
    generator = torch.Generator().manual_seed(settings.seed)
    features = pyramid(INSTANCE_IMAGE, 1, generator, settings)
    return DetectedImage(features, Detections.random(num_boxes, num_classes, generator))


def share_weights(ours: nn.Module, stock: nn.Module) -> None:
    """Make the stock module use the parameters of ours; both must have the same names and shapes.

    Raises:
        ValueError: if they have not.
    """
    shapes = [
        {(name, tuple(value.shape)) for name, value in module.state_dict().items()}
        for module in (ours, stock)
    ]
    differing = sorted(shapes[0] ^ shapes[1])
    if differing:
        raise ValueError(
            f"--opts change the weights, e.g. {differing[0][0]}: expected options that leave "
            "their names and shapes as the stock project has them"
        )
    stock.load_state_dict(ours.state_dict(), strict=True, assign=True)


def random_image(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return (3, *size) colors from 0 to 255."""
    return (128 + 60 * smooth_noise(3, size, generator)[0]).clamp(0, 255)
