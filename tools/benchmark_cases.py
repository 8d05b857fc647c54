"""The cases of tools/benchmark.py: weights, inputs, and what runs on both sides."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    SEM_SEG_HEADS_REGISTRY,
    build_mask_head,
    build_model,
    build_sem_seg_head,
    detector_postprocess,
)
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from point_rend import get_config_file, load_config, stock_heads
from point_rend.meta_arch import resize_logits
from point_rend.uncertainty import label_map

POINTREND = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"
IMPLICIT = "InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco.yaml"
CONVOLUTIONAL = "InstanceSegmentation/mask_rcnn_R_50_FPN_1x_coco.yaml"
SEMANTIC = "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml"

# Height and width of the padded images.
INSTANCE_IMAGE = (800, 1216)
SEMANTIC_IMAGE = (1024, 2048)
COARSE_STRIDES = (16, 4)  # of the semantic head's cases: 64×128 and 256×512
PYRAMID = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}  # strides
PYRAMID_CHANNELS = 256
MASK_SIDE = 224

# Peak memory of the stock mask head over that of its float32 masks of all classes at full side.
STOCK_COPIES = 1.5

# Deviation of what a residual block of random weights adds: with 1 the features of a hundred layers
# would outgrow half precision.
RESIDUAL_SCALE = 0.2

AMP_TYPES = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

Run = Callable[[], Any]


@dataclass(frozen=True)
class Settings:
    """What a command asks for.

    Args:
        device: of torch.
        repeat: number of timed runs of each side.
        seed: of weights and inputs.
        boxes, classes: numbers that take the place of each case's own.
        amp: name in ``AMP_TYPES``; both sides run under it.
        opts: keys and values of the config, for our side only.
    """

    device: str = "cpu"
    repeat: int = 5
    seed: int = 0
    boxes: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    amp: str = "none"
    opts: tuple[str, ...] = ()

    def autocast(self) -> torch.autocast:
        """Return a context of the precision that was asked for, to be entered once."""
        dtype = AMP_TYPES[self.amp]
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of two sides agree.

    Args:
        largest: largest difference of two probabilities; of training, relative one of a loss or of
            the norm of a gradient.
        differing: share of the pixels, or points, that are decided otherwise.
        boundary: share of neighbouring pixels in a row that the rival decides otherwise; near 0
            the outputs are flat, and their agreement says little.
    """

    largest: float
    differing: float | None = None
    boundary: float | None = None


@dataclass(frozen=True)
class Contest:
    """Two ways to the same end.

    Args:
        ours, rival: each returns an output of its own.
        compare: maps our output and the rival's to their agreement; None where the two are not
            meant to be equal.
        heads: ours and the rival's, where their share of the time is to be told.
        training: whether gradients are computed; then the runs enter autocast themselves, which
            is for the losses and not for their gradients.
        of_images: ours and the rival's for any number of images, where it is to be told how many
            fit into a GPU's memory.
    """

    ours: Run
    rival: Run
    compare: Callable[[Any, Any], Agreement] | None = None
    heads: tuple[nn.Module, nn.Module] | None = None
    training: bool = False
    of_images: tuple[Callable[[int], Any], Callable[[int], Any]] | None = None


@dataclass(frozen=True)
class Case:
    """A contest that has not been built yet.

    Args:
        name: for people.
        parameters: what distinguishes it from others of its kind.
        rival: name of the other side.
        build: makes the contest.
        rival_bytes: memory that the rival needs, where it is known to be large.
    """

    name: str
    parameters: Mapping[str, int]
    rival: str
    build: Callable[[Settings], Contest]
    rival_bytes: int = 0


# Agreement


def decided_agreement(
    ours: Tensor, theirs: Tensor, our_decision: Tensor, their_decision: Tensor
) -> Agreement:
    """Compare probabilities, and what is decided by them at each pixel (…, H, W)."""
    neighbours = their_decision[..., 1:] != their_decision[..., :-1]
    return Agreement(
        differing=(our_decision != their_decision).double().mean().item(),
        largest=(ours - theirs).abs().max().item(),
        boundary=neighbours.double().mean().item(),
    )


def mask_agreement(ours: Tensor, theirs: Tensor) -> Agreement:
    """Compare masks (N, 1, S, S) of probabilities, decided above 0.5.

    Ours are resized to the rival's side where an option gives them another.
    """
    if ours.shape != theirs.shape:
        ours = F.interpolate(ours, size=theirs.shape[-2:], mode="bilinear", align_corners=False)
    return decided_agreement(ours.float(), theirs.float(), ours > 0.5, theirs > 0.5)


def label_agreement(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Agreement:
    """Compare pairs of logits (K, H, W) and the label maps (H, W) that follow from them."""
    our_probabilities, their_probabilities = (x[0].float().softmax(dim=0) for x in (ours, theirs))
    return decided_agreement(our_probabilities, their_probabilities, ours[1], theirs[1])


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

    Weights of normalisation layers stay. Predicted parameters of an implicit head come out as
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


def instance_config(file: str, num_classes: int, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config of an instance model, with a number of classes that both sides understand."""
    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes)]
    if file != CONVOLUTIONAL:
        classes += ["MODEL.POINT_HEAD.NUM_CLASSES", str(num_classes)]
    return load_config(get_config_file(file), [*classes, *opts])


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


def mask_head_pair(file: str, num_classes: int, settings: Settings) -> tuple[nn.Module, nn.Module]:
    """Build our mask head and the stock project's with the same random weights."""
    shapes = {
        name: ShapeSpec(channels=PYRAMID_CHANNELS, stride=stride)
        for name, stride in PYRAMID.items()
    }
    ours = build_mask_head(instance_config(file, num_classes, settings.opts), shapes)
    with stock_heads():
        stock = build_mask_head(instance_config(file, num_classes), shapes)
    randomize(ours, torch.Generator().manual_seed(settings.seed))
    ours.to(settings.device).eval()
    share_weights(ours, stock)
    return ours, stock.to(settings.device).eval()


# Cases


def _stock_bytes(num_boxes: int, num_classes: int) -> int:
    """Estimate the peak memory of the stock mask head, which holds masks for every class."""
    return int(STOCK_COPIES * 4 * num_boxes * num_classes * MASK_SIDE**2)


def _mask_case(kind: str, file: str, num_boxes: int, num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        ours, stock = mask_head_pair(file, num_classes, settings)
        image = detected_image(num_boxes, num_classes, settings)
        return Contest(lambda: image.masks(ours), lambda: image.masks(stock), mask_agreement)

    return Case(
        name=f"{kind}, {num_boxes} × {num_classes}",
        parameters={"boxes": num_boxes, "classes": num_classes},
        rival="stock",
        build=build,
        rival_bytes=_stock_bytes(num_boxes, num_classes),
    )


def _grid(settings: Settings, boxes: Sequence[int], classes: Sequence[int]) -> list[Any]:
    """Combine numbers of boxes with numbers of classes, those of the command before others."""
    return [(n, k) for n in settings.boxes or boxes for k in settings.classes or classes]


def masks_cases(settings: Settings) -> list[Case]:
    """PointRend's mask head, over boxes × classes."""
    grid = _grid(settings, (1, 20, 100, 300), (1, 8, 80, 1203))
    return [_mask_case("mask head", POINTREND, n, k) for n, k in grid]


def implicit_cases(settings: Settings) -> list[Case]:
    """The implicit mask head, over boxes × classes."""
    grid = _grid(settings, (100,), (80,))
    return [_mask_case("implicit head", IMPLICIT, n, k) for n, k in grid]


def _convolutional_head(num_classes: int, settings: Settings) -> tuple[ROIPooler, nn.Module, list]:
    """Build Detectron2's convolutional mask head as its ROI heads do, with what pools for it."""
    cfg = instance_config(CONVOLUTIONAL, num_classes)
    head, names = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
    pooler = ROIPooler(
        output_size=head.POOLER_RESOLUTION,
        scales=[1 / PYRAMID[name] for name in names],
        sampling_ratio=head.POOLER_SAMPLING_RATIO,
        pooler_type=head.POOLER_TYPE,
    )
    side = head.POOLER_RESOLUTION
    module = build_mask_head(cfg, ShapeSpec(channels=PYRAMID_CHANNELS, width=side, height=side))
    randomize(module, torch.Generator().manual_seed(settings.seed))
    return pooler, module.to(settings.device).eval(), names


def _conv_case(num_boxes: int, num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        ours, _ = mask_head_pair(POINTREND, num_classes, settings)
        pooler, head, names = _convolutional_head(num_classes, settings)
        image = detected_image(num_boxes, num_classes, settings)

        def rival() -> Tensor:
            instances = image.instances()
            levels = [image.features[name] for name in names]
            pooled = pooler(levels, [x.pred_boxes for x in instances])
            return head(pooled, instances)[0].pred_masks

        return Contest(lambda: image.masks(ours), rival)

    return Case(
        name=f"mask head, {num_boxes} × {num_classes}",
        parameters={"boxes": num_boxes, "classes": num_classes},
        rival="4×conv 28×28",
        build=build,
    )


def conv_cases(settings: Settings) -> list[Case]:
    """PointRend at 224×224 against Detectron2's convolutional head at 28×28, pooling included."""
    return [_conv_case(n, k) for n, k in _grid(settings, (100,), (80,))]


@SEM_SEG_HEADS_REGISTRY.register()
class GivenCoarseLogits(nn.Module):
    """A coarse head that hands over the feature "coarse", so that rendering alone is timed."""

    def __init__(self, _: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> None:
        super().__init__()
        self.common_stride = input_shape["coarse"].stride

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return the logits."""
        return features["coarse"]

    def losses(self, *_: Tensor) -> dict[str, Tensor]:
        """Return no losses: nothing is trained here."""
        return {}


def semantic_config(num_classes: int, opts: Sequence[str] = ()) -> CfgNode:
    """Read the config of a semantic model, with a number of classes that both sides understand."""
    classes = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(num_classes)]
    classes += ["MODEL.POINT_HEAD.NUM_CLASSES", str(num_classes)]
    return load_config(get_config_file(SEMANTIC), [*classes, *opts])


def _semantic_case(stride: int, num_classes: int) -> Case:
    height, width = SEMANTIC_IMAGE
    coarse_size = (height // stride, width // stride)

    def build(settings: Settings) -> Contest:
        shapes = {
            "p2": ShapeSpec(channels=PYRAMID_CHANNELS, stride=PYRAMID["p2"]),
            "coarse": ShapeSpec(channels=num_classes, stride=stride),
        }
        given = [
            *("MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME", GivenCoarseLogits.__name__),
            *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", str(stride.bit_length() - 1)),
        ]
        ours = build_sem_seg_head(semantic_config(num_classes, [*given, *settings.opts]), shapes)
        with stock_heads():
            stock = build_sem_seg_head(semantic_config(num_classes, given), shapes)
        generator = torch.Generator().manual_seed(settings.seed)
        randomize(ours, generator)
        ours.to(settings.device).eval()
        share_weights(ours, stock)
        stock.to(settings.device).eval()
        fine_size = (height // PYRAMID["p2"], width // PYRAMID["p2"])
        features = {
            "p2": smooth_noise(PYRAMID_CHANNELS, fine_size, generator).to(settings.device),
            "coarse": smooth_noise(num_classes, coarse_size, generator).to(settings.device),
        }

        def our_run() -> tuple[Tensor, Tensor]:
            logits = resize_logits(ours(features, None, [SEMANTIC_IMAGE])[0][0], height, width)
            return logits, label_map(logits)

        def stock_run() -> tuple[Tensor, Tensor]:
            logits = sem_seg_postprocess(stock(features)[0][0], SEMANTIC_IMAGE, height, width)
            return logits, logits.argmax(dim=0)

        return Contest(our_run, stock_run, label_agreement)

    rows, columns = coarse_size
    return Case(
        name=f"semantic head, {rows}×{columns} → {height}×{width}, {num_classes} classes",
        parameters={"stride": stride, "classes": num_classes},
        rival="stock",
        build=build,
    )


def semantic_cases(settings: Settings) -> list[Case]:
    """The semantic head from given coarse logits to the label map, as the models do it."""
    classes = settings.classes or (19,)
    return [_semantic_case(stride, k) for stride in COARSE_STRIDES for k in classes]


def model_pair(
    ours_cfg: CfgNode, stock_cfg: CfgNode, head: str, image: Tensor, settings: Settings
) -> tuple[Any, Any]:
    """Build whole models with the same random weights, and features of standard deviation 1.

    Args:
        ours_cfg, stock_cfg: with an FPN as backbone.
        head: name of the submodule that is randomized.
        image: (3, H, W) on which the features are to have that deviation.
        settings: with the seed and the device.
    """
    for cfg in (ours_cfg, stock_cfg):
        cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(settings.seed)
    ours = build_model(ours_cfg).eval()
    for block in ours.backbone.modules():
        if isinstance(block, BottleneckBlock):
            block.conv3.weight.data *= RESIDUAL_SCALE
    with stock_heads():
        stock = build_model(stock_cfg).eval()
    with torch.no_grad():
        normalised = (image - ours.pixel_mean) / ours.pixel_std
        padded = ImageList.from_tensors([normalised], ours.backbone.size_divisibility)
        features = ours.backbone(padded.tensor)
        for level in PYRAMID:
            layer = ours.backbone.get_submodule(f"fpn_output{level.removeprefix('p')}")
            for parameter in layer.parameters():
                parameter /= features[level].std()
    randomize(ours.get_submodule(head), torch.Generator().manual_seed(settings.seed))
    ours.to(settings.device)
    share_weights(ours, stock)
    return ours, stock.to(settings.device)


def random_image(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return (3, *size) colours from 0 to 255."""
    return (128 + 60 * smooth_noise(3, size, generator)[0]).clamp(0, 255)


def _instance_model_case(num_boxes: int, num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        generator = torch.Generator().manual_seed(settings.seed)
        image = random_image(INSTANCE_IMAGE, generator)
        ours, stock = model_pair(
            instance_config(POINTREND, num_classes, settings.opts),
            instance_config(POINTREND, num_classes),
            "roi_heads.mask_head",
            image,
            settings,
        )
        detections = Detections.random(num_boxes, num_classes, generator)

        def plant(_: nn.Module, inputs: tuple) -> tuple:
            return inputs[0], detections.instances(settings.device)

        def run(model: Any) -> Tensor:
            (result,) = model.inference([{"image": image}], do_postprocess=False)
            detector_postprocess(result, *INSTANCE_IMAGE)
            return result.pred_masks

        heads = ours.roi_heads.mask_head, stock.roi_heads.mask_head
        for head in heads:
            head.register_forward_pre_hook(plant)
        return Contest(lambda: run(ours), lambda: run(stock), mask_agreement, heads)

    height, width = INSTANCE_IMAGE
    return Case(
        name=f"R50-FPN model, {height}×{width}, {num_boxes} × {num_classes}",
        parameters={"boxes": num_boxes, "classes": num_classes},
        rival="stock",
        build=build,
        rival_bytes=_stock_bytes(num_boxes, num_classes),
    )


def _semantic_model_case(num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        generator = torch.Generator().manual_seed(settings.seed)
        image = random_image(SEMANTIC_IMAGE, generator)
        stock_cfg = semantic_config(num_classes)
        stock_cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
        ours_cfg = semantic_config(num_classes, settings.opts)
        ours, stock = model_pair(ours_cfg, stock_cfg, "sem_seg_head", image, settings)

        def our_run() -> tuple[Tensor, Tensor]:
            (result,) = ours([{"image": image}])
            return result["sem_seg"], label_map(result["sem_seg"])

        def stock_run() -> tuple[Tensor, Tensor]:
            (result,) = stock([{"image": image}])
            return result["sem_seg"], result["sem_seg"].argmax(dim=0)

        heads = ours.sem_seg_head, stock.sem_seg_head
        return Contest(our_run, stock_run, label_agreement, heads)

    height, width = SEMANTIC_IMAGE
    return Case(
        name=f"R101 SemanticFPN model, {height}×{width}, {num_classes} classes",
        parameters={"classes": num_classes},
        rival="stock",
        build=build,
    )


def model_cases(settings: Settings) -> list[Case]:
    """Whole models from the image to pasted masks or the label map, and their heads' share.

    The box branch of the R50-FPN model does its ordinary work; then, on both sides, a given number
    of boxes takes the place of those that it found.
    """
    cases = [_instance_model_case(n, k) for n, k in _grid(settings, (100,), (80,))]
    return cases + [_semantic_model_case(k) for k in settings.classes or (19,)]
