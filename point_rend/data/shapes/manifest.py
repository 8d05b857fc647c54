"""The manifest of a drawn data set: an existing folder is kept only if it is the one asked for."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from point_rend.utils.files import atomic_folder

MANIFEST = "shapes.json"


def request_of(
    generator: str, counts: Mapping[str, int], image_size: tuple[int, int], seed: int
) -> dict[str, Any]:
    """Describe the data set that is asked for, as its manifest does.

    Args:
        generator: name and version of what draws it.
        counts: images per split.
        image_size: height and width in pixels.
        seed: of all random numbers.

    Raises:
        ValueError: a number out of its range.
    """
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"the {name} split needs at least 1 image, got {count}")
    if min(image_size) < 64:
        raise ValueError(f"images need sides of at least 64 pixels, got {tuple(image_size)}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, got {seed}")
    return {"generator": generator, **counts, "image_size": list(image_size), "seed": seed}


def write_once(
    folder: Path,
    wanted: dict[str, Any],
    files: Sequence[Path],
    write: Callable[[Path], None],
) -> None:
    """Let a data set appear, complete or not at all, unless it is there already.

    Args:
        folder: new or empty directory, or one that holds this very data set.
        wanted: what the data set is, kept beside it as JSON.
        files: all its files.
        write: writes them into the directory that it is given.

    Raises:
        FileExistsError: the directory holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()):
        _complain_about_difference(folder, wanted, files)
        return
    with atomic_folder(folder) as unfinished:
        write(unfinished)
        (unfinished / MANIFEST).write_text(json.dumps(wanted))


def _complain_about_difference(folder: Path, wanted: dict[str, Any], files: Sequence[Path]) -> None:
    """Raise unless `folder` holds exactly the data set that `wanted` describes."""
    manifest = folder / MANIFEST
    advice = "choose another directory or delete this one"
    if not manifest.is_file():
        raise FileExistsError(
            f"{folder} is not empty and holds no data set of this generator: {advice}"
        )
    found = json.loads(manifest.read_text())
    if found != wanted:
        raise FileExistsError(f"{folder} holds the data set {found}, not {wanted}: {advice}")
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise FileExistsError(
            f"{folder} has lost {len(missing)} files, {missing[0]} first: {advice}"
        )
