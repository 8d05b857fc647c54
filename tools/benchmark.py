#!/usr/bin/env python
"""Time, peak memory and agreement of these heads and of Detectron2's own, side by side.

    python tools/benchmark.py masks --boxes 100 --classes 80     # some of the mask head's cases
    python tools/benchmark.py all --threads 2 --output output/benchmark

Both sides of a case have the same weights and the same inputs, from a seed, and run in turn in one
process: ours, rival, ours, rival, … after a warm-up; the times are medians. The rival is the
PointRend project that Detectron2 ships ("stock"), or Detectron2's convolutional mask head.

Weights and inputs are random, but so that agreement means something: features are noise of all
scales, weights keep the size of what passes through them, so that masks and label maps have large
parts and fine boundaries (the share of neighbouring pixels that differ stands in the JSON file).
Agreement is the share of decided pixels (probability above 0.5, or best class) that differ, and the
largest difference of a probability.

Memory is the peak of one run over what was held before it, so beyond features and weights. On a GPU
the caching allocator counts it. On a CPU it is that of the process, measured in a run of its own:
what the C allocator keeps of earlier runs is given back to the system (malloc_trim), the kernel's
high-water mark is reset (/proc/self/clear_refs) and read after the run (VmHWM). So it holds scratch
memory of libraries, too, which counting tensors would miss; a planted allocation is seen to within
a few pages. Where the system offers none of this, no memory is told.

A case that the stock project would need more memory for than there is (it holds masks for every
class) is not run with it; ours is measured all the same.
"""

import argparse
import ctypes
import dataclasses
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
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
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from point_rend import get_config_file, load_config, stock_heads
from point_rend.meta_arch import resize_logits

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
STOCK_COPIES = 1.75
# Share of the available memory that a run may take.
MEMORY_MARGIN = 0.8

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


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of two sides agree.

    Args:
        differing: share of the pixels that are decided otherwise.
        largest: difference of two probabilities.
        boundary: share of neighbouring pixels in a row that the rival decides otherwise; near 0
            the outputs are flat, and their agreement says little.
    """

    differing: float
    largest: float
    boundary: float


@dataclass(frozen=True)
class Contest:
    """Two ways to the same end.

    Args:
        ours, rival: each returns an output of its own.
        compare: maps our output and the rival's to their agreement; None where the two are not
            meant to be equal.
        heads: ours and the rival's, where their share of the time is to be told.
    """

    ours: Run
    rival: Run
    compare: Callable[[Any, Any], Agreement] | None = None
    heads: tuple[nn.Module, nn.Module] | None = None


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


@dataclass(frozen=True)
class Measurement:
    """One side of a case.

    Args:
        seconds: of each timed run.
        peak_bytes: of memory, if it can be measured.
        head_share: of the time that the head of a whole model takes.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None
    head_share: float | None = None

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Record:
    """What was measured of a case; ``theirs`` is None where the rival did not fit."""

    name: str
    parameters: Mapping[str, int]
    rival: str
    ours: Measurement
    theirs: Measurement | None
    rival_bytes_estimated: int
    agreement: Agreement | None


# Measuring


def synchronize(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleaved_seconds(
    runs: Sequence[Run], repeat: int, device: str, *, clock: Callable[[], float] = time.perf_counter
) -> list[tuple[float, ...]]:
    """Time several functions in turn: the first, the second, …, the first again.

    Args:
        runs: the functions; a first round of them is not timed.
        repeat: number of timed rounds.
        device: on which they work.
        clock: returns seconds.

    Returns:
        Per function its seconds in each round.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    for timed in [False] + [True] * repeat:
        for run, its_seconds in zip(runs, seconds, strict=True):
            synchronize(device)
            start = clock()
            run()
            synchronize(device)
            if timed:
                its_seconds.append(clock() - start)
    return [tuple(its_seconds) for its_seconds in seconds]


def share_of_time(run: Run, head: nn.Module, repeat: int, device: str) -> float:
    """Return the share of a run that passes in a module, 0 to 1: the median of several runs."""
    marks: list[float] = []

    def mark(*_: object) -> None:
        synchronize(device)
        marks.append(time.perf_counter())

    hooks = [head.register_forward_pre_hook(mark), head.register_forward_hook(mark)]
    shares = []
    for _ in range(repeat):
        marks.clear()
        mark()
        run()
        mark()
        start, entered, left, end = marks
        shares.append((left - entered) / (end - start))
    for hook in hooks:
        hook.remove()
    return statistics.median(shares)


def _process_memory(key: str) -> int:
    """Return a line of /proc/self/status that is in kB, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def peak_memory(run: Run, device: str) -> int | None:
    """Run a function once and return the peak of its memory over what was held before, in bytes.

    Args:
        run: the function; what it returns counts.
        device: whose memory is meant.

    Returns:
        None where the system cannot tell.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _process_memory("VmRSS")
        run()
        return max(0, _process_memory("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def available_memory(device: str) -> int:
    """Return the bytes that can still be taken on a device, a container's limit included."""
    if torch.device(device).type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
        available = kilobytes * 1024
    except OSError:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        return min(available, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return available


@contextmanager
def inference(settings: Settings) -> Iterator[None]:
    """Run as in Detectron2's evaluation, under autocast if asked for."""
    dtype = AMP_TYPES[settings.amp]
    kind = torch.device(settings.device).type
    with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
        yield


def measure(case: Case, contest: Contest, settings: Settings) -> Record:
    """Measure both sides of a case; the rival only if there is the memory that it needs."""
    fits = case.rival_bytes <= MEMORY_MARGIN * available_memory(settings.device)
    runs = [contest.ours, contest.rival] if fits else [contest.ours]
    shares: list[float | None] = [None] * len(runs)
    with inference(settings):
        agreement = None
        if fits and contest.compare is not None:
            agreement = contest.compare(contest.ours(), contest.rival())
        else:
            contest.ours()
        peaks = [peak_memory(run, settings.device) for run in runs]
        seconds = interleaved_seconds(runs, settings.repeat, settings.device)
        if contest.heads is not None:
            shares = [
                share_of_time(run, head, settings.repeat, settings.device)
                for run, head in zip(runs, contest.heads, strict=False)
            ]
    sides = [Measurement(*side) for side in zip(seconds, peaks, shares, strict=True)]
    return Record(
        name=case.name,
        parameters=case.parameters,
        rival=case.rival,
        ours=sides[0],
        theirs=sides[1] if fits else None,
        rival_bytes_estimated=case.rival_bytes,
        agreement=agreement,
    )


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


def detected_image(num_boxes: int, num_classes: int, settings: Settings) -> DetectedImage:
    """Make up the features of an image of ``INSTANCE_IMAGE``, and boxes with classes."""
    generator = torch.Generator().manual_seed(settings.seed)
    height, width = (side // PYRAMID["p2"] for side in INSTANCE_IMAGE)
    finest = smooth_noise(PYRAMID_CHANNELS, (height, width), generator)
    features = {
        name: F.avg_pool2d(finest, stride // PYRAMID["p2"], ceil_mode=True).to(settings.device)
        for name, stride in PYRAMID.items()
    }
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
            return logits, logits.argmax(dim=0)

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


def _model_pair(
    ours_cfg: CfgNode, stock_cfg: CfgNode, image: Tensor, settings: Settings
) -> tuple[Any, Any]:
    """Build whole models with the same random weights, and features of standard deviation 1."""
    for cfg in (ours_cfg, stock_cfg):
        cfg.MODEL.DEVICE = settings.device
    torch.manual_seed(settings.seed)
    ours = build_model(ours_cfg).eval()
    with stock_heads():
        stock = build_model(stock_cfg).eval()
    backbone = ours.backbone
    with torch.no_grad():
        features = backbone((image.to(settings.device) - ours.pixel_mean)[None] / ours.pixel_std)
        for level in PYRAMID:
            layer = backbone.get_submodule(f"fpn_output{level.removeprefix('p')}")
            for parameter in layer.parameters():
                parameter /= features[level].std()
    return ours, stock


def _image(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return (3, *size) colours from 0 to 255."""
    return (128 + 60 * smooth_noise(3, size, generator)[0]).clamp(0, 255)


def _instance_model_case(num_boxes: int, num_classes: int) -> Case:
    def build(settings: Settings) -> Contest:
        generator = torch.Generator().manual_seed(settings.seed)
        image = _image(INSTANCE_IMAGE, generator)
        ours, stock = _model_pair(
            instance_config(POINTREND, num_classes, settings.opts),
            instance_config(POINTREND, num_classes),
            image,
            settings,
        )
        randomize(ours.roi_heads.mask_head, generator)
        share_weights(ours, stock)
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
        image = _image(SEMANTIC_IMAGE, generator)
        stock_cfg = semantic_config(num_classes)
        stock_cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
        ours_cfg = semantic_config(num_classes, settings.opts)
        ours, stock = _model_pair(ours_cfg, stock_cfg, image, settings)
        randomize(ours.sem_seg_head, generator)
        share_weights(ours, stock)

        def run(model: nn.Module) -> tuple[Tensor, Tensor]:
            (result,) = model([{"image": image}])
            return result["sem_seg"], result["sem_seg"].argmax(dim=0)

        heads = ours.sem_seg_head, stock.sem_seg_head
        return Contest(lambda: run(ours), lambda: run(stock), label_agreement, heads)

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


CASES: dict[str, Callable[[Settings], list[Case]]] = {
    "masks": masks_cases,
    "implicit": implicit_cases,
    "conv": conv_cases,
    "semantic": semantic_cases,
    "model": model_cases,
}


# Report


def machine(device: str) -> dict[str, Any]:
    """Name what the figures depend on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cuda = torch.device(device).type == "cuda"
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
    }


def _figure(value: float, unit: str) -> str:
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _time(side: Measurement) -> str:
    return _figure(side.median * 1e3, "ms")


def _memory(side: Measurement) -> str:
    return "–" if side.peak_bytes is None else _figure(side.peak_bytes / 2**20, "MiB")


def _ratio(theirs: float | None, ours: float | None) -> str:
    return f"{theirs / ours:.1f}" if theirs and ours else "–"


HEADINGS = (
    *("case", "rival", "time ours", "time rival", "rival / ours"),
    *("memory ours", "memory rival", "rival / ours", "pixels that differ", "largest difference"),
    *("head's share ours", "head's share rival"),
)


def table_row(record: Record) -> list[str]:
    """Return the cells of a record, as many as there are headings."""
    ours, theirs, agreement = record.ours, record.theirs, record.agreement
    cells = [record.name, record.rival, _time(ours)]
    if theirs is None:
        unfit = f"does not fit (≈ {record.rival_bytes_estimated / 2**30:.1f} GiB)"
        cells += [unfit, "–", _memory(ours), "–", "–"]
    else:
        cells += [_time(theirs), _ratio(theirs.median, ours.median)]
        cells += [_memory(ours), _memory(theirs), _ratio(theirs.peak_bytes, ours.peak_bytes)]
    if agreement is None:
        cells += ["–", "–"]
    else:
        cells += [f"{agreement.differing:.1e}", f"{agreement.largest:.1e}"]
    shares = [side.head_share if side else None for side in (ours, theirs)]
    return cells + ["–" if share is None else f"{share:.0%}" for share in shares]


def markdown(records: Sequence[Record], where: Mapping[str, Any], settings: Settings) -> str:
    """Set the records out as a table in Markdown, below a line that names the machine."""
    hardware = where["gpu"] or f"{where['cpu']}, {where['threads']} thread(s)"
    notes = [hardware, f"torch {where['torch']}", f"Detectron2 {where['detectron2']}"]
    notes += [f"medians of {settings.repeat} runs", f"seed {settings.seed}"]
    if settings.amp != "none":
        notes.append(f"autocast {settings.amp}")
    if settings.opts:
        notes.append(f"ours with {' '.join(settings.opts)}")
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), *map(table_row, records)]
    return "\n".join([", ".join(notes), "", *(f"| {' | '.join(row)} |" for row in rows)])


def as_json(records: Sequence[Record], where: Mapping[str, Any], settings: Settings) -> str:
    """Write everything that was measured as JSON; all times are there, and their medians."""
    entries = []
    for record in records:
        entry = dataclasses.asdict(record)
        for key in ("ours", "theirs"):
            side = getattr(record, key)
            if side is not None:
                entry[key]["median"] = side.median
        entries.append(entry)
    content = {"machine": where, "settings": dataclasses.asdict(settings), "records": entries}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def save_plot(records: Sequence[Record], file: Path) -> None:
    """Draw times and peak memory of both sides, a pair of bars for each record."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.5 + 0.5 * len(records)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    quantities: list[tuple[str, Callable[[Measurement], float]]] = [
        ("time, ms", lambda side: side.median * 1e3),
        ("peak memory, MiB", lambda side: (side.peak_bytes or 0) / 2**20),
    ]
    for panel, (title, quantity) in zip(panels, quantities, strict=True):
        for label, offset, sides in (
            ("ours", -0.2, [record.ours for record in records]),
            ("rival", 0.2, [record.theirs for record in records]),
        ):
            values = [quantity(side) if side else 0 for side in sides]
            panel.barh([i + offset for i in range(len(sides))], values, height=0.4, label=label)
        panel.set_xscale("log")
        panel.set_xlabel(title)
        panel.grid(axis="x", alpha=0.3)
        panel.legend()
    panels[0].set_yticks(range(len(records)), [f"{x.name}, {x.rival}" for x in records])
    panels[0].invert_yaxis()
    figure.savefig(file, format="png", dpi=120)


def save_report(folder: Path, stem: str, records: Sequence[Record], text: str, data: str) -> None:
    """Write ``stem``.md, .json and .png into a folder, each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, write in (
        ("md", lambda file: file.write_text(text + "\n", encoding="utf-8")),
        ("json", lambda file: file.write_text(data, encoding="utf-8")),
        ("png", lambda file: save_plot(records, file)),
    ):
        temporary = folder / f".{stem}.{suffix}.{os.getpid()}"
        write(temporary)
        temporary.replace(folder / f"{stem}.{suffix}")


# Command line


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Measure these heads and Detectron2's own side by side."
    )
    kinds = ", ".join(f"{name}: {make.__doc__}" for name, make in CASES.items())
    parser.add_argument("cases", nargs="+", choices=[*CASES, "all"], help=kinds)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--threads", type=_positive, help="of the CPU; default: torch's own number")
    parser.add_argument("--repeat", type=_positive, default=5, help="timed runs of each side")
    parser.add_argument("--boxes", type=_positive, nargs="+", default=[], help="for every case")
    parser.add_argument("--classes", type=_positive, nargs="+", default=[], help="for every case")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    parser.add_argument("--amp", choices=AMP_TYPES, default="none", help="autocast, on both sides")
    parser.add_argument("--output", type=Path, help="folder for JSON, a plot and the table")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config of our side only"
    )
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    """Take the settings from the arguments; ValueError if this machine or a config refuses them."""
    try:
        kind = torch.device(args.device).type
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"--device {args.device}: expected cpu or cuda ({message})") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: torch finds no GPU here")
    settings = Settings(
        device=args.device,
        repeat=args.repeat,
        seed=args.seed,
        boxes=tuple(args.boxes),
        classes=tuple(args.classes),
        amp=args.amp,
        opts=tuple(args.opts),
    )
    instance_config(POINTREND, 1, settings.opts)
    return settings


def main(argv: Sequence[str] | None = None) -> list[Record]:
    """Run the command line.

    Args:
        argv: the arguments; those of the process if not given.

    Returns:
        What was measured.

    Raises:
        SystemExit: with code 2 after an error that the user can put right.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    names = list(CASES) if "all" in args.cases else list(dict.fromkeys(args.cases))
    records = []
    try:
        settings = _settings(args)
        cases = [case for name in names for case in CASES[name](settings)]
    except ValueError as error:
        parser.error(str(error))
    for case in cases:
        torch.manual_seed(settings.seed)
        try:
            contest = case.build(settings)
        except ValueError as error:
            parser.error(str(error))
        records.append(measure(case, contest, settings))
        del contest
        print(" | ".join(table_row(records[-1])), file=sys.stderr, flush=True)
    where = machine(settings.device)
    table = markdown(records, where, settings)
    print(f"\n{table}")
    if args.output:
        stem = "benchmark" if "all" in args.cases else "benchmark_" + "_".join(names)
        save_report(args.output, stem, records, table, as_json(records, where, settings))
    return records


if __name__ == "__main__":
    main()
