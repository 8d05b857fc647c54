"""Shards: one file of records for each block of a manifest, and the description of their run.

Block k are the items from k · size to (k + 1) · size - 1. A shard is written under a temporary name
and renamed, so one that exists is finished. The same records give the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from point_rend.batch_inference.records import Record
from point_rend.data.checks.rle import check_rles
from point_rend.utils.errors import shorten
from point_rend.utils.files import atomic_file, write_text
from point_rend.utils.imports import not_installed
from point_rend.utils.json_files import parse_json, read_json, shown
from point_rend.utils.reading import open_regular_file, read_bytes

FORMATS = ("parquet", "jsonl", "json")
RUN_NAME = "shards.json"  # of the description of a run
RUN_FORMAT = "pointrend predict --shards 1"
MAX_SHARD_BYTES = 4 << 30
LONGEST_LINE = 1 << 30  # bytes of a record
MAX_SHARDS = 10**8
MAX_ID = 2**63 - 1
MAX_SIDE = 2**31  # pixels

# Fields of a record in a shard, with their types.
FIELDS: dict[str, tuple[type, ...]] = {
    "image_id": (int,),
    "file_name": (str,),
    "uri": (str,),
    "height": (int, type(None)),
    "width": (int, type(None)),
    "annotations": (list, type(None)),
    "segments": (list, type(None)),
    "error": (str, type(None)),
    "run": (str,),
}


class Run(NamedTuple):
    """Everything that decides the shards of a run.

    Attributes:
        images: Number of images in the manifest.
        shard_size: Images of a block.
        shard_format: One of `FORMATS`.
        outputs: Names of the model's outputs.
        categories: Ids and names of the classes, as in a COCO file.
        settings: Hashes and names of the rest: config, weights, classes, manifest.
    """

    images: int
    shard_size: int
    shard_format: str
    outputs: list[str]
    categories: list[dict[str, Any]]
    settings: dict[str, str]

    @property
    def identity(self) -> str:
        """Hash that the records of the run carry."""
        return hashlib.sha256(json.dumps(self, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shards(self) -> int:
        """Number of blocks."""
        return -(-self.images // self.shard_size)

    def block(self, number: int) -> range:
        """Return the positions of the items of a block."""
        start = number * self.shard_size
        return range(start, min(start + self.shard_size, self.images))

    def write(self, folder: str | Path) -> None:
        """Write the description into the folder of the shards."""
        content = {"format": RUN_FORMAT, "run": self.identity, **self._asdict()}
        write_text(Path(folder, RUN_NAME), json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the description in a folder of shards.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is damaged.
        """
        path = Path(folder, RUN_NAME)
        content = read_json(path, what="description of shards")
        known: dict[str, Any] = content if isinstance(content, dict) else {}
        if known.get("format") != RUN_FORMAT:
            raise ValueError(f"{path} is no description of shards of `pointrend predict`")
        run = cls(**{name: known.get(name) for name in cls._fields})  # type: ignore[arg-type]
        is_sound = (
            _is_number(run.images)
            and _is_number(run.shard_size)
            and run.shard_format in FORMATS
            and isinstance(run.outputs, list)
            and isinstance(run.categories, list)
            and all(isinstance(x, dict) for x in run.categories)
            and isinstance(run.settings, dict)
        )
        if not is_sound or run.shards > MAX_SHARDS or run.identity != known.get("run"):
            raise ValueError(f"{path} is damaged: its content is not the one that was written")
        return run


def _is_number(value: Any) -> bool:
    return type(value) is int and value > 0


def shard_path(folder: str | Path, number: int, shard_format: str) -> Path:
    """Return the file of a block."""
    return Path(folder, f"shard-{number:06d}.{shard_format}")


def failures_path(folder: str | Path, number: int) -> Path:
    """Return the file that lists the images of a block without results; it exists if any are."""
    return Path(folder, f"failed-{number:06d}.txt")


def write_shard(folder: str | Path, number: int, run: Run, records: Sequence[Record]) -> Path:
    """Write the records of a block, complete or not at all.

    Images with an `error` are listed in :func:`failures_path`, a line each.

    Args:
        folder: Folder of the shards; it is created.
        number: Of the block.
        run: The run.
        records: As of :class:`~point_rend.batch_inference.records.RecordFormat`, in the order of
            the manifest.

    Returns:
        The file of the shard.

    Raises:
        NotSavedError: If it cannot be written.
        ValueError: If the records are not as many as the block has images.
    """
    if len(records) != len(run.block(number)):
        raise ValueError(
            f"block {number} has {len(run.block(number))} images, got {len(records)} records"
        )
    failed = "".join(f"{x['file_name']}: {x['error']}\n" for x in records if x["error"] is not None)
    if failed:
        write_text(failures_path(folder, number), failed)
    else:
        failures_path(folder, number).unlink(missing_ok=True)
    path = shard_path(folder, number, run.shard_format)
    marked = [record | {"run": run.identity} for record in records]
    with atomic_file(path) as file:
        if run.shard_format == "parquet":
            _write_parquet(file, marked)
        else:
            lines = [json.dumps(record).encode() for record in marked]
            is_list = run.shard_format == "json"
            file.write(b"[\n" * is_list)
            file.write((b",\n" if is_list else b"\n").join(lines) + b"\n")
            file.write(b"]\n" * is_list)
    return path


def read_shard(path: str | Path, *, checked: bool = True) -> Iterator[Record]:
    """Read the records of a shard, with the identity of their run as `run`.

    Args:
        path: The file.
        checked: Whether to check the records, their masks included.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is damaged, or no shard.
        OSError: If it cannot be read.
    """
    records = _READERS.get(Path(path).suffix)
    if records is None:
        raise ValueError(f"{path}: expected a shard, a file .{', .'.join(FORMATS)}")
    for number, record in enumerate(records(path), start=1):
        fault = _fault(record) if checked else ""
        if fault:
            raise ValueError(f"{path} is damaged, or no shard: record {number} {fault}")
        yield {name: record[name] for name in FIELDS}


def _fault(record: Any) -> str:
    if not isinstance(record, dict):
        return f"is {shown(record)}, expected an object"
    for name, types in FIELDS.items():
        if type(record.get(name)) not in types or name not in record:
            return f"has {name} = {shown(record.get(name))}"
    size = [record["height"], record["width"]]
    if abs(record["image_id"]) > MAX_ID:
        return f"has image_id = {shown(record['image_id'])}"
    if record["error"] is None and not all(x and 0 < x < MAX_SIDE for x in size):
        return f"has results, but the size {shown(size)}"
    masks = []
    for found in (*(record["annotations"] or ()), *(record["segments"] or ())):
        mask = found.get("segmentation") if isinstance(found, dict) else None
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
            return f"has the mask {shown(mask)}"
        if mask.get("size") != size:
            return f"has a mask of size {shown(mask.get('size'))} in an image of size {size}"
        if type(found.get("category_id")) is not int:
            return f"has the category_id {shown(found.get('category_id'))}"
        masks.append(mask)
    checked = check_rles(masks, [(record["height"], record["width"])] * len(masks))
    return next((f"has a mask: {x.fault.text}" for x in checked if x.fault and x.fault.fatal), "")


# Formats


def _read_lines(path: str | Path) -> Iterator[Any]:
    with open_regular_file(path, what="shard") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if not line.endswith(b"\n"):
                raise ValueError(f"shard {path} is truncated: line {number} has no end")
            yield parse_json(line, f"shard {path}, line {number}")


def _read_list(path: str | Path) -> Iterator[Any]:
    data = read_bytes(path, what="shard", max_bytes=MAX_SHARD_BYTES)
    records = parse_json(data, f"shard {path}")
    if not isinstance(records, list):
        raise ValueError(f"shard {path} is damaged, or no shard: expected a list")
    yield from records


def _read_parquet(path: str | Path) -> Iterator[Any]:
    pyarrow = _pyarrow()
    with open_regular_file(path, what="shard") as file:
        try:
            with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as shard:
                if not shard.schema_arrow.equals(_schema()):
                    names = shorten(", ".join(shard.schema_arrow.names), 200)
                    raise ValueError(f"{path} is no shard: it has the columns {names or '(none)'}")
                for batch in shard.iter_batches(batch_size=16):
                    yield from map(_without_nulls, batch.to_pylist())
        except (pyarrow.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            reason = shorten(" ".join(str(error).split()), 200)
            raise ValueError(f"shard {path} is damaged: {reason}") from error


def _without_nulls(record: Record) -> Record:
    """Leave out the fields of annotations that the model does not have, such as keypoints."""
    for name in ("annotations", "segments"):
        if record[name] is not None:
            record[name] = [
                {key: value for key, value in found.items() if value is not None}
                for found in record[name]
            ]
    return record


def _write_parquet(file: IO[bytes], records: Sequence[Mapping[str, Any]]) -> None:
    pyarrow = _pyarrow()
    table = pyarrow.Table.from_pylist(records, schema=_schema())
    pyarrow.parquet.write_table(table, file, compression="zstd", write_page_checksum=True)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise not_installed("pyarrow", "parquet") from error
    return pyarrow


def _schema() -> Any:
    """Return the columns of a shard. Fields of an annotation are in the order of JSON's."""
    pa = _pyarrow()
    mask = pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])
    of_all = [("area", pa.float64()), ("iscrowd", pa.int64())]
    annotation = pa.struct(
        [
            ("category_id", pa.int64()),
            ("bbox", pa.list_(pa.float64())),
            ("score", pa.float64()),
            ("segmentation", mask),
            ("keypoints", pa.list_(pa.float64())),
            *of_all,
        ]
    )
    segment = pa.struct([("category_id", pa.int64()), ("segmentation", mask), of_all[0]])
    return pa.schema(
        [
            ("image_id", pa.int64()),
            ("file_name", pa.string()),
            ("uri", pa.string()),
            ("height", pa.int64()),
            ("width", pa.int64()),
            ("annotations", pa.list_(annotation)),
            ("segments", pa.list_(segment)),
            ("error", pa.string()),
            ("run", pa.string()),
        ]
    )


_READERS = {".jsonl": _read_lines, ".json": _read_list, ".parquet": _read_parquet}


def finished_shards(folder: str | Path, run: Run) -> set[int]:
    """Return the numbers of the blocks whose shards exist."""
    found: set[int] = set()
    if not os.path.isdir(folder):
        return found
    ending = f".{run.shard_format}"
    with os.scandir(folder) as entries:
        for entry in entries:
            digits = entry.name.removeprefix("shard-").removesuffix(ending)
            if digits.isdecimal() and len(digits) < 10:
                number = int(digits)
                is_its_name = entry.name == shard_path("", number, ending[1:]).name
                if number < run.shards and is_its_name and entry.is_file():
                    found.add(number)
    return found
