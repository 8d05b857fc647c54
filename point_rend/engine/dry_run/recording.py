"""Records of the first steps: batches, what was done to their images, and training points.

Shape letters: N boxes or images, P points.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from detectron2.data.transforms import NoOpTransform, TransformList
from detectron2.structures import Instances, pairwise_iou
from fvcore.transforms.transform import Transform
from torch import Tensor, nn

from point_rend.data.loader.loaders import TrainLoader

TRANSFORMS = "transforms"  # key of a sample in a dry run
METHOD = "sample_training_points"  # of the heads that train on points
SIMPLE = {
    "HFlipTransform": "flipped left to right",
    "VFlipTransform": "flipped upside down",
}


class Points(NamedTuple):
    """Training points of one image.

    Attributes:
        coords: (P, 2) x, y in pixels of the image.
        labels: (P,); of objects 0 to 1, of labels the class; negative ones are ignored.
        boxes: Number of boxes to which they belong; None if they are those of a label map.
    """

    coords: Tensor
    labels: Tensor
    boxes: int | None


class Record:
    """The first batches of a training, and their training points.

    Args:
        count: Number of batches to keep.

    Attributes:
        batches: The batches, lists of samples.
        points: For each call of the model, the points of its images by their heads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.batches: list[Any] = []
        self.points: list[list[list[Points]]] = []

    def passing(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches as they are, and keep the first ones."""
        for batch in batches:
            if len(self.batches) < self.count:
                self.batches.append(batch)
            yield batch

    @contextlib.contextmanager
    def of_points(self, model: nn.Module) -> Iterator[None]:
        """Keep the training points of a model's first calls within a block."""
        heads = [x for x in model.modules() if callable(getattr(x, METHOD, None))]
        hook = model.register_forward_pre_hook(self._begin_call)
        for head in heads:
            setattr(head, METHOD, self._recorded(getattr(head, METHOD)))
        try:
            yield
        finally:
            hook.remove()
            for head in heads:
                delattr(head, METHOD)

    def _begin_call(self, _model: nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(self.points) <= self.count:
            self.points.append([[] for _ in inputs[0]] if len(self.points) < self.count else [])

    def _recorded(self, sample: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(what: Any, *arguments: Any) -> Any:
            coords, labels = sample(what, *arguments)
            if len(self.points) <= self.count and self.points[-1]:
                find = of_labels if isinstance(what, Tensor) else of_boxes
                found = find(what, coords.detach(), labels)
                for image, points in zip(self.points[-1], found, strict=False):
                    image.append(points)
            return coords, labels

        return recorded


@torch.no_grad()
def of_labels(targets: Tensor, coords: Tensor, labels: Tensor) -> list[Points]:
    """Return the points of each image of a batch of label maps.

    Args:
        targets: (N, height, width) labels of the padded images.
        coords: (N, P, 2) in [0, 1]² of the padded images.
        labels: (N, P).
    """
    size = coords.new_tensor(targets.shape[-2:][::-1])
    return [
        Points((own * size).cpu(), values.cpu(), boxes=None)
        for own, values in zip(coords, labels, strict=True)
    ]


@torch.no_grad()
def of_boxes(instances: list[Instances], coords: Tensor, labels: Tensor) -> list[Points]:
    """Return the points of each image, for each object those of the box that fits it best.

    A head trains on the points of many boxes for each object, too many to be seen.

    Args:
        instances: Per image its foreground proposals; N in total.
        coords: (N, P, 2) in [0, 1]² of the boxes.
        labels: (N, P) in [0, 1], −1 to ignore.
    """
    sizes = [len(x) for x in instances]
    found = []
    for own, places, values in zip(
        instances, coords.split(sizes), labels.split(sizes), strict=True
    ):
        boxes = own.proposal_boxes.tensor
        near, far = boxes[:, None, :2], boxes[:, None, 2:]
        best = list(range(len(own)))
        if own.has("gt_boxes") and len(own):
            objects, number = own.gt_boxes.tensor.unique(dim=0, return_inverse=True)
            fit = pairwise_iou(own.proposal_boxes, own.gt_boxes).diagonal()
            best = [int(torch.where(number == k, fit, -1.0).argmax()) for k in range(len(objects))]
        in_image = near + places.to(boxes) * (far - near)
        found.append(
            Points(in_image[best].flatten(0, 1).cpu(), values[best].flatten().cpu(), len(best))
        )
    return found


class _Describing:
    """A mapper that notes in each sample what its augmentations did to the image."""

    def __init__(self, mapper: Any) -> None:
        self._obj = getattr(mapper, "_obj", mapper)  # as Detectron2's PicklableWrapper

    def __call__(self, record: Any) -> Any:
        inner = self._obj
        augment = getattr(inner, "augmentations", None)
        if not callable(augment):
            return inner(record)
        drawn: list[Transform] = []

        def augmenting(image: Any) -> Any:
            drawn.append(augment(image))
            return drawn[-1]

        inner.augmentations = augmenting
        try:
            sample = inner(record)
        finally:
            inner.augmentations = augment
        if isinstance(sample, dict):
            sample[TRANSFORMS] = [words for one in drawn for words in describe(one)]
        return sample


def describe_transforms(loader: Any) -> None:
    """Let the samples of a loader of ours say what was done to their images.

    Their mapper must keep its augmentations as Detectron2's does, else they say nothing.
    """
    if isinstance(loader, TrainLoader):
        loader.mapper = _Describing(loader.mapper)


def describe(transform: Any) -> list[str]:
    """Describe a transform in words, one text for each step; nothing for one without effect."""
    if isinstance(transform, TransformList):
        return [words for one in transform.transforms for words in describe(one)]
    name = type(transform).__name__
    if type(transform) is NoOpTransform:
        return []
    if name in SIMPLE:
        return [SIMPLE[name]]
    if hasattr(transform, "new_h"):
        if (transform.new_h, transform.new_w) == (transform.h, transform.w):
            return []
        return [f"resized to {transform.new_w}×{transform.new_h}"]
    if name == "CropTransform":
        # Large-scale jitter crops to more than a small image has, and pads by nothing.
        sizes = [(transform.w, transform.orig_w), (transform.h, transform.orig_h)]
        width, height = (min(size, before or size) for size, before in sizes)
        if (width, height) == (transform.orig_w, transform.orig_h):
            return []
        return [f"cropped to {width}×{height}"]
    if name == "PadTransform":
        sides = (transform.x0, transform.y0, transform.x1, transform.y1)
        return ["padded"] if any(sides) else []
    if name == "RotationTransform":
        return [f"rotated by {transform.angle:.0f}°"]
    if "Color" in name or name == "BlendTransform":
        return ["colors changed"]
    words = "".join(f" {x.lower()}" if x.isupper() else x for x in name.removesuffix("Transform"))
    return [words.strip()]
