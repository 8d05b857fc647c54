"""Class names, ids and colors stored in checkpoints."""

import functools
import os
from typing import Any

from detectron2.utils.file_io import PathManager

from point_rend.checkpoint.sealed_file import _load_sealed, _read, without_query

# Fields of Detectron2's metadata that tell the classes of a model, for "thing" and "stuff".
METADATA_FIELDS = ("{}_classes", "{}_colors", "{}_dataset_id_to_contiguous_id")
METADATA = "metadata"  # their key in a checkpoint


def read_metadata(path: str, *, allow_unsafe: bool = False) -> dict[str, Any]:
    """Read what a checkpoint tells of the classes of its model.

    Args:
        path: file or URL; may be empty, as MODEL.WEIGHTS.
        allow_unsafe: load any pickle, which runs whatever code the file holds.

    Returns:
        Fields of Detectron2's metadata: the names of the classes and, where they are known, their
        colors and their ids in the data set. Empty for files that tell nothing: those of the model
        zoo, of other programs, and of older versions.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedError: if the file is damaged.
        ValueError: if the file asks for code to run, or what it tells is not sound.
    """
    path = without_query(path)
    if not path.endswith(".pth"):
        return {}
    local = PathManager.get_local_path(path)
    if not os.path.isfile(local):
        raise FileNotFoundError(f"there is no checkpoint {path}")
    reader = functools.partial(_load_sealed, allow_unsafe=allow_unsafe)
    told = _read(local, reader).get(METADATA)
    if not isinstance(told, dict):
        return {}
    fields = [field.format(kind) for kind in ("thing", "stuff") for field in METADATA_FIELDS]
    metadata = {field: told[field] for field in fields if field in told}
    for field, value in metadata.items():
        if not _is_sound(field, value):
            raise ValueError(
                f"{path}: its {METADATA} has {field} {value!r:.80}, which is not sound"
            )
    return metadata


def _is_sound(field: str, value: Any) -> bool:
    """Tell whether a field of metadata has names, colors or ids, as its name says."""
    if field.endswith("_contiguous_id"):
        return isinstance(value, dict) and all(
            isinstance(x, int) for pair in value.items() for x in pair
        )
    if not isinstance(value, list):
        return False
    if field.endswith("_classes"):
        return len(value) > 0 and all(isinstance(name, str) for name in value)
    return all(
        isinstance(color, list) and len(color) == 3 and all(x in range(256) for x in color)
        for color in value
    )
