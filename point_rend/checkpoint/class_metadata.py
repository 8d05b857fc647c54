"""Class names and config that are stored in a checkpoint together with the model."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from point_rend.checkpoint.formats import read_safetensors, read_torch_file
from point_rend.checkpoint.safetensors_file import SUFFIX
from point_rend.checkpoint.sealed_file import without_query
from point_rend.utils.downloads import local_path

METADATA = "metadata"  # key in a checkpoint
CONFIG = "config"  # key in the metadata
# Fields of Detectron2's metadata that describe the classes of a model, for "thing" and "stuff".
CLASS_FIELDS = ("{}_classes", "{}_colors", "{}_dataset_id_to_contiguous_id")
# Those that describe its keypoints: their names, and lines between them with colors (RGB).
KEYPOINT_FIELDS = ("keypoint_names", "keypoint_connection_rules")


class StoredMetadata(NamedTuple):
    """Metadata of a checkpoint.

    Attributes:
        classes: Fields of Detectron2's metadata: the names of the classes and, where they are
            known, their colors and their ids in the data set, and the keypoints.
        config: The config of the training as YAML; None if the file has none.
    """

    classes: dict[str, Any]
    config: str | None = None


def read_metadata(path: str, *, allow_unsafe: bool = False) -> dict[str, Any]:
    """Read the classes that are stored in a checkpoint, as of :func:`read_stored_metadata`."""
    return read_stored_metadata(path, allow_unsafe=allow_unsafe).classes


def read_stored_metadata(path: str, *, allow_unsafe: bool = False) -> StoredMetadata:
    """Read the metadata of a checkpoint.

    Args:
        path: File or URL; may be empty, as MODEL.WEIGHTS.
        allow_unsafe: Whether to load any pickle, which executes the code in the file.

    Returns:
        The metadata; empty for files of the model zoo, of other programs and of older versions.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedError: If the file is damaged.
        ValueError: If the file would execute code, or its metadata is malformed.
    """
    path = without_query(path)
    if not path.endswith((".pth", SUFFIX)):
        return StoredMetadata({})
    local = local_path(path)
    if not os.path.isfile(local):
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if path.endswith(SUFFIX):
        return metadata_in(read_safetensors(local, only_metadata=True), path)
    return metadata_in(read_torch_file(local, allow_unsafe=allow_unsafe), path)


def metadata_in(checkpoint: Mapping[str, Any], path: str) -> StoredMetadata:
    """Return the metadata in the contents of a checkpoint; see :func:`read_stored_metadata`."""
    stored = checkpoint.get(METADATA)
    if not isinstance(stored, dict):
        return StoredMetadata({})
    names = [field.format(kind) for kind in ("thing", "stuff") for field in CLASS_FIELDS]
    names += KEYPOINT_FIELDS
    for field in (*names, CONFIG):
        if field in stored and not _is_sound(field, stored[field]):
            raise ValueError(
                f"{path}: its {METADATA} has {field} {stored[field]!r:.80}, which is not sound"
            )
    classes = {field: stored[field] for field in names if field in stored}
    return StoredMetadata(classes, stored.get(CONFIG))


def _is_sound(field: str, value: Any) -> bool:
    """Return whether the value of a field has the type that the field's name implies."""
    if field == CONFIG:
        return isinstance(value, str)
    if field.endswith("_contiguous_id"):
        return isinstance(value, dict) and all(
            isinstance(x, int) for pair in value.items() for x in pair
        )
    if not isinstance(value, list):
        return False
    if field.endswith(("_classes", "_names")):
        return len(value) > 0 and all(isinstance(name, str) for name in value)
    if field.endswith("_rules"):
        return all(
            isinstance(line, list)
            and len(line) == 3
            and all(isinstance(name, str) for name in line[:2])
            and _is_color(line[2])
            for line in value
        )
    return all(map(_is_color, value))


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(x in range(256) for x in value)
