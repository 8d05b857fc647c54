"""A file in the format of LVIS v1, with all categories and a few annotations."""

import json
from pathlib import Path
from typing import Any

from detectron2.data.datasets import lvis_v1_categories

V1 = lvis_v1_categories.LVIS_CATEGORIES
NAMED = {category["synonyms"][0]: category for category in V1}
HEIGHT, WIDTH = 40, 60


def lvis_image(number: int, split: str, **lists: list[str]) -> dict[str, Any]:
    ids = {field: [NAMED[name]["id"] for name in names] for field, names in lists.items()}
    url = f"http://images.cocodataset.org/{split}/{number:012d}.jpg"
    empty = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    size = {"height": HEIGHT, "width": WIDTH}
    return {"id": number, "coco_url": url, "license": 1} | size | empty | ids


def lvis_annotation(number: int, image_id: int, name: str) -> dict[str, Any]:
    box = [4 * number, 5, 20, 12]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": NAMED[name]["id"],
        "bbox": box,
        "area": 240,
        "segmentation": [
            [box[0], 5, box[0] + 20, 5, box[0] + 20, 17, box[0], 17],
        ],
    }


def write_lvis_v1(folder: Path) -> Path:
    """Write a file like lvis_v1_val.json: all categories, images of val2017 and of train2017."""
    images = [
        lvis_image(7, "val2017", neg_category_ids=["zebra", "aerosol_can", "car_(automobile)"]),
        lvis_image(8, "train2017"),
        lvis_image(9, "val2017", not_exhaustive_category_ids=["book", "button"]),
    ]
    annotations = [
        lvis_annotation(1, 7, "cow"),
        lvis_annotation(2, 7, "button"),
        lvis_annotation(3, 8, "cow"),
        lvis_annotation(4, 9, "wineglass"),
        lvis_annotation(5, 9, "book"),
    ]
    path = folder / "lvis_v1_val.json"
    content = {"info": {"version": "1.0"}, "licenses": [{"id": 1, "name": "free"}]}
    content |= {"images": images, "annotations": annotations, "categories": V1}
    path.write_text(json.dumps(content))
    return path
