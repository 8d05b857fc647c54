"""The description that an exported file carries, for the programs that run it.

An ONNX file holds it as JSON in its metadata, under `KEY`; a `.pt2` or TorchScript file holds the
same text as an extra file of that name.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from typing import Any, Self

from point_rend.utils.json_files import parse_json, shown
from point_rend.utils.pixel_format import DEPTHS, EIGHT_BITS, MOST_BANDS

KEY = "point_rend"
FORMAT = 1  # counts the versions of the graphs' inputs and outputs

INSTANCES, SEM_SEG, MASK_HEAD = "instances", "sem_seg", "mask_head"
TASKS = (INSTANCES, SEM_SEG, MASK_HEAD)
IMAGE_FORMATS = ("BGR", "RGB", "L")

MOST = 1 << 20  # of any number in a description
_BOUNDS = {"divisor": (1, 1 << 10), "max_side": (1, MOST), "max_batch": (1, MOST)}
_BOUNDS |= {"channels": (1, MOST_BANDS), "bits": (min(DEPTHS), max(DEPTHS))}
_BOUNDS |= dict.fromkeys(("score_threshold", "nms_threshold"), (0, 1))
_ITEMS: dict[str, Callable[[Any], bool]] = {
    "classes": lambda name: isinstance(name, str),
    "class_ids": lambda number: type(number) is int and 0 <= number <= MOST,
    "class_colors": lambda color: len(color) == 3 and all(x in range(256) for x in color),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """An exported model and the images that it expects.

    Attributes:
        task: "instances", "sem_seg", or "mask_head" for the mask head alone.
        version: Version of this package that has written the file.
        classes: Names of the classes, in the order of the indices; none if they are unknown.
        class_ids: Ids of the classes in their data set, such as COCO's; none if they are unknown.
        class_colors: Their colors, RGB from 0 to 255; none if they are unknown.
        image_format: Order of the colors, "BGR" or "RGB", or "L" for gray, as INPUT.FORMAT; values
            are 0 to 255. It has no meaning for another number of channels than its own.
        channels: Number of channels.
        bits: Bits of the integers in the files of images, as INPUT.BITS; the largest one is 255.
        min_size, max_size: Sides to which images are resized, as INPUT.MIN_SIZE_TEST and
            INPUT.MAX_SIZE_TEST; no resizing if `min_size` is 0.
        divisor: Height and width of a batch are multiples of this number.
        max_side: Longest side of a batch that the graph was exported for.
        max_batch: Largest number of images of a batch.
        score_threshold: Lowest score of an instance.
        nms_threshold: Highest IoU of two boxes of one class.
        detections_per_image: Largest number of instances of an image.
        mask_side: Side of the rendered masks.
        precision: "float32", "float16" or "int8", of the backbone and the box head.
        weights_sha256: Hash of the checkpoint, in hexadecimal digits.
        config: The complete config, as YAML.
        format: Version of the inputs and outputs.
    """

    task: str
    version: str
    classes: tuple[str, ...]
    image_format: str
    min_size: int
    max_size: int
    divisor: int
    max_side: int
    max_batch: int
    score_threshold: float = 0.0
    nms_threshold: float = 1.0
    detections_per_image: int = 0
    mask_side: int = 0
    class_ids: tuple[int, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = ()
    precision: str = "float32"
    channels: int = 3
    bits: int = EIGHT_BITS
    weights_sha256: str = ""
    config: str = ""
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the description as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | None, path: str) -> Self:
        """Read a description.

        Args:
            text: JSON, as of :meth:`to_json`; None if the file has none.
            path: The file, for messages.

        Raises:
            ValueError: If the file was not written by `pointrend export`, or by a later version.
        """
        fields: Any = None
        with contextlib.suppress(ValueError):
            fields = parse_json((text or "null").encode(), path)
        if not isinstance(fields, dict) or fields.get("task") not in TASKS:
            raise ValueError(f"{path} is not a model written by `pointrend export`")
        if fields.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {fields.get('format')} of version {fields.get('version')}; "
                f"expected {FORMAT}: export the model again"
            )
        try:
            fields["classes"] = _listed(fields["classes"])
            fields["class_ids"] = _listed(fields.get("class_ids", []))
            fields["class_colors"] = tuple(tuple(x) for x in fields.get("class_colors", ()))
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} has a damaged description ({error})") from error

    def __post_init__(self) -> None:
        """Refuse values that no model has.

        Raises:
            TypeError: If a field is of another type or beyond its bounds.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least, most = _BOUNDS.get(field.name, (0, MOST))
            if field.name in _ITEMS:
                sound = isinstance(value, tuple) and all(map(_ITEMS[field.name], value))
                sound = sound and len(value) in (0, len(self.classes))
            elif field.type is str:
                sound = isinstance(value, str)
            else:
                kinds = (int, float) if field.type is float else int
                sound = isinstance(value, kinds) and not isinstance(value, bool)
                sound = sound and least <= value <= most
            if not sound:
                raise TypeError(f"its {field.name} is {shown(value)}")
        if self.image_format not in IMAGE_FORMATS:
            raise TypeError(f"its image_format is {shown(self.image_format)}")


def _listed(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{shown(value)} is no list")
    return tuple(value)
