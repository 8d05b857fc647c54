"""A tiny data set in COCO's panoptic format: the kinds of `tiny_datasets` before sky and ground."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.data.datasets import register_coco_panoptic_separated
from pycocotools.coco import COCO

from tests.tiny_datasets import HEIGHT, KINDS, WIDTH, write_coco

THINGS = {3: 0, 7: 1, 12: 2}
STUFF = {0: 0, 100: 1, 200: 2}
STUFF_CLASSES = ["things", "sky", "ground"]
VOID_COLUMNS = 4


class PanopticSet(NamedTuple):
    """Paths of a written set, and the ids and the list of segments of each image."""

    name: str
    json_file: Path
    folder: Path
    truth: list[tuple[np.ndarray, list[dict[str, Any]]]]


def write_panoptic(folder: Path, name: str = "tiny", *, images: int = 2) -> PanopticSet:
    """Write and register a set as `NAME_separated`."""
    coco = write_coco(folder / "coco", images=images, suffix=".jpg")
    api = COCO(coco.json_file)
    panoptic, semantic = folder / "panoptic", folder / "semantic"
    panoptic.mkdir()
    semantic.mkdir()
    annotations, truth = [], []
    for image_id, image in api.imgs.items():
        labels = np.full((HEIGHT, WIDTH), 1, np.uint8)
        labels[HEIGHT // 2 :] = 2
        ids = np.where(labels == 1, 70_000, 300)
        for annotation in api.imgToAnns[image_id]:
            mask = api.annToMask(annotation).astype(bool)
            labels[mask], ids[mask] = 0, 1000 + annotation["id"]
        labels[:, :VOID_COLUMNS], ids[:, :VOID_COLUMNS] = 255, 0
        category = {1000 + x["id"]: x["category_id"] for x in api.imgToAnns[image_id]}
        category |= {70_000: 100, 300: 200}
        segments = [
            {"id": int(x), "category_id": category[x], "iscrowd": 0, "area": int((ids == x).sum())}
            for x in np.unique(ids).tolist()
            if x
        ]
        stem = Path(image["file_name"]).stem
        colors = np.stack([ids // 65536, ids // 256 % 256, ids % 256], axis=2)
        cv2.imwrite(str(panoptic / f"{stem}.png"), colors.astype(np.uint8))
        cv2.imwrite(str(semantic / f"{stem}.png"), labels)
        annotations.append(
            {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments}
        )
        truth.append((ids, segments))
    categories = [
        {"id": identity, "name": KINDS[number], "isthing": 1} for identity, number in THINGS.items()
    ]
    categories += [
        {"id": identity, "name": STUFF_CLASSES[number], "isthing": 0}
        for identity, number in STUFF.items()
        if number
    ]
    json_file = folder / "panoptic.json"
    content = {"images": [*api.imgs.values()], "annotations": annotations, "categories": categories}
    json_file.write_text(json.dumps(content))
    metadata = {
        "thing_classes": [*KINDS[:3]],
        "thing_dataset_id_to_contiguous_id": THINGS,
        "stuff_classes": STUFF_CLASSES,
        "stuff_dataset_id_to_contiguous_id": STUFF,
    }
    register_coco_panoptic_separated(
        name,
        metadata,
        coco.image_root,
        str(panoptic),
        str(json_file),
        str(semantic),
        coco.json_file,
    )
    return PanopticSet(f"{name}_separated", json_file, panoptic, truth)
