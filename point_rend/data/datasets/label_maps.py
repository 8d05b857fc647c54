"""Data sets for semantic segmentation: folders of label maps and their registration.

A label map is a grayscale PNG file of the size of its image; each value is the index of a class, or
the value of ignored pixels.
"""

import logging
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from point_rend.data.datasets.class_files import read_class_names
from point_rend.utils.bands import ARRAY_SUFFIX
from point_rend.utils.pictures import IMAGE_SUFFIXES, is_stray_file

logger = logging.getLogger(__name__)
IGNORE_LABEL = 255


def register_sem_seg(name: str, image_root: str, label_root: str, classes: str) -> int:
    """Register a folder of images and one of label maps; registering them again has no effect.

    Args:
        name: Name for DATASETS.TRAIN and DATASETS.TEST.
        image_root: Folder of the images, with its subfolders.
        label_root: Folder of the label maps, named like their images, with the suffix .png; 255 is
            ignored.
        classes: A text file with one class name per line, or the names with commas between them.

    Returns:
        Number of classes.

    Raises:
        FileNotFoundError: If a folder, or the file of the class names, does not exist.
        ValueError: If the class names cannot be used, if two images share a name, if there is no
            image, or if the name belongs to another set.
    """
    class_names = read_class_names(classes)
    roots = {"image_root": image_root, "sem_seg_root": label_root}
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        given = roots | {"stuff_classes": class_names}
        for key, value in given.items():
            if known.get(key) != value:
                raise ValueError(
                    f"cannot register {name!r} with {key} {value}: the name belongs to a data set "
                    f"with {known.get(key)}"
                )
        return len(class_names)
    for kind, root in zip(("image", "label"), roots.values(), strict=True):
        if not os.path.isdir(root):
            raise FileNotFoundError(f"the {kind} folder of {name!r} does not exist: {root}")
    records = load_sem_seg_folders(image_root, label_root)
    DatasetCatalog.register(name, lambda: load_sem_seg_folders(image_root, label_root))
    MetadataCatalog.get(name).set(
        stuff_classes=class_names, evaluator_type="sem_seg", ignore_label=IGNORE_LABEL, **roots
    )
    logger.info("registered %s: %d images, %d classes", name, len(records), len(class_names))
    return len(class_names)


def load_sem_seg_folders(image_root: str, label_root: str) -> list[dict[str, Any]]:
    """List the images of a folder, each with its label map.

    Args:
        image_root: Folder of the images, with its subfolders; without pictures, its arrays (.npy)
            are the images.
        label_root: Folder of the label maps; their existence is not checked.

    Returns:
        Records in Detectron2's format, in the order of the names.

    Raises:
        ValueError: If there is no image, or if two of them would share a label map.
    """
    root = Path(image_root)
    found: dict[Path, Path] = {}
    files = [x for x in sorted(root.rglob("*")) if not is_stray_file(x.relative_to(root))]
    pictures = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    for file in pictures or [file for file in files if file.suffix.lower() == ARRAY_SUFFIX]:
        stem = file.relative_to(root).with_suffix("")
        if stem in found:
            raise ValueError(f"{found[stem]} and {file} have the same name, but one label map")
        found[stem] = file
    if not found:
        raise ValueError(f"no images in {image_root}: expected {', '.join(IMAGE_SUFFIXES)}")
    return [
        {"file_name": str(file), "sem_seg_file_name": f"{Path(label_root) / stem}.png"}
        for stem, file in found.items()
    ]
