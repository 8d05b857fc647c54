"""Cityscapes for a Panoptic FPN: instances of things, and label maps of stuff.

Detectron2 registers panoptic labels of Cityscapes, but no set that has instances as well. Here each
image has those of Detectron2's `load_cityscapes_instances`, and a label map with one class for all
things, as in COCO's panoptic sets with the suffix `_separated`.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.data.datasets.cityscapes import load_cityscapes_instances

from point_rend.data.datasets.coco import read_panoptic
from point_rend.data.datasets.panoptic import IGNORED, THINGS

SPLITS = ("train", "val")
IMAGE_ENDING = "_leftImg8bit.png"
TOOL = "python -m cityscapesscripts.preparation.createPanopticImgs --dataset-folder"


class Split(NamedTuple):
    """Paths of a split of Cityscapes.

    Attributes:
        image_dir: Folder of the cities with images.
        gt_dir: Folder of the cities with annotations.
        panoptic_json: File that lists the segments.
        panoptic_root: Folder of the panoptic labels.
        sem_seg_root: Folder of the label maps of stuff.
    """

    image_dir: str
    gt_dir: str
    panoptic_json: str
    panoptic_root: str
    sem_seg_root: str

    @classmethod
    def of(cls, root: str, name: str) -> "Split":
        """Return the paths of a split, in the folders that Cityscapes' own tools write.

        Args:
            root: Folder of leftImg8bit and gtFine.
            name: train or val.
        """
        labels = os.path.join(root, "gtFine", f"cityscapes_panoptic_{name}")
        return cls(
            os.path.join(root, "leftImg8bit", name),
            os.path.join(root, "gtFine", name),
            f"{labels}.json",
            labels,
            os.path.join(root, "gtFine", f"cityscapes_panoptic_stuff_{name}"),
        )


def register_cityscapes_panoptic() -> None:
    """Register both splits in Detectron2's folder of data sets; again has no effect."""
    datasets = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    root = os.path.join(datasets, "cityscapes")
    for split in SPLITS:
        name = f"cityscapes_fine_panoptic_separated_{split}"
        if name not in DatasetCatalog:
            paths = Split.of(root, split)
            DatasetCatalog.register(name, lambda paths=paths: load_cityscapes_panoptic(paths))
            MetadataCatalog.get(name).set(
                evaluator_type="cityscapes_panoptic_separated",
                ignore_label=IGNORED,
                preparation=f"{TOOL} {os.path.join(root, 'gtFine')}",
                **paths._asdict(),
                **class_metadata(),
            )


def class_metadata() -> dict[str, Any]:
    """Return the metadata of 8 classes of things, and of 11 of stuff after that of all things."""
    things = [x for x in CITYSCAPES_CATEGORIES if x["isthing"]]
    stuff = [x for x in CITYSCAPES_CATEGORIES if not x["isthing"]]
    return {
        "thing_classes": [x["name"] for x in things],
        "thing_colors": [x["color"] for x in things],
        "thing_dataset_id_to_contiguous_id": {x["id"]: k for k, x in enumerate(things)},
        "stuff_classes": ["things", *(x["name"] for x in stuff)],
        "stuff_colors": [(82, 18, 128), *(x["color"] for x in stuff)],
        "stuff_dataset_id_to_contiguous_id": {THINGS: THINGS}
        | {x["id"]: k for k, x in enumerate(stuff, start=1)},
    }


def load_cityscapes_panoptic(split: Split) -> list[dict[str, Any]]:
    """Load a split.

    Returns:
        Records in Detectron2's format, each with "annotations" and "sem_seg_file_name"; the
        "image_id" is that of the panoptic labels.

    Raises:
        ValueError: If an image has no panoptic labels, or if their list cannot be used.
    """
    content = read_panoptic(split.panoptic_json)
    files = {x["image_id"]: x["file_name"] for x in content["annotations"]}
    records = load_cityscapes_instances(split.image_dir, split.gt_dir)
    for record in records:
        image_id = os.path.basename(record["file_name"]).removesuffix(IMAGE_ENDING)
        if image_id not in files:
            raise ValueError(f"{split.panoptic_json} has no segments of image {image_id}")
        label_map = Path(split.sem_seg_root, files[image_id]).with_suffix(".png")
        record |= {"image_id": image_id, "sem_seg_file_name": str(label_map)}
    return records
