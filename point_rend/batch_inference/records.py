"""Records: the results of one image, as JSON and Parquet hold them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from pycocotools import mask as mask_util

from point_rend.batch_inference.items import Item
from point_rend.inference.outputs import CocoFormat
from point_rend.utils.errors import LONGEST_LINE, shortened
from point_rend.visualization.predictions import Output, labels_of

Record = dict[str, Any]
INSTANCES, SEM_SEG = "instances", "sem_seg"


class RecordFormat:
    """The record of an image, a dictionary of plain Python values.

    - `image_id`, `file_name`, `uri`: those of the manifest.
    - `height`, `width`: in pixels; None for an image that could not be read.
    - `annotations`: for a model that finds instances, a list of COCO's records: `bbox` (x, y,
      width, height), `category_id` as in the data set, `score`, `segmentation` (RLE), `area` in
      pixels and `iscrowd`; None for other models and unread images.
    - `segments`: for a semantic model, a list with `category_id`, `segmentation` (RLE) and `area`
      of each class in the image; None for other models and unread images.
    - `error`: None, or the reason in one line why the image has no results.

    Args:
        metadata: The classes.

    Attributes:
        coco: The format of annotations.
        stuff_categories: Ids and names of the classes of `segments`.
    """

    def __init__(self, metadata: Metadata) -> None:
        self.coco = CocoFormat(metadata)
        to_index: Mapping[int, int] = metadata.get("stuff_dataset_id_to_contiguous_id") or {}
        self._stuff_ids = {index: identity for identity, index in to_index.items()}
        names = metadata.get("stuff_classes") or []
        self.stuff_categories = [{"id": self._stuff_id(k), "name": x} for k, x in enumerate(names)]

    def of_output(self, item: Item, output: Output) -> Record:
        """Return the record of a segmented image.

        Args:
            item: The image.
            output: The model's result for it.
        """
        record = _empty(item)
        if INSTANCES in output:
            record["height"], record["width"] = output[INSTANCES].image_size
            found = self.coco.annotations_of(output)
            record["annotations"] = [{k: x[k] for k in x if k != "image_id"} for x in found]
        if SEM_SEG in output:
            record["height"], record["width"] = map(int, output[SEM_SEG].shape[-2:])
            record["segments"] = self._segments_of(output)
        return record

    def categories(self, outputs: frozenset[str]) -> list[dict[str, Any]]:
        """Return ids and names of the classes of a model with these outputs, for a COCO file."""
        return self.coco.categories if INSTANCES in outputs else self.stuff_categories

    def _segments_of(self, output: Output) -> list[dict[str, Any]]:
        labels = labels_of(output)
        segments = []
        for index in np.unique(labels).tolist():
            mask = mask_util.encode(np.asfortranarray(labels == index, dtype=np.uint8))
            segments.append(
                {
                    "category_id": self._stuff_id(index),
                    "segmentation": mask | {"counts": mask["counts"].decode()},
                    "area": float(mask_util.area(mask)),
                }
            )
        return segments

    def _stuff_id(self, index: int) -> int:
        return self._stuff_ids.get(index, index)


def failure(item: Item, error: object) -> Record:
    """Return the record of an image that could not be read."""
    line = shortened(" ".join(str(error).split()), LONGEST_LINE)
    return _empty(item) | {"error": line or type(error).__name__}


def _empty(item: Item) -> Record:
    return {
        "image_id": item.id,
        "file_name": item.name,
        "uri": item.uri,
        "height": None,
        "width": None,
        "annotations": None,
        "segments": None,
        "error": None,
    }
