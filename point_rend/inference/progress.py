"""Record of finished images in an output folder, so that the same command continues.

The record is a file of JSON lines: the settings of the run; then one line when images are about to
be written, and one for each image when all its files are complete. A line that a killed process has
cut is ignored.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from point_rend.utils.files import NotSavedError
from point_rend.utils.json_files import parse_json
from point_rend.utils.reading import open_regular_file

RECORD = "predictions.jsonl"
FORMAT = "pointrend predict 1"  # of the record


class Source(NamedTuple):
    """Identity of an image file at one time; that of no file has two zeros."""

    size: int  # bytes
    modified: int  # nanoseconds

    @classmethod
    def of(cls, file: str | Path | None) -> "Source":
        """Look a file up; none, and one that does not exist, are equal."""
        try:
            status = os.stat(file) if file is not None else None
        except OSError:
            status = None
        return cls(status.st_size, status.st_mtime_ns) if status else cls(0, 0)


class Progress:
    """The images that runs of one command have finished in a folder.

    Args:
        folder: The output folder.
        settings: Everything that decides the results, as named texts.
        overwrite: Whether to remove the files of an earlier run and start again.

    Attributes:
        results: Result name of each finished image, by the image's name.
        started: Result names of the images that may be half-written.
        continues: Whether there was a record.

    Raises:
        ValueError: If the folder holds the results of other settings, or another file of the
            record's name, and `overwrite` is not set.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str], *, overwrite: bool = False
    ) -> None:
        self.folder = folder
        self.path = folder / RECORD
        self.settings = {"format": FORMAT, **settings}
        self.results: dict[str, str] = {}
        self.started: set[str] = set()
        self._sources: dict[str, Source] = {}
        self._offsets: dict[str, int] = {}
        self._end = 0
        self._descriptor = -1
        self.continues = os.path.lexists(self.path)
        if not self.continues:
            return
        if overwrite:
            self._remove_earlier()
            self.continues = False
        else:
            self._read()

    def is_finished(self, name: str, source: Source) -> bool:
        """Return whether an image is finished and its file has not changed since."""
        return self._sources.get(name) == source

    def start(self, results: Sequence[str]) -> None:
        """Record that the files of some images are about to be written."""
        self._append({"started": list(results)})

    def finish(self, name: str, result: str, source: Source, files: Sequence[Path], data: Any):
        """Record that all files of an image are complete.

        Args:
            name: Of the image.
            result: Result name of the image.
            source: Identity of the image file before it was read.
            files: The files of its results, in the folder.
            data: Its part of the results of all images, for :meth:`data`.
        """
        entry = {
            "finished": name,
            "result": result,
            "source": source,
            "files": [file.relative_to(self.folder).as_posix() for file in files],
            "data": data,
        }
        self._offsets[name] = self._append(entry)
        self.results[name], self._sources[name] = result, source

    def data(self) -> Iterator[Any]:
        """Read the data of all finished images, in the order in which they were finished."""
        if not self._offsets:
            return
        with open_regular_file(self.path, what="record") as file:
            for offset in sorted(self._offsets.values()):
                file.seek(offset)
                yield parse_json(file.readline(), f"record {self.path}")["data"]

    def close(self) -> None:
        """Close the file; without a finished or started image there is none."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, entry: Mapping[str, Any]) -> int:
        """Append a line; return its offset."""
        try:
            if self._descriptor < 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
                os.ftruncate(self._descriptor, self._end)  # without a line that was cut
                os.lseek(self._descriptor, self._end, os.SEEK_SET)
                if not self._end:
                    self._write(self.settings)
            offset = self._end
            self._write(entry)
        except OSError as error:
            if not self._end and self._descriptor >= 0:  # a part of a line is no record
                self.close()
                self.path.unlink()
            raise NotSavedError(self.path, error) from error
        return offset

    def _write(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        written = 0
        while written < len(line):
            written += os.write(self._descriptor, line[written:])
        self._end += len(line)

    def _read(self) -> None:
        advice = "choose another folder, or pass --overwrite to start again"
        for number, (offset, entry) in enumerate(self._lines()):
            if number == 0:
                if entry.get("format") != FORMAT:
                    break
                names = {*self.settings, *entry}
                different = sorted(x for x in names if entry.get(x) != self.settings.get(x))
                if different:
                    raise ValueError(
                        f"--output {self.folder} holds the results of another run (different: "
                        f"{', '.join(different)}): {advice}"
                    )
            elif "started" in entry:
                self.started.update(entry["started"])
            else:
                name = entry["finished"]
                self.results[name] = entry["result"]
                self._sources[name] = Source(*entry["source"])
                self._offsets[name] = offset
        if not self._end:
            raise ValueError(
                f"{self.path} exists and is no record of `pointrend predict`: {advice}"
            )

    def _lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the offsets and contents of the lines up to the first that is cut or damaged."""
        with open_regular_file(self.path, what="record") as file:
            for line in file:
                entry = None
                with contextlib.suppress(ValueError):
                    if line.endswith(b"\n"):
                        entry = parse_json(line, f"record {self.path}")
                if not isinstance(entry, dict) or not _is_valid(entry, first=not self._end):
                    return
                yield self._end, entry
                self._end += len(line)

    def _remove_earlier(self) -> None:
        """Remove the files that the record lists, and the record."""
        files = [file for _, entry in self._lines() for file in entry.get("files", [])]
        root = self.folder.resolve()
        for file in files:
            path = self.folder / file
            if path.parent.resolve().is_relative_to(root) and path.is_file():
                path.unlink()
        self.path.unlink()
        self._end = 0


def _is_valid(entry: dict[str, Any], *, first: bool) -> bool:
    if first:
        return all(isinstance(text, str) for text in entry.values())
    if "started" in entry:
        return isinstance(entry["started"], list)
    return (
        isinstance(entry.get("finished"), str)
        and isinstance(entry.get("result"), str)
        and isinstance(entry.get("files"), list)
        and all(isinstance(file, str) for file in entry["files"])
        and isinstance(entry.get("source"), list)
        and len(entry["source"]) == len(Source._fields)
        and "data" in entry
    )
