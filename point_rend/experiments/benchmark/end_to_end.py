"""CPU seconds of a whole model, from the image to encoded masks, by stage.

Several ways compute the same results from the same weights: the stock project, this model as it is
built, the model as `Predictor` and `evaluate` prepare it, and its exported file in each runtime.
"""

import copy
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import nn

from point_rend import __version__
from point_rend.acceleration.prepare import prepare_for_inference
from point_rend.evaluation.postprocessing import UnpastedMasks, coco_records
from point_rend.experiments.benchmark.instance_cases import (
    POINTREND,
    instance_config,
    instance_configs,
)
from point_rend.experiments.benchmark.load import busy_processes
from point_rend.experiments.benchmark.model_cases import model_pair
from point_rend.experiments.benchmark.random_inputs import random_image, randomize
from point_rend.experiments.benchmark.report import describe_machine
from point_rend.experiments.benchmark.settings import FILES, Settings
from point_rend.experiments.plots import plot_panels
from point_rend.export.build import build_graph
from point_rend.export.quantization import quantize
from point_rend.export.writers import write_onnx
from point_rend.rendering.box_masks import BoxMasks
from point_rend.runtime.description import Description
from point_rend.runtime.exported_model import ExportedModel, padded_batch
from point_rend.runtime.sessions import open_session
from point_rend.utils.errors import user_errors
from point_rend.utils.files import write_text

REST = "pasting, encoding, rest"
CLASSES = 80


@dataclass(frozen=True)
class Way:
    """A way to compute results.

    Attributes:
        name: Title of its column.
        model: Maps a batch to Detectron2's results; masks may be :class:`BoxMasks`.
        stages: Modules whose time is measured, each with the module within it whose time does not
            count, if there is one.
    """

    name: str
    model: nn.Module
    stages: Mapping[str, tuple[nn.Module, nn.Module | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """CPU seconds of a way.

    Attributes:
        name: Name of the way.
        rounds: For each round the seconds of each stage, of the rest, and of the whole.
        instances: What it has detected.
    """

    name: str
    rounds: Sequence[Mapping[str, float]]
    instances: Instances

    def median(self, stage: str) -> float | None:
        """Return the median over the rounds; None for a stage that the way does not have."""
        values = [seconds[stage] for seconds in self.rounds if stage in seconds]
        return statistics.median(values) if values else None

    @property
    def whole(self) -> float:
        """Median of the whole."""
        return statistics.median(seconds["whole"] for seconds in self.rounds)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value of the whole over the rounds."""
        wholes = [seconds["whole"] for seconds in self.rounds]
        return min(wholes), max(wholes)


def check_end_to_end(names: Sequence[str], settings: Settings) -> None:
    """Refuse settings that do not apply to this benchmark.

    Raises:
        ValueError: If there are other cases, or the settings ask for another device or precision.
    """
    if len(names) > 1:
        raise ValueError(f"the case end-to-end has a table of its own, got {' '.join(names)}")
    if settings.device != "cpu" or settings.amp != "none":
        raise ValueError(
            f"--device is {settings.device} and --amp {settings.amp}: end-to-end measures CPU "
            "seconds in float32, expected --device cpu and no --amp"
        )
    instance_config(POINTREND, 1, settings.opts)


def run_end_to_end(settings: Settings, folder: Path | None, stem: str) -> list[Timing]:
    """Measure the ways of :func:`build_ways`, print the table, and save it with all rounds.

    Args:
        settings: The settings.
        folder: Folder of the Markdown file, the JSON file and the plot, if they are to be saved.
        stem: Name of the files, without suffix.

    Raises:
        SystemExit: With code 2 if an option changes the weights of our side.
    """
    torch.manual_seed(settings.seed)
    with user_errors():  # options that change the weights of our side
        ways, inputs = build_ways(settings)
    with tempfile.TemporaryDirectory() as temporary:
        ways += exported_ways(settings.files, ways[1].model, inputs["image"], Path(temporary))
        with busy_processes(settings.busy_processes):
            timings = measure_ways(ways, inputs, settings.repeat)
    machine = describe_machine(settings.device)
    notes = f"{machine['cpu']}, {machine['threads']} thread(s), torch {machine['torch']}, medians"
    text = f"{notes} of {settings.repeat} rounds\n\n{format_timings(timings)}"
    print(f"\n{text}")
    if folder:
        content = {
            "machine": machine,
            "settings": dataclasses.asdict(settings),
            "ways": {timing.name: list(timing.rounds) for timing in timings},
        }
        write_text(folder / f"{stem}.md", text + "\n")
        write_text(folder / f"{stem}.json", json.dumps(content, indent=2) + "\n")
        plot_timings(timings, folder / f"{stem}.png")
    return timings


def build_ways(settings: Settings) -> tuple[list[Way], dict[str, Any]]:
    """Build the ways in PyTorch with the same random weights, and an image for them.

    The weights are such that the model detects as many boxes as it may.
    """
    limit = ("TEST.DETECTIONS_PER_IMAGE", str(max(settings.boxes, default=100)))
    cfgs = instance_configs(POINTREND, max(settings.classes, default=CLASSES), settings, limit)
    generator = torch.Generator().manual_seed(settings.seed)
    image = random_image(settings.sizes.instance_image, generator, cfgs[0])
    ours, stock = model_pair(*cfgs, "roi_heads.mask_head", image, settings)
    # Both share their parameters.
    randomize(ours.roi_heads.box_predictor.cls_score, generator)
    prepared = prepare_for_inference(copy.deepcopy(ours))
    height, width = settings.sizes.pasted_image
    ways = [
        Way("stock", stock, stages_of(stock)),
        Way("as built", ours, stages_of(ours)),
        Way("prepared", UnpastedMasks(prepared), stages_of(prepared)),
    ]
    return ways, {"image": image, "height": height, "width": width}


def exported_ways(
    names: Sequence[str], model: nn.Module, image: torch.Tensor, folder: Path
) -> list[Way]:
    """Export a model, and build a way for each file and runtime.

    Args:
        names: Keys of `FILES`.
        model: The model.
        image: (3, H, W), from which the ranges of int8 are taken.
        folder: A folder for the files.

    Raises:
        SystemExit: With code 2 if a package that a file needs is missing.
    """
    ways: list[Way] = []
    if not names:
        return ways
    threads = torch.get_num_threads()
    graph: Any = build_graph(model)
    description = Description(
        task=graph.task,
        version=__version__,
        classes=(),
        image_format="BGR",
        min_size=0,
        max_size=0,
        divisor=graph.divisor,
        max_side=graph.max_side,
        max_batch=graph.max_batch,
    )
    with user_errors():
        write_onnx(graph, folder / "float32.onnx", description)
        batch = [x.numpy() for x in padded_batch([image], graph.divisor)]
        for name in names:
            backend, precision = FILES[name]
            path = folder / f"{precision}.onnx"
            if not path.exists():
                whole = folder / "float32.onnx"
                quantize(whole, path, precision=precision, batches=[(batch[0], batch[1])])
            session = open_session(path, backend=backend, threads=threads)
            ways.append(Way(name, UnpastedMasks(ExportedModel(session))))
    return ways


def stages_of(model: Any) -> dict[str, tuple[nn.Module, nn.Module | None]]:
    """Return the stages of an R-CNN with an FPN."""
    backbone, heads = model.backbone, model.roi_heads
    return {
        "ResNet": (backbone.bottom_up, None),
        "FPN": (backbone, backbone.bottom_up),
        "RPN": (model.proposal_generator, None),
        "RoIAlign": (heads.box_pooler, None),
        "box head": (heads.box_head, None),
        "mask head": (heads.mask_head, None),
    }


def measure_ways(
    ways: Sequence[Way],
    inputs: Mapping[str, Any],
    repeat: int,
    *,
    clock: Callable[[], float] = time.process_time,
) -> list[Timing]:
    """Time all ways in turn, after a first round that is not timed.

    Args:
        ways: The ways.
        inputs: An image, as Detectron2's models take it.
        repeat: Number of timed rounds.
        clock: Returns seconds; by default those of all threads of this process.
    """
    rounds: list[list[Mapping[str, float]]] = [[] for _ in ways]
    results: list[Instances] = []
    for number in range(repeat + 1):
        for way, seconds in zip(ways, rounds, strict=True):
            taken, found = _time_once(way, inputs, clock)
            if number == 0:
                results.append(found)
            else:
                seconds.append(taken)
    return [
        Timing(way.name, seconds, found)
        for way, seconds, found in zip(ways, rounds, results, strict=True)
    ]


@torch.no_grad()
def _time_once(
    way: Way, inputs: Mapping[str, Any], clock: Callable[[], float]
) -> tuple[dict[str, float], Instances]:
    modules = [module for pair in way.stages.values() for module in pair if module is not None]
    spent: dict[nn.Module, float] = dict.fromkeys(modules, 0.0)

    def enter(module: nn.Module, *_: object) -> None:
        spent[module] -= clock()

    def leave(module: nn.Module, *_: object) -> None:
        spent[module] += clock()

    hooks = [
        hook
        for module in spent
        for hook in (
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave),
        )
    ]
    try:
        start = clock()
        (output,) = way.model([dict(inputs)])
        coco_records(output["instances"].to("cpu"), 0)
        whole = clock() - start
    finally:
        for hook in hooks:
            hook.remove()
    seconds = {
        name: spent[outer] - (0.0 if inner is None else spent[inner])
        for name, (outer, inner) in way.stages.items()
    }
    if seconds:
        seconds[REST] = whole - sum(seconds.values())
    return seconds | {"whole": whole}, output["instances"].to("cpu")


def differences(found: Instances, expected: Instances) -> tuple[int, float, float]:
    """Compare the results of two ways.

    Returns:
        Number of instances that only one of them has, by class and place in the order of scores;
        largest difference of a coordinate in pixels, and share of pixels that differ, among those
        that both have.
    """
    count = min(len(found), len(expected))
    same = found.pred_classes[:count] == expected.pred_classes[:count]
    boxes = found.pred_boxes.tensor[:count], expected.pred_boxes.tensor[:count]
    same &= (boxes[0] - boxes[1]).abs().amax(dim=1) < 1
    chosen = same.nonzero()[:, 0]
    others = max(len(found), len(expected)) - len(chosen)
    largest = (boxes[0] - boxes[1])[chosen].abs().amax().item() if len(chosen) else 0.0
    masks = [_dense(x.pred_masks)[chosen] for x in (found, expected)]
    differing = float((masks[0] != masks[1]).double().mean()) if len(chosen) else 0.0
    return others, largest, differing


def _dense(masks: Any) -> torch.Tensor:
    return masks.tensor() if isinstance(masks, BoxMasks) else torch.as_tensor(np.asarray(masks))


def format_timings(timings: Sequence[Timing], *, reference: str = "as built") -> str:
    """Lay out CPU seconds as a Markdown table: a row for each stage, a column for each way.

    Args:
        timings: Timings of the ways.
        reference: The way that the others are compared with.
    """
    stages = list(dict.fromkeys(name for timing in timings for name in timing.rounds[0]))
    compared = next(timing for timing in timings if timing.name == reference)
    rows = [["CPU seconds", *(timing.name for timing in timings)], ["---"] * (len(timings) + 1)]
    for stage in stages:
        medians = [timing.median(stage) for timing in timings]
        rows.append([stage, *("–" if value is None else f"{value:.2f}" for value in medians)])
    ranges = ("–".join(f"{x:.2f}" for x in timing.range) for timing in timings)
    rows.append(["smallest–largest whole", *ranges])
    ratios = [f"{compared.whole / timing.whole:.2f}" for timing in timings]
    rows.append([f"{reference} / this", *ratios])
    found = [differences(timing.instances, compared.instances) for timing in timings]
    rows.append(["instances", *(str(len(timing.instances)) for timing in timings)])
    rows.append(["of these, others", *(str(others) for others, _, _ in found)])
    rows.append(["boxes differ by (pixels)", *(f"{largest:.1e}" for _, largest, _ in found)])
    rows.append(["pixels that differ", *(f"{share:.1e}" for _, _, share in found)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot_timings(timings: Sequence[Timing], file: Path) -> None:
    """Plot the CPU seconds of each way: its stages, and the range of the whole over the rounds."""

    def plot(axes: Any, _: str) -> None:
        names = dict.fromkeys(name for timing in timings for name in timing.rounds[0])
        ends = [0.0] * len(timings)
        for stage in (name for name in names if name != "whole"):
            seconds = [timing.median(stage) or 0.0 for timing in timings]
            axes.barh(rows, seconds, left=ends, label=stage)
            ends = [end + x for end, x in zip(ends, seconds, strict=True)]
        for row, timing in enumerate(timings):
            if timing.rounds[0].keys() == {"whole"}:
                axes.barh(row, timing.whole, color="lightgray")
            errors = [[timing.whole - timing.range[0]], [timing.range[1] - timing.whole]]
            axes.errorbar(timing.whole, row, xerr=errors, fmt="o", capsize=4, color="black")
        axes.set_yticks(rows, [timing.name for timing in timings])
        axes.legend()

    rows = range(len(timings))
    height = 1.5 + 0.5 * len(timings)
    plot_panels(("CPU seconds",), plot, file, width=9, height=height, values="x")
