"""Bad manifests, folders and days of `pointrend predict --shards` and `pointrend merge`."""

import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from point_rend.inference import run as run_module
from tests.batch_inference.running import Planted, words
from tests.cli.test_predict import write_pictures
from tests.robustness.harness import Row, run_row, table

MILLION = 1_000_000


def plant() -> None:
    run_module.Predictor = Planted  # type: ignore[misc, assignment]


def full_disk() -> None:
    plant()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def on(
    source: str, *more: object, make: Callable[[Path], object] = lambda _: None
) -> Callable[[Path], Sequence[str | Path]]:
    """Prepare a folder `in` with two pictures and whatever `make` adds."""

    def prepare(folder: Path) -> list[str]:
        write_pictures(folder / "in", [1, 2])
        make(folder)
        return ["predict", *words(source, Path("out"), *more)]

    return prepare


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def million_lines(folder: Path) -> None:
    with (folder / "list.txt").open("w") as file:
        file.writelines(f"some/folder/day{i // 1000}/photo_{i:08d}.jpg\n" for i in range(MILLION))


def long_texts(folder: Path) -> None:
    """A small file of many long texts: each row refers to one entry of a dictionary."""
    indices = pa.array(np.zeros(20_000, np.int32))
    texts = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"uri": texts}), folder / "a.parquet", store_schema=False)


def no_texts(folder: Path) -> None:
    pq.write_table(pa.table({"uri": pa.array(["in/1.png", None])}), folder / "a.parquet")


def other_columns(folder: Path) -> None:
    pq.write_table(pa.table({"path": ["in/1.png"], "size": [3]}), folder / "a.parquet")


def foreign(name: str, content: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / name).write_text(content)

    return make


def same_as_before(folder: Path) -> None:
    assert not (folder / "out").exists() or not list((folder / "out").glob("shard-*"))


def merge(*arguments: str, make: Callable[[Path], object] = lambda _: None):
    def prepare(folder: Path) -> list[str]:
        make(folder)
        return ["merge", *arguments, "--output", "out.json"]

    return prepare


ROWS = [
    Row("no such source", on("absent"), "no image found at absent"),
    Row("an empty list", on("a.txt", make=text("a.txt", "\n \n")), r"a\.txt: expected one image"),
    Row(
        "a folder without images",
        on("empty", make=lambda f: (f / "empty").mkdir()),
        "no image found at empty",
    ),
    Row(
        "a binary file as a list",
        on("a.bin", make=text("a.bin", bytes(range(256)) * 100)),
        r"a\.bin: line 1 is not text in UTF-8|a\.bin: entry 1: ",
    ),
    Row(
        "a list of zeros",
        on("a.txt", make=text("a.txt", bytes(100_000))),
        r"a\.txt: entry 1: .* is no path",
    ),
    Row(
        "a list of one endless line",
        on("a.txt", make=text("a.txt", "x" * 10_000_000)),
        r"a\.txt: entry 1: .* is no path",
    ),
    Row(
        "a million lines in 300 MB",
        on("list.txt", make=million_lines),
        r"list\.txt: none of its first 100 images exists",
        seconds=60,
        gibibytes=0.3,
    ),
    Row(
        "an image twice",
        on("a.txt", make=text("a.txt", "in/1.png\nin/2.png\n./in/1.png\n")),
        r"1 of 3 entries name an image again, such as in/1\.png \(entries 1 and 3\)",
    ),
    Row(
        "a list of a bucket",
        on("a.txt", make=text("a.txt", "s3://bucket/a.jpg\n")),
        "a path or a URI of file, http or https",
    ),
    Row(
        "a COCO file that is cut",
        on("a.json", make=text("a.json", '{"images": [{"id": 1, "file_name": "in/1.png"}, {"i')),
        r"a\.json is truncated or not JSON",
    ),
    Row(
        "a COCO file of a million brackets",
        on("a.json", make=text("a.json", '{"images": ' + "[" * 1_000_000)),
        r"a\.json is nested too deeply",
    ),
    Row(
        "a list of results in place of a COCO file",
        on("a.json", make=text("a.json", '[{"image_id": 1}]')),
        r"a\.json: expected an object with the list 'images'",
    ),
    Row(
        "a Parquet file without the column",
        on("a.parquet", make=other_columns),
        r"a\.parquet has no column 'uri': it has path, size; --uri-column names it",
    ),
    Row(
        "a column that is no text",
        on("a.parquet", "--uri-column", "size", make=other_columns),
        "column 'size' is int64, expected text",
    ),
    Row("a null in the column", on("a.parquet", make=no_texts), "row 2 of 'uri' is null"),
    Row(
        "no Parquet file",
        on("a.parquet", make=text("a.parquet", "PAR1" + "x" * 1000 + "PAR1")),
        r"a\.parquet is damaged or no Parquet file",
    ),
    Row(
        "a Parquet file that grows to 20 GB",
        on("a.parquet", make=long_texts),
        r"a\.parquet: column 'uri' has a text of 1048576 bytes, expected paths or URIs",
        gibibytes=3,
        seconds=60,
    ),
    Row(
        "a column of another file",
        on("in", "--uri-column", "path"),
        "--uri-column path: expected a Parquet file, got in",
    ),
    Row(
        "no such image root",
        on("a.txt", "--image-root", "absent", make=text("a.txt", "1.png")),
        "--image-root: there is no folder absent",
    ),
    Row("blocks of no image", on("in", "--shard-size", 0), "--shard-size: expected 1 or more"),
    Row("fewer than no worker", on("in", "--workers", -1), "--workers: expected 0 or more"),
    Row("pictures in shards", on("in", "--formats", "pictures"), "neither --formats nor --frames"),
    Row(
        "a file in place of the folder",
        on("in", make=text("out", "mine")),
        "--output out cannot be written: out is not a folder",
    ),
    Row(
        "a description that another program wrote",
        on(
            "in",
            make=foreign("shards.json", "{}"),
        ),
        r"out/shards\.json is no description of shards",
    ),
    Row(
        "shards without a description",
        on("in", make=foreign("shard-000000.jsonl", "mine")),
        r"out/shard-000000\.jsonl exists, and out has no shards\.json",
    ),
    Row(
        "a list that would be overwritten",
        on("out/shards.json", "--overwrite", make=foreign("shards.json", '{"images": []}')),
        r"out/shards\.json",
    ),
    Row(
        "a full disk",
        on("in"),
        r"out/shard\S+ could not be saved",
        first=full_disk,
        then=same_as_before,
    ),
    Row("nothing to merge", merge("absent"), "absent does not exist: expected a folder of shards"),
    Row(
        "a folder without a description",
        merge("in", make=lambda f: (f / "in").mkdir()),
        "description of shards does not exist",
    ),
    Row(
        "a picture to merge",
        merge("a.png", make=text("a.png", "x")),
        r"a\.png is no shard: expected a folder of shards",
    ),
    Row(
        "only for shards",
        lambda _: ["predict", *words("in", Path("out"))[:6], "--workers", "2"],
        "--workers is for --shards",
    ),
]


@table(ROWS)
def test_bad_input_of_a_run_on_many_images(row: Row, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    run_row(row, folder)
