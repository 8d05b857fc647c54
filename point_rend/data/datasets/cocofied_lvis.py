"""LVIS annotations of COCO's 80 classes, on which AP* is measured.

LVIS names its categories by WordNet synsets and synonyms. A COCO class is the LVIS category with
its name among the synonyms; `SYNSETS` has the other ones. The result is the mapping published by
the authors of LVIS. LVIS has no hot dog, and v0.5 no oven.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis import get_lvis_instances_meta

from point_rend.data.datasets.coco import read_coco
from point_rend.utils.files import write_text
from point_rend.utils.json_files import shown

COCO_CLASSES = {x["id"]: x["name"] for x in COCO_CATEGORIES if x["isthing"]}

# Classes with another name in LVIS, or with an explanation in it, as in car_(automobile).
SYNSETS = {
    "bus": "bus.n.01",
    "car": "car.n.01",
    "cell phone": "cellular_telephone.n.01",
    "hair drier": "hand_blower.n.01",
    "keyboard": "computer_keyboard.n.01",
    "laptop": "laptop.n.01",
    "microwave": "microwave.n.02",
    "mouse": "mouse.n.04",
    "orange": "orange.n.01",
    "potted plant": "pot.n.04",
    "remote": "remote_control.n.01",
    "skis": "ski.n.01",
    "sports ball": "ball.n.06",
    "tie": "necktie.n.01",
    "train": "train.n.01",
    "wine glass": "wineglass.n.01",
}

# Sets that are prepared, by the file that is published. Detectron2 registers those of v0.5.
COCOFIED = {
    "lvis_v0.5_val": "lvis_v0.5_val_cocofied",
    "lvis_v1_val": "lvis_v1_val_cocofied",
}
SPLIT = "val2017"  # of COCO; models have seen the images of the others

# Fields that LVIS's records have in addition to COCO's.
LVIS_FIELDS: dict[str, dict[str, type]] = {
    "categories": {"synset": str, "synonyms": list, "frequency": str},
    "images": {"neg_category_ids": list, "not_exhaustive_category_ids": list},
}
FREQUENCIES = ("r", "c", "f")


class Cocofied(NamedTuple):
    """LVIS annotations of COCO's classes.

    Attributes:
        content: In LVIS's format, with COCO's category ids and names.
        missing: COCO's classes that LVIS lacks.
        left_out: Number of images that are not of COCO's val2017.
    """

    content: dict[str, Any]
    missing: tuple[str, ...]
    left_out: int


def read_lvis(json_file: str) -> dict[str, Any]:
    """Read a file in LVIS's format, with all the fields that LVIS's evaluation needs.

    Raises:
        FileNotFoundError: As `read_coco`.
        ValueError: As `read_coco`, or if a field is missing.
    """
    content = read_coco(json_file, image_name="coco_url")
    for kind, fields in LVIS_FIELDS.items():
        for record in content[kind]:
            for field, type_ in fields.items():
                value = record.get(field)
                is_list = isinstance(value, list) and set(map(type, value)) <= {int, str}
                if not (is_list if type_ is list else isinstance(value, type_)):
                    raise ValueError(
                        f"{json_file} is not in LVIS's format: of the {kind} the one with id "
                        f"{record['id']!r} has no valid {field!r}"
                    )
    for category in content["categories"]:
        if category["frequency"] not in FREQUENCIES:
            raise ValueError(
                f"{json_file}: category {category['id']!r} has the frequency "
                f"{shown(category['frequency'])}, expected one of {', '.join(FREQUENCIES)}"
            )
    return content


def category_mapping(categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Find COCO's classes among the categories of LVIS.

    Args:
        categories: Of an LVIS file, each with "id", "synset" and "synonyms".

    Returns:
        COCO's category ids by those of LVIS.

    Raises:
        ValueError: If several categories would be one class.
    """
    mapping: dict[int, int] = {}
    for coco_id, name in COCO_CLASSES.items():
        found = [
            category["id"]
            for category in categories
            if (
                category["synset"] == SYNSETS[name]
                if name in SYNSETS
                else name.replace(" ", "_") in category["synonyms"]
            )
        ]
        if len(found) > 1:
            raise ValueError(f"COCO's {name!r} could be any of the LVIS categories {found}")
        mapping |= dict.fromkeys(found, coco_id)
    return mapping


def cocofy(json_file: str) -> Cocofied:
    """Restrict LVIS annotations to COCO's classes and to images that COCO has not trained on.

    Args:
        json_file: An annotation file of LVIS v0.5 or v1.

    Returns:
        Its annotations of COCO's classes on the images of val2017. The lists of categories that are
        absent from an image or not annotated exhaustively are kept.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is not in LVIS's format, or shares no class or no image with COCO.
    """
    content = read_lvis(json_file)
    mapping = category_mapping(content["categories"])
    if not mapping:
        raise ValueError(f"{json_file}: none of the categories is one of COCO's classes")

    images = [
        image for image in content["images"] if image["coco_url"].split("/")[-2:-1] == [SPLIT]
    ]
    if not images:
        raise ValueError(f"{json_file}: none of the images is of COCO's {SPLIT}")
    kept = {image["id"] for image in images}
    cocofied = {
        **content,
        "images": [_with_coco_ids(image, mapping) for image in images],
        "annotations": [
            annotation | {"category_id": mapping[annotation["category_id"]]}
            for annotation in content["annotations"]
            if annotation["image_id"] in kept and annotation["category_id"] in mapping
        ],
        "categories": sorted(
            (
                category
                | {"id": mapping[category["id"]], "name": COCO_CLASSES[mapping[category["id"]]]}
                for category in content["categories"]
                if category["id"] in mapping
            ),
            key=lambda category: category["id"],
        ),
    }
    missing = tuple(name for i, name in COCO_CLASSES.items() if i not in mapping.values())
    return Cocofied(cocofied, missing, len(content["images"]) - len(images))


def _with_coco_ids(image: Mapping[str, Any], mapping: Mapping[int, int]) -> dict[str, Any]:
    lists = {
        field: [mapping[category] for category in image[field] if category in mapping]
        for field in ("neg_category_ids", "not_exhaustive_category_ids")
    }
    return {**image, **lists}


def find_lvis(root: Path) -> list[tuple[Path, Path]]:
    """List the annotation files of LVIS in a folder, each with its cocofied file."""
    files = [(root / f"{name}.json", root / f"{new}.json") for name, new in COCOFIED.items()]
    return [(source, target) for source, target in files if source.is_file()]


def write_cocofied(source: Path, target: Path) -> Cocofied:
    """Write the annotations of COCO's classes and return them; see :func:`cocofy`."""
    cocofied = cocofy(str(source))
    write_text(target, json.dumps(cocofied.content))
    return cocofied


def register_cocofied_lvis() -> None:
    """Register the sets that Detectron2 lacks, in the same folder; repetition has no effect."""
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    for name in COCOFIED.values():
        if name not in DatasetCatalog:
            register_lvis_instances(
                name,
                get_lvis_instances_meta(name),
                os.path.join(root, "lvis", f"{name}.json"),
                os.path.join(root, "coco/"),
            )
