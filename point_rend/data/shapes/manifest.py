"""Manifest of a drawn data set: a folder is reused only if it holds the requested one."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from point_rend.utils.files import atomic_folder
from point_rend.utils.json_files import read_json

MANIFEST = "shapes.json"
MIN_SIDE = 64


def write_once(
    folder: Path,
    generator: str,
    counts: Mapping[str, int],
    image_size: tuple[int, int],
    seed: int,
    *,
    files: Sequence[str],
    write: Callable[[Path], None],
) -> None:
    """Write a data set, complete or not at all, unless the folder already holds it.

    Args:
        folder: New or empty folder, or one that holds this very data set.
        generator: Name and version of the generator.
        counts: Number of images in each split, at least 1.
        image_size: Height and width in pixels, each at least 64.
        seed: Seed of all random numbers, at least 0.
        files: Names of all files, relative to the folder.
        write: Writes the files into the folder that it is given.

    Raises:
        ValueError: If a number is out of its range.
        FileExistsError: If the folder holds something else.
    """
    manifest = _manifest(generator, counts, image_size, seed)
    if folder.is_dir() and any(folder.iterdir()):
        _check_existing(folder, manifest, files)
        return
    with atomic_folder(folder) as unfinished:
        write(unfinished)
        (unfinished / MANIFEST).write_text(json.dumps(manifest))


def _manifest(
    generator: str, counts: Mapping[str, int], image_size: tuple[int, int], seed: int
) -> dict[str, Any]:
    """Describe a requested data set; the arguments are those of :func:`write_once`."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"the {name} split needs at least 1 image, got {count}")
    if min(image_size) < MIN_SIDE:
        raise ValueError(
            f"images need sides of at least {MIN_SIDE} pixels, got {tuple(image_size)}"
        )
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    return {"generator": generator, **counts, "image_size": list(image_size), "seed": seed}


def _check_existing(folder: Path, manifest: dict[str, Any], files: Sequence[str]) -> None:
    """Raise unless a folder holds exactly the data set of a manifest."""
    file = folder / MANIFEST
    advice = "choose another directory or delete this one"
    if not file.is_file():
        raise FileExistsError(
            f"{folder} is not empty and holds no data set of this generator: {advice}"
        )
    found = read_json(file, what="manifest")
    if found != manifest:
        raise FileExistsError(f"{folder} holds the data set {found}, not {manifest}: {advice}")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise FileExistsError(
            f"{folder} lacks {len(missing)} of its files, such as {missing[0]}: {advice}"
        )
