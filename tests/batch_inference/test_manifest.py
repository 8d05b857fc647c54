"""Manifests: the same images in the same order from every kind of source."""

import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from point_rend.batch_inference.manifest import Item, read_manifest

NAMES = ["a.jpg", "b c.png", "day1/a.jpg", "day1/ü.jpg", "day2/deep/x.tif"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in NAMES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


def write_list(folder: Path, entries: list[str]) -> Path:
    path = folder / "list.txt"
    path.write_text("\n".join(entries), encoding="utf-8")
    return path


def write_coco(folder: Path, entries: list[str]) -> Path:
    path = folder / "coco.json"
    found = [{"id": 10 * i + 7, "file_name": x} for i, x in enumerate(entries)]
    path.write_text(json.dumps({"annotations": [{"id": 1}], "images": found, "categories": []}))
    return path


def write_parquet(folder: Path, entries: list[str], column: str = "uri") -> Path:
    path = folder / "table.parquet"
    pq.write_table(pa.table({"number": range(len(entries)), column: entries}), path)
    return path


@pytest.mark.parametrize("write", [write_list, write_coco, write_parquet])
@pytest.mark.parametrize("form", ["relative", "dotted", "absolute", "uri"])
def test_every_kind_of_file_gives_the_same_names_in_its_order(images: Path, write, form) -> None:
    forms = {
        "relative": str,
        "dotted": lambda name: f"./x/../{name}",
        "absolute": lambda name: str(images / name),
        "uri": lambda name: (images / name).as_uri(),
    }
    entries = NAMES[::-1]
    manifest = read_manifest(str(write(images, [forms[form](name) for name in entries])))
    assert [item.name for item in manifest] == entries
    assert all(Path(item.uri) == images / item.name for item in manifest)
    first = 1 if write is not write_coco else 7
    assert [item.id for item in manifest][:2] == [first, first + (10 if first == 7 else 1)]


def test_a_folder_and_a_pattern_give_sorted_names_below_their_fixed_part(images: Path) -> None:
    assert [item.name for item in read_manifest(str(images))] == sorted(NAMES)
    manifest = read_manifest(str(images / "day*" / "*.jpg"))
    assert [item.name for item in manifest] == ["day1/a.jpg", "day1/ü.jpg"]
    everything = read_manifest(str(images / "**" / "*.*"))
    assert {item.name for item in everything} == set(NAMES)
    assert read_manifest(str(images / "a.jpg"))[0] == Item(1, "a.jpg", str(images / "a.jpg"))


def test_names_are_relative_to_the_image_root(images: Path, tmp_path: Path) -> None:
    listed = write_list(tmp_path, NAMES)
    manifest = read_manifest(str(listed), root=images)
    manifest.check_that_some_exist()
    assert manifest[4] == Item(5, NAMES[4], str(images / NAMES[4]))
    with pytest.raises(FileNotFoundError, match=r"none of its first 5 images .*--image-root"):
        read_manifest(str(listed)).check_that_some_exist()


def test_another_column_of_parquet_is_named(images: Path) -> None:
    table = str(write_parquet(images, NAMES, "path"))
    assert len(read_manifest(table, column="path")) == 5
    with pytest.raises(ValueError, match=r"no column 'uri': it has number, path; --uri-column"):
        read_manifest(table)
    with pytest.raises(ValueError, match=r"column 'number' is int64, expected text"):
        read_manifest(table, column="number")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("is_dictionary", [False, True])
def test_every_type_of_text_in_parquet_is_read(images: Path, kind, is_dictionary: bool) -> None:
    if is_dictionary and kind != pa.string_view():
        kind = pa.dictionary(pa.int32(), kind)
    pq.write_table(pa.table({"uri": pa.array(NAMES).cast(kind)}), images / "table.parquet")
    assert [item.name for item in read_manifest(str(images / "table.parquet"))] == NAMES


def test_columns_of_parquet_with_one_name_are_refused(images: Path) -> None:
    texts = pa.array(NAMES)
    nested = pa.array([{"b": name} for name in NAMES])
    for column, names, columns in (
        ("uri", ["uri", "uri"], [texts, texts]),
        ("a.b", ["a", "a.b"], [nested, texts]),
    ):
        pq.write_table(pa.Table.from_arrays(columns, names), images / "table.parquet")
        with pytest.raises(ValueError, match=f"has two columns '{column}'"):
            read_manifest(str(images / "table.parquet"), column=column)


def test_a_long_text_that_parquet_repeats_is_refused_in_bounded_memory(images: Path) -> None:
    text = pa.array(["A" * (4 << 20)])
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), text)
    pq.write_table(pa.table({"uri": repeated}), images / "table.parquet", compression="zstd")
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match="has a text of 4194304 bytes, expected paths or URIs"):
        read_manifest(str(images / "table.parquet"))
    assert pa.default_memory_pool().max_memory() - before < 512 << 20


def test_a_byte_order_mark_of_json_is_named(tmp_path: Path) -> None:
    path = write_coco(tmp_path, NAMES)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(ValueError, match="begins with a byte order mark"):
        read_manifest(str(path))


def test_urls_keep_their_form_and_other_storage_is_refused(tmp_path: Path) -> None:
    url = "https://example.com/images/a.jpg?size=2"
    manifest = read_manifest(str(write_list(tmp_path, [url])))
    assert manifest[0] == Item(1, url, url)
    manifest.check_that_some_exist()
    for entry in ("s3://bucket/a.jpg", "file://host/a.jpg", "https://example.com/../a"):
        with pytest.raises(ValueError, match=r"list\.txt: entry 1: "):
            read_manifest(str(write_list(tmp_path, [entry])))


def test_entries_that_name_an_image_twice_are_named(images: Path) -> None:
    entries = [*NAMES, "./day1//a.jpg", str(images / "a.jpg")]
    with pytest.raises(ValueError, match=r"2 of 7 entries .*day1/a\.jpg \(entries 3 and 6\)"):
        read_manifest(str(write_list(images, entries)))


def test_ids_of_a_coco_file_are_whole_numbers_each_once(tmp_path: Path) -> None:
    path = write_coco(tmp_path, NAMES)
    path.write_text(path.read_text().replace('"id": 17', '"id": 7'))
    with pytest.raises(ValueError, match="two images have the id 7"):
        read_manifest(str(path))
    path.write_text(path.read_text().replace('"id": 27', '"id": "x"'))
    with pytest.raises(ValueError, match="position 2 needs an id"):
        read_manifest(str(path))


def test_lines_may_end_as_on_windows_and_be_empty(images: Path) -> None:
    path = images / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa.jpg\r\n\r\n  \r\nday1/a.jpg\r\n")
    assert [item.name for item in read_manifest(str(path))] == ["a.jpg", "day1/a.jpg"]


def test_slices_negative_positions_and_pickles_hold_the_same_items(images: Path) -> None:
    manifest = read_manifest(str(images))
    items = list(manifest)
    assert manifest[1:4] == items[1:4]
    assert manifest[-1] == items[-1]
    with pytest.raises(IndexError):
        manifest[5]
    assert list(pickle.loads(pickle.dumps(manifest))) == items


def test_the_digest_depends_on_names_their_borders_their_order_and_ids(images: Path) -> None:
    lists = (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "d"])
    digests = [read_manifest(str(write_list(images, x))).digest for x in lists]
    digests.append(read_manifest(str(write_coco(images, ["ab", "c"]))).digest)
    assert len(set(digests)) == 5
    assert read_manifest(str(write_list(images, ["ab", "c"]))).digest == digests[0]


def test_results_among_the_images_are_passed_over(images: Path) -> None:
    output = images / "out"
    output.mkdir()
    (output / "z.png").touch()
    manifest = read_manifest(str(images), output=output)
    assert len(manifest) == len(NAMES)
    assert "holds the results" in manifest.notes[0]
    with pytest.raises(ValueError, match="among the images"):
        read_manifest(str(images), output=images)


def test_a_name_that_is_not_utf8_is_refused_by_its_entry(images: Path) -> None:
    with open(os.fsencode(images) + b"/\xff.jpg", "wb"):
        pass
    with pytest.raises(ValueError, match="no path: expected 1 to 4096 characters of UTF-8"):
        read_manifest(str(images))
