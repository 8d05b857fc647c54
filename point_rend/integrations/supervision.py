"""Conversion between Detectron2's `Instances` and `supervision.Detections`; masks for the latter.

Needs the package supervision: `pip install "point_rend[supervision]"`. It reads the results of many
detectors, such as YOLO and RF-DETR; :func:`refine` renders masks for their boxes.

Fields, for N objects in an image of H × W pixels:

| `Instances` | `Detections` | |
|---|---|---|
| `pred_boxes` | `xyxy` | (N, 4) x0, y0, x1, y1 in pixels |
| `scores` | `confidence` | (N,) |
| `pred_classes` | `class_id` | (N,); names are in `data["class_name"]` |
| `pred_masks` | `mask` | (N, H, W) bool, or a form that takes less memory |
| `tracker_ids` | `tracker_id` | (N,) |
| any other | `data` of the same name | |
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from torch import Tensor

from point_rend.data.datasets.class_names import SHOWN, SHOWN_CHARACTERS, summarize
from point_rend.inference.given_boxes import is_class_agnostic
from point_rend.inference.images import ImageLike
from point_rend.inference.predictor import Predictor
from point_rend.refinement.class_map import ClassMap
from point_rend.rendering.box_masks import BoxMasks, crops, rle_of_crop
from point_rend.utils.errors import shorten
from point_rend.utils.imports import not_installed

if TYPE_CHECKING:
    from supervision import Detections

CLASS_NAME = "class_name"  # of supervision's `data`
FIELDS = ("pred_boxes", "scores", "pred_classes", "pred_masks", "tracker_ids")

# Names or ids of a detector's classes to names or indices of the model's.
ClassMapping = Mapping[Any, str | int]


def to_detections(
    output: Instances | Mapping[str, Any],
    metadata: Metadata | None = None,
    *,
    compact: bool = False,
) -> "Detections":
    """Convert the detected objects of an image.

    Args:
        output: Instances with `pred_boxes`, or a model's result with "instances". Masks may be a
            tensor, Detectron2's `BitMasks` or :class:`~point_rend.rendering.box_masks.BoxMasks`.
        metadata: The classes, such as `predictor.metadata`; their names are written into
            `data["class_name"]`.
        compact: Whether the masks become supervision's `CompactMask`, which takes the memory of
            their outlines, in place of an array (N, H, W).

    Returns:
        The objects in the same order. What the instances lack is None.

    Raises:
        ValueError: If there are no instances or no boxes, or supervision is not installed or has no
            compact masks.
    """
    sv = _import_supervision()
    instances = output.get("instances") if isinstance(output, Mapping) else output
    if instances is None or not instances.has("pred_boxes"):
        known = output if isinstance(output, Mapping) else output.get_fields()
        raise ValueError(
            "expected instances with pred_boxes, or a result that has such, got "
            f"{', '.join(map(str, known)) or 'no fields'}"
        )
    fields = dict(instances.get_fields())
    boxes = _array(fields["pred_boxes"])
    classes = _array(fields["pred_classes"]) if "pred_classes" in fields else None
    data = {name: _data(value) for name, value in fields.items() if name not in FIELDS}
    names = metadata.get("thing_classes") if metadata is not None else None
    if names is not None and classes is not None:
        data[CLASS_NAME] = np.array([names[k] for k in classes], dtype=str)
    masks = fields.get("pred_masks")
    return sv.Detections(
        xyxy=boxes.reshape(-1, 4),
        mask=None if masks is None else _masks(masks, instances.image_size, compact=compact),
        confidence=_array(fields["scores"]) if "scores" in fields else None,
        class_id=None if classes is None else classes.astype(int),
        tracker_id=_array(fields["tracker_ids"]) if "tracker_ids" in fields else None,
        data=data,
    )


def to_instances(
    detections: "Detections",
    image_size: tuple[int, int] | None = None,
    metadata: Metadata | None = None,
) -> Instances:
    """Convert detections of any detector.

    Args:
        detections: The detections.
        image_size: H and W; by default those of the masks.
        metadata: Classes of a model or a data set, such as `predictor.metadata`. With them,
            `pred_classes` are their indices, found by the names in `data["class_name"]`. Otherwise
            they are the detector's ids.

    Returns:
        Instances on the CPU with the fields that the detections have. What is about all of them
        together has no place there: their `metadata`, and `data` of another length.

    Raises:
        ValueError: If the size is neither given nor known from masks, or is not theirs; or if
            `metadata` lacks a class of the detections.
    """
    mask = None if detections.mask is None else np.asarray(detections.mask)
    of_masks = None if mask is None else tuple(mask.shape[1:])
    if image_size is None and of_masks is None:
        raise ValueError("image_size: expected H and W, as the detections have no masks")
    if image_size is not None and of_masks not in (None, tuple(image_size)):
        raise ValueError(
            f"image_size: expected {of_masks}, the size of the masks, got {tuple(image_size)}"
        )
    height, width = image_size or of_masks  # type: ignore[misc]
    instances = Instances((int(height), int(width)))
    instances.pred_boxes = Boxes(torch.as_tensor(np.array(detections.xyxy, dtype=np.float32)))
    if detections.confidence is not None:
        instances.scores = torch.as_tensor(np.array(detections.confidence))
    ids = detections.class_id
    if metadata is not None:
        ids = _indices(detections, metadata.thing_classes)
    if ids is not None:
        instances.pred_classes = torch.as_tensor(np.array(ids, dtype=np.int64))
    if mask is not None:
        instances.pred_masks = torch.from_numpy(np.array(mask, dtype=bool))
    if detections.tracker_id is not None:
        instances.tracker_ids = torch.as_tensor(np.array(detections.tracker_id, dtype=np.int64))
    for name, value in detections.data.items():
        if name in FIELDS:
            raise ValueError(f"data[{name!r}]: this name is taken by a field of Detectron2")
        if isinstance(value, list | np.ndarray) and len(value) == len(detections):
            instances.set(name, _data(value))
    return instances


def refine(
    predictor: Predictor,
    image: ImageLike,
    detections: "Detections",
    class_map: ClassMapping | None = None,
    *,
    compact: bool | None = None,
) -> "Detections":
    """Render a mask for each box of any detector.

        detections = sv.Detections.from_ultralytics(yolo(image)[0])
        detections = refine(predictor, image, detections)

    Args:
        predictor: The model.
        image: As the predictor takes it: an array (H, W, 3) in BGR order, a PIL image or a path.
        detections: Boxes in pixels of the image.
        class_map: Names or ids of the detector's classes, and for each the name or index of the
            model's class. Without an entry, the name in `data["class_name"]` counts, up to case,
            spaces, hyphens and underscores. Detections without any class need a model of one class,
            or one with the same mask for all (CLS_AGNOSTIC_MASK), which takes every class.
        compact: Whether the masks are `CompactMask`, as of :func:`to_detections`; by default as the
            masks of `detections` are, or else an array.

    Returns:
        New detections with the same boxes, scores, ids and data, and with new masks.

    Raises:
        ValueError: If a class has no counterpart in the model, or as of
            :meth:`~point_rend.Predictor.masks_for`.
    """
    _import_supervision()
    names = predictor.metadata.thing_classes
    without_classes = detections.class_id is None and CLASS_NAME not in detections.data
    agnostic = is_class_agnostic(predictor.cfg) or (without_classes and len(names) == 1)
    classes = _indices(detections, names, class_map, agnostic=agnostic)
    found = predictor.unpasted().masks_for(image, detections.xyxy, classes)
    if compact is None:
        compact = detections.mask is not None and not isinstance(detections.mask, np.ndarray)
    mask = _masks(found.pred_masks, found.image_size, compact=compact)
    # A copy is not checked: some detectors keep more in `data` than one value per object.
    refined = copy.copy(detections)
    refined.mask, refined.data = mask, dict(detections.data)
    refined.metadata = dict(detections.metadata)
    return refined


def _import_supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise not_installed("supervision", "supervision") from error
    return supervision


def _array(value: Any) -> np.ndarray:
    """Return a tensor, or a structure that holds one, as an array."""
    return getattr(value, "tensor", value).detach().cpu().numpy()


def _data(value: Any) -> Any:
    """Return a field as an array that `Instances` and `Detections` can both index."""
    if isinstance(value, list):
        values = np.array(value) if all(isinstance(x, str) for x in value) else None
        if values is None:
            values = np.empty(len(value), dtype=object)
            values[:] = value
        return values
    return value if isinstance(value, np.ndarray) else _array(value)


def _masks(masks: Any, image_size: tuple[int, int], *, compact: bool) -> Any:
    """Convert masks of any kind to an array (N, H, W) bool, or to supervision's compact masks."""
    if not isinstance(masks, BoxMasks):
        masks = getattr(masks, "tensor", masks).cpu()
    if not compact:
        if isinstance(masks, Tensor):
            return masks.bool().numpy()
        dense = np.zeros(tuple(masks.shape), dtype=bool)
        for mask, crop in zip(dense, crops(masks), strict=True):
            mask[crop.window] = crop.mask
        return dense
    try:
        from supervision.detection.compact_mask import CompactMask
    except ImportError as error:
        raise ValueError("this version of supervision has no compact masks: update it") from error
    rles, windows = [], []
    for crop in crops(masks):
        height, width = crop.mask.shape
        # Both corners are part of a window; an empty mask has one pixel, of background.
        last = (crop.left + max(width, 1) - 1, crop.top + max(height, 1) - 1)
        windows.append((crop.left, crop.top, *last))
        rles.append(rle_of_crop(crop, image_size))
    corners = np.array(windows, dtype=np.float64).reshape(-1, 4)
    return CompactMask.from_coco_rle(rles, corners, image_size)


def _indices(
    detections: "Detections",
    names: Sequence[str],
    class_map: ClassMapping | None = None,
    *,
    agnostic: bool = False,
) -> np.ndarray:
    """Find the class of each detection among the model's.

    Args:
        detections: N detections.
        names: The model's classes.
        class_map: As of :func:`refine`.
        agnostic: Whether any class of the model will do.

    Returns:
        (N,) int64.

    Raises:
        ValueError: If a class has no counterpart.
    """
    mapped = {str(key): _model_class(value, names) for key, value in (class_map or {}).items()}
    # The ids of a detector are known from a map alone: they need not be those of the model's data.
    metadata = Metadata(thing_classes=list(names), thing_dataset_id_to_contiguous_id={})
    known = ClassMap(metadata, mapped, agnostic=agnostic)
    ids = detections.class_id
    of_names = detections.data.get(CLASS_NAME)
    found, lacking = np.zeros(len(detections), dtype=np.int64), {}
    for i in range(len(detections)):
        identity = -1 if ids is None else int(ids[i])
        name = None if of_names is None or of_names[i] is None else str(of_names[i])
        index = known.find((identity, name))
        if index is None:
            lacking[identity if name is None else name] = True
        else:
            found[i] = index
    if lacking:
        raise ValueError(_no_counterpart(list(lacking), names, given=class_map is not None))
    return found


def _model_class(value: str | int, names: Sequence[str]) -> str:
    """Return the name of a class of the model that is given by its name or index."""
    if isinstance(value, str):
        return value
    if not 0 <= value < len(names):
        raise ValueError(
            f"class_map: expected an index from 0 to {len(names) - 1} of the model's classes or a "
            f"name, got {value!r:.100}"
        )
    return names[value]


def _no_counterpart(lacking: Sequence[Any], names: Sequence[str], *, given: bool) -> str:
    model = f"the model's classes are {summarize(names)}"
    if lacking == [-1]:
        return f"the detections have no classes, and {model}"
    shown = ", ".join(shorten(str(value), SHOWN_CHARACTERS) for value in lacking[:SHOWN])
    shown += ", ..." if len(lacking) > SHOWN else ""
    hint = f"pass a class_map, such as {{{lacking[0]!r:.100}: {names[0]!r:.100}}}"
    if given:
        hint = "expected them in class_map, too"
    return f"the detected classes {shown} have no class in the model; {model}: {hint}"
