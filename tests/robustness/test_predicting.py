"""Bad inputs, outputs and days of `pointrend predict`."""

import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode

from point_rend.inference import run as run_module
from point_rend.inference.progress import RECORD
from tests.cli.test_predict import Planted, write_pictures, write_video
from tests.robustness.harness import Row, run_row, table
from tests.tiling.test_windows import VRT, sparse_tiff
from tests.tiny_datasets import POINTREND, TINY_MODEL


def plant() -> None:
    """Replace the model by planted predictions."""
    run_module.Predictor = Planted  # type: ignore[misc, assignment]


class PlantedInTiles(Planted):
    """Finds the bright pixels of each tile."""

    def __init__(self, cfg: CfgNode, **_: Any) -> None:
        super().__init__()
        self.cfg = cfg

    def unpasted(self) -> "PlantedInTiles":
        return self


def plant_in_tiles() -> None:
    run_module.Predictor = PlantedInTiles  # type: ignore[misc, assignment]


def full_disk() -> None:
    """Make every file end at 4 kB."""
    plant()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))


def words(*arguments: object, config: str = POINTREND) -> list[str]:
    options = [*map(str, arguments), "--opts", *TINY_MODEL, "MODEL.WEIGHTS", "planted.pkl"]
    return ["predict", "--config-file", config, *options]


def on(
    *arguments: object, make: Callable[[Path], object] = lambda _: None
) -> Callable[[Path], Sequence[str | Path]]:
    """Prepare a folder `in` with one picture and whatever `make` adds."""

    def prepare(folder: Path) -> list[str]:
        write_pictures(folder / "in", [1])
        make(folder)
        return words(*arguments)

    return prepare


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")


def others_in(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name / "deep").mkdir(parents=True)
        for file in ("a.CR2", "b.heic", "deep/c.HEIC", "._d.heic", "notes.txt"):
            (folder / name / file).touch()

    return make


def colliding(folder: Path) -> None:
    write_pictures(folder / "other", [1])


def file_in_place_of_a_folder(folder: Path) -> None:
    (folder / "out").write_text("mine")


def mine(folder: Path) -> None:
    write_pictures(folder / "out", [1])


def video(folder: Path) -> None:
    write_video(folder / "walk.mp4", 60)


def foreign_record(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / RECORD).write_text(text)

    return make


def terminate() -> None:
    """Let the model send SIGTERM to its process."""

    class Ending(Planted):
        def __call__(self, images: Sequence[np.ndarray], *, batch_size: int) -> list[dict]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(images, batch_size=batch_size)

    run_module.Predictor = Ending  # type: ignore[misc, assignment]


def many(folder: Path) -> None:
    for number in range(40):
        image = np.full((20, 20, 3), 200, np.uint8)
        cv2.imwrite(str(folder / "in" / f"{number}_{'x' * 100}.png"), image)


def pointer(folder: Path) -> None:
    (folder / "map.tif").write_text(VRT.format("in/1.png"))


def sparse(side: int, block: int) -> Callable[[Path], object]:
    """Make a TIFF that declares many pixels and has none."""
    return lambda folder: sparse_tiff(folder / "map.tif", side, block)


OUT = ("--output", "out")
TILES = ("--input", "map.tif", *OUT, "--tile", "64")
IN = ("--input", "in", *OUT)
ROWS = [
    Row("no such input", on("--input", "absent", *OUT), "no image found at absent"),
    Row(
        "an empty folder",
        on("--input", "empty", *OUT, make=lambda f: (f / "empty").mkdir()),
        "no image found at empty",
    ),
    Row(
        "a pipe as an image",
        on("--input", "pipe.png", *OUT, make=pipe),
        r"^pointrend predict: pipe\.png cannot be read: a pipe, expected a file$",
        exit_code=1,
        first=plant,
    ),
    Row(
        "a pipe as a video",
        on("--video-input", "pipe.png", *OUT, make=pipe),
        r"pipe\.png: a pipe, expected a file",
    ),
    Row("a folder as a video", on("--video-input", "in", *OUT), "in: a folder, expected a file"),
    Row("no such video", on("--video-input", "absent.mp4", *OUT), r"there is no video absent\.mp4"),
    Row(
        "an empty video",
        on("--video-input", "a.mp4", *OUT, make=lambda f: (f / "a.mp4").touch()),
        r"a\.mp4: not a video that OpenCV can read",
        exit_code=1,
        first=plant,
    ),
    Row(
        "a file that is no picture, with a name of two lines",
        on("--input", "in", *OUT, make=lambda f: (f / "in" / "a\nb.png").write_text("text")),
        r"^pointrend predict: in/a\\nb\.png is not an image, but a text$",
        exit_code=1,
        first=plant,
    ),
    Row(
        "pictures of other formats among the pictures",
        on("--input", "in", *OUT, make=others_in("in")),
        r"^in: left out are 1 \.cr2, 2 \.heic: convert them to JPEG or PNG$",
        exit_code=0,
        first=plant,
    ),
    Row(
        "nothing but pictures of other formats",
        on("--input", "new", *OUT, make=others_in("new")),
        r"no image found at new; new: left out are 1 \.cr2, 2 \.heic: convert them to JPEG or PNG$",
    ),
    Row("no camera", on("--webcam", *OUT), "there is no camera"),
    Row(
        "two images of one name",
        on("--input", "in/1.png", "other/1.png", *OUT, make=colliding),
        r"would have results of one name 1\.png",
    ),
    Row(
        "one output for two images",
        on(
            "--input",
            "in",
            "other",
            "--output",
            "a.png",
            make=lambda f: write_pictures(f / "other", [2]),
        ),
        "one file, but there are 2 images",
    ),
    Row(
        "the output is the input folder",
        on("--input", "in", "--output", "in"),
        "is a folder of --input",
    ),
    Row(
        "the output is the input by another path",
        on("--input", "in", "--output", "in/../in/."),
        "is a folder of --input",
    ),
    Row(
        "the output is the input image",
        on("--input", "in/1.png", "--output", "in/1.png", "--overwrite"),
        "is the input",
    ),
    Row(
        "the output is the input video",
        on("--video-input", "walk.mp4", "--output", "walk.mp4", "--overwrite", make=video),
        "is the input",
    ),
    Row(
        "a file in place of the output",
        on(*IN, make=file_in_place_of_a_folder),
        "out.* could not be saved",
        first=plant,
    ),
    Row("a picture of the user", on(*IN, make=mine), r"out/1\.png exists"),
    Row("another record", on(*IN, make=foreign_record("mine")), "is no record of `pointrend"),
    Row(
        "a deep record",
        on(*IN, make=foreign_record("[" * 100_000 + "\n")),
        "is no record of `pointrend",
    ),
    Row(
        "a record of another version",
        on(*IN, make=foreign_record('{"format": "2"}\n')),
        "is no record of `pointrend",
    ),
    Row(
        "a record as a folder",
        on(*IN, make=lambda f: (f / "out" / RECORD).mkdir(parents=True)),
        f"{RECORD}.* a folder",
    ),
    Row(
        "a full disk",
        on(*IN, "--formats", "coco", make=many),
        "could not be saved",
        first=full_disk,
    ),
    Row(
        "a full disk with a video",
        on("--video-input", "walk.mp4", "--output", "out.mp4", make=video),
        r"out\.mp4 could not be saved: \d+ of 60 frames",
        first=full_disk,
    ),
    Row("SIGTERM", on(*IN), "0/1", exit_code=143, first=terminate),
    Row(
        "a map of more pixels than anybody has",
        on(*TILES, make=sparse(300_000, 8192)),
        r"map\.tif is too large: it has 300000 x 300000 pixels",
        exit_code=1,
        first=plant_in_tiles,
    ),
    Row(
        "a map of a billion pixels in 2 kB",
        on(*TILES, make=sparse(200_000, 16_384)),
        r"map\.tif is broken: it declares 200000 x 200000 pixels",
        exit_code=1,
        first=plant_in_tiles,
    ),
    Row(
        "a map that is a text of another file's name",
        on(*TILES, make=pointer),
        r"map\.tif is not an image, but a text",
        exit_code=1,
        first=plant_in_tiles,
    ),
    Row("a batch of no image", on(*IN, "--batch-size", "0"), "--batch-size: expected 1 or more"),
    Row("a batch of text", on(*IN, "--batch-size", "many"), "--batch-size: invalid int value"),
    Row("a threshold above 1", on(*IN, "--confidence-threshold", "2"), "from 0 to 1"),
    Row("a threshold that is no number", on(*IN, "--confidence-threshold", "nan"), "from 0 to 1"),
    Row("an unknown format", on(*IN, "--formats", "svg"), "invalid choice: 'svg'"),
    Row("a format of another model", on(*IN, "--formats", "labels"), "needs sem_seg"),
    Row(
        "no output and no display",
        on("--input", "in"),
        "there is no display",
        first=lambda: [os.environ.pop(x, None) for x in ("DISPLAY", "WAYLAND_DISPLAY")] and None,
    ),
    Row("two sources", on(*IN, "--webcam"), "not allowed with argument"),
    Row("a null character in the output", on("--input", "in", "--output", "a\0b"), "a"),
]


@table(ROWS)
def test_a_row_ends_in_one_line(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_nothing_is_written_for_a_refused_command(tmp_path: Path) -> None:
    for row in ROWS[9:13]:
        folder = tmp_path / row.name.replace(" ", "_")
        folder.mkdir()
        run_row(row, folder)
        assert not (folder / "out").exists()
