"""Manifests: the images of a run that may have a million of them, in a fixed order.

A manifest holds the names as one text, so that a million entries take about as much memory as a
file that lists them.
"""

import glob
import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload
from urllib.parse import unquote, urlsplit

import numpy as np

from point_rend.batch_inference.items import Item
from point_rend.inference.inputs import names_below
from point_rend.utils.downloads import check_url, is_url
from point_rend.utils.errors import shorten
from point_rend.utils.imports import not_installed
from point_rend.utils.json_files import MAX_DATA_SET_BYTES, shown
from point_rend.utils.json_stream import iterate_list
from point_rend.utils.pictures import IMAGE_SUFFIXES, OTHER_SUFFIXES
from point_rend.utils.reading import check_regular_file, open_regular_file

COLUMN = "uri"  # of a Parquet file
LONGEST_ENTRY = 4096  # bytes, as a path of Linux
MAX_BYTES = 8 << 30  # of all entries together
MAX_ID = 2**63 - 1
WEB = ("http", "https")
ROWS = 4096  # of a Parquet file that are read at a time
TRIED = 100  # entries of which one must exist
SHOWN = 3  # entries that a message names


class Manifest(Sequence[Item]):
    """The images of a run: a sequence of :class:`Item` that creates them when they are read.

    Args:
        source: Its place, for messages.
        entries: Names of the images, paths relative to `root` or absolute, or URIs.
        root: Folder to which the names are relative.
        ids: Ids of the images; by default they are numbered.

    Attributes:
        digest: Hash of names and ids.
        notes: Messages about files that were left out.

    Raises:
        ValueError: If there are none, an entry cannot be used, or one is there twice.
    """

    def __init__(
        self,
        source: str,
        entries: Iterable[str],
        *,
        root: str | Path,
        ids: "array[int] | None" = None,
    ) -> None:
        self.source = source
        self.root = os.path.abspath(root)
        self.notes: list[str] = []
        text, ends = bytearray(), array("q")
        for entry in entries:
            try:
                name = self._name_of(entry)
                text += name.encode()
            except ValueError as error:
                raise ValueError(f"{source}: entry {len(ends) + 1}: {error}") from error
            ends.append(len(text))
            if len(text) > MAX_BYTES:
                raise ValueError(f"{source}: its entries have more than {MAX_BYTES} bytes")
        if not ends:
            raise ValueError(f"{source}: expected one image or more, found none")
        self._text = bytes(text)
        self._ends = np.frombuffer(ends, np.int64)
        self._ids = None if ids is None else np.frombuffer(ids, np.int64)
        self._check_names()
        self._check_ids()
        hashed = hashlib.sha256(self._text)
        hashed.update(self._ends.tobytes())
        hashed.update(b"" if self._ids is None else self._ids.tobytes())
        self.digest = hashed.hexdigest()

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        name = self._bytes(position).decode()
        identity = position + 1 if self._ids is None else int(self._ids[position])
        return Item(identity, name, name if is_url(name) else os.path.join(self.root, name))

    def check_that_some_exist(self) -> None:
        """Refuse a manifest of local files of which the first ones are all missing.

        Raises:
            FileNotFoundError: If they are.
        """
        first = self[:TRIED]
        if not any(is_url(item.uri) or os.path.lexists(item.uri) for item in first):
            raise FileNotFoundError(
                f"{self.source}: none of its first {len(first)} images exists, such as "
                f"{first[0].uri}: names are relative to --image-root, by default the folder of "
                "the file that lists them"
            )

    def _bytes(self, position: int) -> bytes:
        start = int(self._ends[position - 1]) if position else 0
        return self._text[start : int(self._ends[position])]

    def _name_of(self, entry: str) -> str:
        """Return the name of an image.

        Raises:
            ValueError: If the entry cannot be used.
        """
        if not entry or len(entry) > LONGEST_ENTRY or not _is_text(entry):
            raise ValueError(
                f"{shown(entry)} is no path: expected 1 to {LONGEST_ENTRY} characters of UTF-8 "
                "without control characters"
            )
        if is_url(entry) or entry.startswith("file:"):
            parts = urlsplit(entry)
            if parts.scheme in WEB:
                check_url(entry)
                return entry
            if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
                raise ValueError(
                    f"{shown(entry)}: expected a path or a URI of file, http or https; of other "
                    "storage, mount the bucket as a folder"
                )
            entry = unquote(parts.path, errors="strict")
            if not os.path.isabs(entry) or not _is_text(entry):
                raise ValueError(f"{shown(parts.geturl())}: expected file:// and an absolute path")
        name = os.path.normpath(entry)
        below = os.path.join(self.root, "")
        return name[len(below) :] if name.startswith(below) else name

    def _check_names(self) -> None:
        hashes = np.empty(len(self), np.uint64)
        for i in range(len(self)):
            digest = hashlib.blake2b(self._bytes(i), digest_size=8).digest()
            hashes[i] = int.from_bytes(digest, "little")
        order = np.argsort(hashes, kind="stable")
        again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        if len(again):
            pairs = [(order[i], order[i + 1]) for i in again[:SHOWN]]
            examples = ", ".join(
                f"{shorten(self[int(one)].name)} (entries {one + 1} and {two + 1})"
                for one, two in pairs
            )
            raise ValueError(
                f"{self.source}: {len(again)} of {len(self)} entries name an image again, such as "
                f"{examples}: expected each once"
            )

    def _check_ids(self) -> None:
        if self._ids is None:
            return
        values, numbers = np.unique(self._ids, return_counts=True)
        if len(values) < len(self._ids):
            raise ValueError(f"{self.source}: two images have the id {values[numbers > 1][0]}")


def _is_text(text: str) -> bool:
    return text.isprintable() or not any(ord(x) < 32 or 0xD800 <= ord(x) < 0xE000 for x in text)


def read_manifest(
    source: str,
    *,
    column: str | None = None,
    root: str | Path | None = None,
    output: str | Path | None = None,
    suffixes: Sequence[str] = IMAGE_SUFFIXES,
) -> Manifest:
    """Read the names of the images of a run.

    Args:
        source: A folder (with all below), a pattern such as `photos/*/*.jpg`, an image; or a file
            that lists images: of COCO's annotations (.json), of Parquet (.parquet), or of any other
            name with a path or URI a line.
        column: Column of a Parquet file with paths or URIs; by default `COLUMN`.
        root: Folder to which names in a file are relative; by default that of the file.
        output: Folder of the results, which is no part of a folder of images.
        suffixes: Those of images in a folder.

    Raises:
        FileNotFoundError: If there is no such file, folder or image.
        ValueError: If it lists no images, or if something in it is not as expected.
        OSError: If it cannot be read.
    """
    suffix = os.path.splitext(source)[1].lower()
    is_parquet = os.path.isfile(source) and suffix == ".parquet"
    is_list = os.path.isfile(source) and suffix not in {*suffixes, *OTHER_SUFFIXES}
    if column is not None and not is_parquet:
        raise ValueError(f"--uri-column {column}: expected a Parquet file, got {source}")
    if root is not None and not is_list:
        raise ValueError(f"--image-root {root}: expected a file that lists images, got {source}")
    if root is not None and not os.path.isdir(root):
        raise FileNotFoundError(f"--image-root: there is no folder {root}")
    folder = os.path.dirname(os.path.abspath(source)) if root is None else root
    if os.path.isdir(source):
        return _of_folder(source, output, suffixes)
    if not os.path.lexists(source):
        return _of_pattern(source)
    check_regular_file(source, what="--input")
    if is_parquet:
        return Manifest(source, _parquet_entries(source, column or COLUMN), root=folder)
    if suffix == ".json":
        ids = array("q")
        return Manifest(source, _coco_entries(source, ids), root=folder, ids=ids)
    if is_list:
        return Manifest(source, _lines(source), root=folder)
    return Manifest(source, [os.path.basename(source)], root=folder)


def _of_folder(folder: str, output: str | Path | None, suffixes: Sequence[str]) -> Manifest:
    if output is not None and os.path.exists(output) and os.path.samefile(folder, output):
        raise ValueError(
            f"--output {output} is the folder of --input: the results would be among the images"
        )
    notes: list[str] = []
    names = names_below(Path(folder), None if output is None else Path(output), notes, suffixes)
    if not names:
        raise ValueError("; ".join([f"no image found at {folder}", *notes]))
    manifest = Manifest(folder, names, root=folder)
    manifest.notes = notes
    return manifest


def _of_pattern(pattern: str) -> Manifest:
    """Find the files of a pattern; their names begin after the part of it that is fixed."""
    if is_url(pattern):
        raise ValueError(f"{pattern} is a URL: expected a file that lists URLs")
    found = sorted(x for x in glob.iglob(pattern, recursive=True) if not os.path.isdir(x))
    if not found:
        raise FileNotFoundError(f"no image found at {pattern}")
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    root = os.path.abspath(os.path.dirname(fixed))
    return Manifest(pattern, (os.path.abspath(x) for x in found), root=root)


def _lines(source: str) -> Iterator[str]:
    with open_regular_file(source, what="--input") as file:
        number = 0
        while line := file.readline(LONGEST_ENTRY * 4 + 2):
            number += 1
            try:
                text = line.decode("utf-8").strip("\r\n")
            except UnicodeDecodeError:
                raise ValueError(
                    f"{source}: line {number} is not text in UTF-8: expected a path or URI a line, "
                    "a COCO file (.json) or a Parquet file (.parquet)"
                ) from None
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                yield text


def _coco_entries(source: str, ids: "array[int]") -> Iterator[str]:
    """Yield the file names of a COCO file, and append the ids."""
    if os.path.getsize(source) > MAX_DATA_SET_BYTES:
        raise ValueError(f"{source}: expected at most {MAX_DATA_SET_BYTES} bytes")
    for position, image in enumerate(iterate_list(source, "images", what="--input")):
        known: dict[str, Any] = image if isinstance(image, dict) else {}
        identity, name = known.get("id"), known.get("file_name")
        if type(identity) is not int or abs(identity) > MAX_ID or not isinstance(name, str):
            raise ValueError(
                f"{source}: the image at position {position} needs an id, a whole number, and a "
                f"file_name; got {shown(image)}"
            )
        ids.append(identity)
        yield name


def _parquet_entries(source: str, column: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import compute, parquet, types
    except ImportError as error:
        raise not_installed("pyarrow", "parquet") from error
    number = 0
    try:
        described = parquet.read_metadata(source).schema
        schema = described.to_arrow_schema()
        if column not in schema.names:
            raise ValueError(
                f"{source} has no column {shown(column)}: it has "
                f"{shorten(', '.join(schema.names), 300) or 'none'}; --uri-column names it"
            )
        # The path of a field in a structure may look the same.
        if schema.names.count(column) + [x.path for x in described].count(column) > 2:
            raise ValueError(f"{source} has two columns {shown(column)}: expected one")
        kind = schema.field(column).type
        value = kind.value_type if types.is_dictionary(kind) else kind
        is_text = (types.is_string, types.is_large_string, types.is_string_view)
        if not any(is_kind(value) for is_kind in is_text):
            raise ValueError(f"{source}: column {shown(column)} is {value}, expected text")
        # A text that is there often is in memory once, so that a small file cannot fill it.
        with parquet.ParquetFile(source, read_dictionary=[column]) as file:
            for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
                entries = batch.column(0)
                lengths = compute.binary_length(entries.dictionary)
                if (compute.max(lengths).as_py() or 0) > LONGEST_ENTRY * 4:
                    raise ValueError(
                        f"{source}: column {shown(column)} has a text of "
                        f"{compute.max(lengths)} bytes, expected paths or URIs"
                    )
                for entry in entries.dictionary_decode().to_pylist():
                    number += 1
                    if entry is None:
                        raise ValueError(f"{source}: row {number} of {shown(column)} is null")
                    yield entry
    except (pyarrow.ArrowException, OSError, EOFError, UnicodeDecodeError, MemoryError) as error:
        if isinstance(error, ValueError) and not isinstance(error, pyarrow.ArrowException):
            raise
        reason = shorten(" ".join(str(error).split()), 200)
        raise ValueError(f"{source} is damaged or no Parquet file: {reason}") from error
