"""The images of a file of boxes, found in a folder."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from point_rend.evaluation.pairing import find_images, images_of_list
from point_rend.inference import inputs
from point_rend.refinement.box_file import BoxFile, Size
from point_rend.utils.json_files import shown


class BoxedImage(NamedTuple):
    """An image and its boxes.

    Attributes:
        name: For messages.
        file: None if there is none.
        size: Height and width in the file of boxes or in the annotations; None if unknown.
        records: Indices of its boxes in the file.
    """

    name: str
    file: Path | None
    size: Size | None
    records: list[int]


class ImageFolder:
    """A folder of images.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If it does not exist.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"--images: there is no folder {root}")
        self.root = root
        self._files: dict[str, Path] | None = None

    def files(self) -> dict[str, Path]:
        """Return all images in the folder and below by their names, relative to it."""
        if self._files is None:
            self._files = inputs.find_images([str(self.root)]).files
        return self._files

    def find(self, names: Iterable[str]) -> dict[str, Path]:
        """Find files by names, each relative to the folder, to one above it or to one below it.

        Returns:
            The files of the names that are found.

        Raises:
            ValueError: If a name fits several files, or several names fit one.
        """
        found, others = {}, []
        for name in names:
            is_inside = not os.path.isabs(name) and ".." not in Path(name).parts
            if is_inside and os.path.isfile(self.root / name):
                found[name] = self.root / name
            else:
                others.append(name)
        if others:
            known = {name: [file] for name, file in self.files().items()}
            found |= find_images(others, known, "--boxes", f"--images {self.root}")
        return found


def images_of(
    file: BoxFile, truth: Mapping[str, Any] | None, folder: ImageFolder
) -> tuple[list[BoxedImage], list[Any]]:
    """Assign the boxes of a file to images.

    Args:
        file: The file of boxes. Annotations name their images; those of a list of results are found
            in `truth` or, without it, in the folder: by their "file_name", their id, or their file
            name without folders and suffix in place of an id.
        truth: Annotations in COCO's format.
        folder: The images.

    Returns:
        The images that have boxes, and for each box the id of its image in the annotations, or else
        its file; None if it is unknown.

    Raises:
        ValueError: If names are ambiguous, or no image has a file.
    """
    known: Sequence[Mapping[str, Any]]
    if file.data_set is not None:
        known = file.data_set["images"]
        ids = [record["image_id"] for record in file.records]
    elif truth is not None:
        known = truth["images"]
        ids = images_of_list(file.records, truth, file.path)
    else:
        known = [{"id": name, "file_name": name} for name in folder.files()]
        where = f"--images {folder.root}"
        ids = images_of_list(file.records, {"images": known}, file.path, where)
        _note_numbers(file, ids)
    records = {image["id"]: image for image in known}
    of_image: dict[Any, list[int]] = {}
    lost: dict[Any, list[int]] = {}
    for index, identity in enumerate(ids):
        if identity is None:
            lost.setdefault(file.records[index]["image_id"], []).append(index)
        else:
            of_image.setdefault(identity, []).append(index)
    files = folder.find(dict.fromkeys(records[identity]["file_name"] for identity in of_image))
    images = [
        BoxedImage(
            records[identity]["file_name"],
            files.get(records[identity]["file_name"]),
            _size(records[identity]),
            indices,
        )
        for identity, indices in of_image.items()
    ]
    images += [
        BoxedImage(f"image {shown(image)}", None, None, indices) for image, indices in lost.items()
    ]
    if images and not any(image.file for image in images):
        raise ValueError(
            f"{file.path}: none of its {len(images)} images is in --images {folder.root}, such as "
            f"{images[0].name}"
        )
    return images, ids


def _note_numbers(file: BoxFile, ids: Sequence[Any]) -> None:
    """Tell the user that numbers are taken as names of files, as they may be ids of a data set."""
    for record, identity in zip(file.records, ids, strict=True):
        if isinstance(record["image_id"], int) and identity and "file_name" not in record:
            print(
                f"{file.path}: image {record['image_id']} is the file {identity}, by its name; if "
                "these are ids of a data set, pass its --annotations",
                file=sys.stderr,
            )
            return


def _size(record: Mapping[str, Any]) -> Size | None:
    return (record["height"], record["width"]) if "height" in record else None
