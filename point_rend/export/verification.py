"""Comparison of a graph, and of its files in their runtimes, with the model on images.

Decisions are compared, not values: the pixels of a mask with a probability of one half or more, and
the class of the largest logit. Rounding flips a few of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from point_rend.export.graph import Graph
from point_rend.runtime.description import INSTANCES, MASK_HEAD, Description
from point_rend.runtime.exported_model import ExportedModel
from point_rend.runtime.sessions import Session

Inputs = Sequence[Mapping[str, Any]]

BATCH = 3  # images that are also compared as one batch


class Bounds(NamedTuple):
    """Largest differences between a graph and its model.

    Attributes:
        boxes: Of the corners of boxes, in pixels of the resized image.
        scores: Of scores.
        pixels: Share of the pixels that are decided otherwise.
    """

    boxes: float
    scores: float
    pixels: float


EAGER = Bounds(boxes=0, scores=0, pixels=1e-5)
RUNTIME = Bounds(boxes=1e-3, scores=1e-3, pixels=1e-4)


class Difference:
    """The differences of a graph from its model, on the images that were added.

    Attributes:
        name: Name of what runs the graph.
        bounds: The largest differences that pass.
        count: Number of instances of the model; of images for a semantic model.
        boxes, scores: Largest differences, 0 without instances.
        others: Number of images with another number, order or classes of instances.
    """

    def __init__(self, name: str, bounds: Bounds) -> None:
        self.name = name
        self.bounds = bounds
        self.count = self.others = 0
        self.boxes = self.scores = 0.0
        self._pixels = self._different = 0

    @property
    def pixels(self) -> float:
        """Share of the pixels that are decided otherwise."""
        return self._different / max(self._pixels, 1)

    @property
    def passes(self) -> bool:
        """Whether all differences are within the bounds."""
        return (
            not self.others
            and self.boxes <= self.bounds.boxes
            and self.scores <= self.bounds.scores
            and self.pixels <= self.bounds.pixels
        )

    def add(self, found: Instances | Tensor, expected: Instances | Tensor) -> None:
        """Compare the results of an image: instances with masks (M, 1, S, S), or logits."""
        if isinstance(found, Tensor) or isinstance(expected, Tensor):
            self.count += 1
            self._decide(found.argmax(0), expected.argmax(0))
            return
        self.count += len(expected)
        if found.pred_classes.tolist() != expected.pred_classes.tolist():
            self.others += 1
            return
        if not len(expected):
            return
        boxes = found.pred_boxes.tensor - expected.pred_boxes.tensor
        self.boxes = max(self.boxes, boxes.abs().max().item())
        self.scores = max(self.scores, (found.scores - expected.scores).abs().max().item())
        self.add_masks(found.pred_masks, expected.pred_masks)

    def add_masks(self, found: Tensor, expected: Tensor) -> None:
        """Compare masks (M, 1, S, S) of probabilities."""
        self._decide(found >= 0.5, expected >= 0.5)

    def _decide(self, found: Tensor, expected: Tensor) -> None:
        self._pixels += expected.numel()
        self._different += int((found != expected).sum())


@torch.no_grad()
def verify(
    model: nn.Module,
    graph: Graph,
    description: Description,
    sessions: Sequence[Session],
    inputs: Iterable[Mapping[str, Any]],
) -> list[Difference]:
    """Compare a graph and its files with the model on images, one by one and in a batch.

    Args:
        model: The model, in evaluation mode on the CPU.
        graph: Its graph, or that of its mask head.
        description: The description of the files.
        sessions: The files in their runtimes.
        inputs: The images as the model takes them, which are read one by one.

    Returns:
        The differences of the graph in eager mode, then of each session.
    """
    eager = Session("the graph", description, "the graph in eager mode", lambda x: graph(*x))
    runs = [(eager, Difference(eager.runtime, EAGER))]
    runs += [(session, Difference(session.runtime, RUNTIME)) for session in sessions]
    for batch in _batches(inputs):
        images = [{"image": x["image"]} for x in batch]
        if description.task == MASK_HEAD:
            arguments, masks = _mask_head(model, graph, images)
            for session, difference in runs:
                difference.count += len(masks)
                difference.add_masks(session(*arguments)["masks"], masks)
            continue
        expected = _results(model, images, description.task)
        for session, difference in runs:
            for found, own in zip(ExportedModel(session).inference(images), expected, strict=True):
                difference.add(found, own)
    return [difference for _, difference in runs]


def format_differences(differences: Sequence[Difference], task: str) -> str:
    """Return differences as a table."""
    semantic = task not in (INSTANCES, MASK_HEAD)
    header = ["", "images" if semantic else "instances"]
    header += ["boxes (px)", "scores", "other order or classes"] if task == INSTANCES else []
    rows = [[*header, "labels changed" if semantic else "mask pixels changed", ""]]
    for x in differences:
        row = [x.name, str(x.count)]
        row += [f"{x.boxes:.1e}", f"{x.scores:.1e}", str(x.others)] if task == INSTANCES else []
        rows.append([*row, f"{x.pixels:.1e}", "equal" if x.passes else "DIFFERS"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def _batches(inputs: Iterable[Mapping[str, Any]]) -> Iterator[Inputs]:
    """Yield each image alone, then the first ones as one batch."""
    together: list[Mapping[str, Any]] = []
    for image in inputs:
        if len(together) < BATCH:
            together.append(image)
        yield [image]
    if len(together) > 1:
        yield together


def _results(model: Any, images: Inputs, task: str) -> list[Instances] | list[Tensor]:
    """Run the model; return its results at the size of its input, masks as probabilities."""
    if task == INSTANCES:
        return model.inference(images, do_postprocess=False)
    return [output["sem_seg"] for output in model(images)]


def _mask_head(model: Any, graph: Graph, images: Inputs) -> tuple[list[Tensor], Tensor]:
    """Detect instances; return the arguments of the graph of the mask head, and its masks."""
    padded = model.preprocess_image(images)
    features = model.backbone(padded.tensor)
    found = model.inference(images, do_postprocess=False)
    detected = [
        Instances(x.image_size, pred_boxes=Boxes(x.pred_boxes.tensor), pred_classes=x.pred_classes)
        for x in found
    ]
    masks = [x.pred_masks for x in model.roi_heads.mask_head(features, detected)]
    image = [torch.full_like(x.pred_classes, number) for number, x in enumerate(found)]
    arguments = {
        **features,
        "boxes": torch.cat([x.pred_boxes.tensor for x in found]),
        "classes": torch.cat([x.pred_classes for x in found]),
        "image": torch.cat(image),
    }
    return [arguments[name] for name in graph.input_names], torch.cat(masks)
