"""`pointrend merge`: the shards of a run as one file, written record by record."""

import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_util
from tqdm import tqdm

from point_rend.batch_inference.records import INSTANCES, Record
from point_rend.batch_inference.shards import (
    FORMATS,
    RUN_NAME,
    Run,
    finished_shards,
    read_shard,
    shard_path,
)
from point_rend.inference.outputs import write_coco
from point_rend.utils.files import atomic_file, check_output

SHARD_NAME = re.compile(rf"shard-(\d{{6,9}})\.({'|'.join(FORMATS)})")
NAMED = 5  # missing shards that a message names
COCO, RESULTS = "coco", "results"


class Merged(NamedTuple):
    """Numbers of what a file was made of.

    Attributes:
        images: Images in it.
        annotations: Annotations in it.
        failed: Images without results, which were left out.
        missing: Images of shards that do not exist.
    """

    images: int
    annotations: int
    failed: int
    missing: int


def merge(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    form: str = COCO,
    partial: bool = False,
    overwrite: bool = False,
) -> Merged:
    """Write the records of shards into one file, in the order of the manifest.

    Annotations are numbered from 1. Images keep their numbers: their ids in a COCO file, or their
    positions in the manifest. The memory does not grow with the number of images, but for one
    number each.

    Args:
        sources: Folders of shards, or single shards, all of one run.
        output: The file.
        form: `COCO` for images, categories and annotations with scores; `RESULTS` for the list of
            COCO's result format.
        partial: Whether shards may be missing.
        overwrite: Whether to replace a file that exists.

    Raises:
        FileNotFoundError: If there is no such shard.
        NotSavedError: If the file cannot be written.
        ValueError: If shards are missing, damaged, given twice or of several runs, or the output
            exists.
    """
    run, paths = _find(sources)
    folders = {path.parent for path in paths.values()}
    check_output(output, inputs=[*paths.values(), *(x / RUN_NAME for x in folders)])
    for folder in folders if SHARD_NAME.fullmatch(Path(output).name) else ():
        if folder.resolve() == Path(output).parent.resolve():
            raise ValueError(f"--output: {output} is the name of a shard: choose another one")
    if os.path.lexists(output) and not overwrite:
        raise ValueError(f"--output: {output} exists: choose another name, or pass --overwrite")
    if form == RESULTS and INSTANCES not in run.outputs:
        raise ValueError(
            "--as results: these are segments of a semantic model, which have no scores: expected "
            "--as coco"
        )
    missing = [number for number in range(run.shards) if number not in paths]
    if missing and not partial:
        names = ", ".join(shard_path("", x, run.shard_format).name for x in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise ValueError(
            f"{len(missing)} of {run.shards} shards are missing ({names}{more}): repeat the "
            "command that wrote the others, or pass --partial"
        )
    records = _Records(run, paths)
    if form == COCO:
        write_coco(Path(output), run.categories, records.images)
    else:
        _write_results(Path(output), records)
    return Merged(
        images=records.number,
        annotations=records.annotations,
        failed=records.failed,
        missing=sum(len(run.block(number)) for number in missing),
    )


def _find(sources: Sequence[str | Path]) -> tuple[Run, dict[int, Path]]:
    """Return the run of some shards, and their files by the numbers of their blocks."""
    run, first = None, Path()
    paths: dict[int, Path] = {}
    for source in map(Path, sources):
        match = SHARD_NAME.fullmatch(source.name)
        if not source.is_dir() and match is None:
            kind = "is no shard" if source.exists() else "does not exist"
            raise ValueError(f"{source} {kind}: expected a folder of shards, or shards of it")
        folder = source if source.is_dir() else source.parent
        found = Run.read(folder)
        if run is not None and run != found:
            raise ValueError(f"{folder} holds shards of another run than {first}")
        run, first = found, first if run is not None else folder
        if source.is_dir():
            numbers = finished_shards(source, run)
        else:
            assert match is not None
            numbers = {int(match[1])} & set(range(run.shards))
            if match[2] != run.shard_format or not numbers:
                raise ValueError(f"{source} is no shard of the run in {folder}")
        for number in numbers:
            path = shard_path(folder, number, run.shard_format)
            if number in paths:
                raise ValueError(f"{paths[number]} and {path} are the same shard, given twice")
            paths[number] = path
    if run is None:
        raise ValueError("expected a folder of shards, or shards")
    return run, dict(sorted(paths.items()))


class _Records:
    """The records of some shards, read as often as needed, and checked when they are read first.

    Attributes:
        number: Images with results that were read.
        annotations: Annotations of these.
        failed: Images without results.
    """

    def __init__(self, run: Run, paths: dict[int, Path]) -> None:
        self.run = run
        self.paths = paths
        self.number = self.annotations = self.failed = 0
        self._ids = np.empty(sum(len(run.block(number)) for number in paths), np.int64)
        self._is_checked = False

    def images(self) -> Iterator[dict[str, Any]]:
        """Yield the images as :func:`write_coco` takes them."""
        of_instances = INSTANCES in self.run.outputs
        for record in self._all():
            if record["error"] is not None:
                continue
            if of_instances:
                annotations = record["annotations"] or []
            else:
                annotations = [_as_annotation(segment) for segment in record["segments"] or []]
            yield {
                "id": record["image_id"],
                "file_name": record["file_name"],
                "size": [record["height"], record["width"]],
                "annotations": annotations,
            }

    def _all(self) -> Iterator[Record]:
        start = 0
        numbers = tqdm(self.paths, unit="shard", disable=None)
        for number in numbers:
            expected = len(self.run.block(number))
            records = read_shard(self.paths[number], checked=not self._is_checked)
            found = 0
            for record in records:
                if not self._is_checked:
                    self._count(record, number, start + found if found < expected else None)
                found += 1
                yield record
            if found != expected:
                raise ValueError(f"{self.paths[number]} has {found} records, expected {expected}")
            start += expected
        if not self._is_checked:
            self._is_checked = True
            values, numbers_of = np.unique(self._ids, return_counts=True)
            if len(values) < len(self._ids):
                raise ValueError(
                    f"image {values[numbers_of > 1][0]} is in two of the shards: one of them has "
                    "the name of another block"
                )

    def _count(self, record: Record, number: int, place: int | None) -> None:
        if record["run"] != self.run.identity:
            raise ValueError(f"{self.paths[number]} is a shard of another run")
        if place is not None:
            self._ids[place] = record["image_id"]
        if record["error"] is not None:
            self.failed += 1
            return
        self.number += 1
        found = record["annotations"] if INSTANCES in self.run.outputs else record["segments"]
        self.annotations += len(found or ())


def _as_annotation(segment: dict[str, Any]) -> dict[str, Any]:
    """Return a segment of a semantic model with the fields that COCO's annotations have."""
    box = mask_util.toBbox(segment["segmentation"]).tolist()
    return {"category_id": segment["category_id"], "bbox": box, **segment, "iscrowd": 0}


def _write_results(path: Path, records: _Records) -> None:
    with atomic_file(path) as binary:
        file = io.TextIOWrapper(binary, "utf-8")
        file.write("[")
        separator = ""
        for image in records.images():
            for found in image["annotations"]:
                kept = {key: found[key] for key in found if key not in ("area", "iscrowd")}
                file.write(separator + json.dumps({"image_id": image["id"], **kept}))
                separator = ", "
        file.write("]")
        file.flush()
        file.detach()
