"""Bad COCO and LVIS annotation files, for every command that reads one.

A training leaves out annotations that it cannot use; in these rows nothing else is left, so that it
ends before a model is built.
"""

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.robustness.harness import Row, run_row, table
from tests.tiny_datasets import POINTREND, TINY_MODEL

Content = dict[str, Any]
Change = Callable[[Content], Any]
HEIGHT, WIDTH = 24, 32
SQUARE = [[4, 4, 16, 4, 16, 20, 4, 20]]
NAN = float("nan")
HUGE = 10**400
CHECKED = ("train", "evaluate", "score", "report")
CONVERT = "prepare-point-annotations"


def good() -> Content:
    """Return annotations of two images, two objects each."""
    return {
        "images": [
            {"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH} for k in (1, 2)
        ],
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}],
        "annotations": [
            {
                "id": number,
                "image_id": 1 + number % 2,
                "category_id": 1,
                "iscrowd": 0,
                "area": 192,
                "bbox": [4, 4, 12, 16],
                "segmentation": SQUARE,
            }
            for number in range(1, 5)
        ],
    }


def results() -> list[Content]:
    """Return perfect results for the annotations."""
    box = {"category_id": 1, "score": 0.9, "bbox": [4, 4, 12, 16], "segmentation": SQUARE}
    return [{"image_id": k} | box for k in (1, 2)]


def prepare(folder: Path, command: str, content: bytes | Content) -> list[str]:
    """Write the files of a command, and return its words."""
    if not isinstance(content, bytes):
        content = json.dumps(content).encode()
    (folder / "truth.json").write_bytes(content)
    (folder / "results.json").write_text(json.dumps(results()))
    (folder / "images").mkdir()
    for k in (1, 2):
        cv2.imwrite(str(folder / f"images/{k}.png"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    if command in ("train", "evaluate"):
        words = [command, "--config-file", POINTREND, "--register-coco", "mine", "truth.json"]
        train, test = ("('mine',)", "()") if command == "train" else ("()", "('mine',)")
        return [*words, "images", *TINY_MODEL, "DATASETS.TRAIN", train, "DATASETS.TEST", test]
    if command == CONVERT:
        return [command, "truth.json", "points.json"]
    words = [command, "--annotations", "truth.json", "--results", "a=results.json"]
    if command != "score":
        words += ["--image-root", "images", "--output", "page.html"]
    return words


def of_file(name: str, content: bytes, line: str, commands: Iterable[str] = ("score",)) -> list:
    """Make rows of a file's bytes."""
    return [
        Row(
            f"{command}: {name}",
            functools.partial(prepare, command=command, content=content),
            line,
            seconds=5,
            gibibytes=1,
        )
        for command in commands
    ]


def of_content(
    name: str, change: Change, line: str, commands: Iterable[str] = CHECKED, **expected: Any
) -> list[Row]:
    """Make rows of the good content after a change."""

    def make(folder: Path, command: str) -> list[str]:
        content = good()
        change(content)
        return prepare(folder, command, content)

    return [
        Row(f"{command}: {name}", functools.partial(make, command=command), line, **expected)
        for command in commands
    ]


def each(**fields: Any) -> Change:
    """Return a change of all annotations."""
    return lambda content: [x.update(fields) for x in content["annotations"]]


def one(kind: str, **fields: Any) -> Change:
    """Return a change of the second record of a kind."""
    return lambda content: content[kind][1].update(fields)


def masks(name: str, mask: Any, line: str) -> list[Row]:
    """Make rows of masks that an evaluation refuses by name and a training leaves out."""
    change = each(segmentation=mask)
    where = r"annotation \d of image \d \(\S+\): .*"
    return [
        *of_content(name, change, where + line, ["evaluate", "score"]),
        *of_content(name, change, "no annotation is left to train on in .*: 4|4 are", ["train"]),
    ]


def points(
    name: str, coords: Any, labels: Any, line: str = "no annotation is left .* 4 are impossible"
) -> Row:
    """Make the row of a training from annotated points."""

    def make(folder: Path) -> list[str]:
        content = good()
        each(point_coords=coords, point_labels=labels)(content)
        return [*prepare(folder, "train", content), "INPUT.POINT_SUP", "True"]

    return Row(f"train: points, {name}", make, line)


def boxes_alone(
    name: str,
    fields: Content,
    line: str,
    *,
    commands: Sequence[str] = ("train", "evaluate"),
    exit_code: int = 2,
) -> list[Row]:
    """Make rows of annotations without masks, for a model without masks."""

    def make(folder: Path, command: str) -> list[str]:
        content = good()
        each(segmentation=None)(content)
        each(**fields)(content)
        return [*prepare(folder, command, content), "MODEL.MASK_ON", "False"]

    return [
        Row(f"{x}: {name}", functools.partial(make, command=x), line, exit_code) for x in commands
    ]


GOOD = json.dumps(good()).encode()
ROWS: list[Row] = [
    # JSON
    *of_file("empty", b"", "truth.json is truncated or not JSON", CHECKED),
    *of_file("cut off", GOOD[:-7], "truth.json is truncated or not JSON"),
    *of_file("twice", GOOD + GOOD, "truth.json is truncated or not JSON: Extra data"),
    *of_file("deep lists", b"[" * 1_000_000, "truth.json is nested too deeply", CHECKED),
    *of_file("deep objects", b'{"a":' * 1_000_000, "truth.json is nested too deeply"),
    *of_file("empty lists", b"[" + b"[]," * 17_000_000 + b"0]", "lists and objects would take"),
    *of_file("empty objects", b"[" + b"{}," * 5_000_000 + b"0]", "lists and objects would take"),
    *of_file("deepest lists", b"[" * 20_000_000, "20000000 lists and objects would take"),
    *of_file("many numbers", b"[" + b"0," * 5_000_000 + b"0]", "is not in COCO's instances"),
    *of_file("many digits", b'{"images": ' + b"1" * 9_000_000 + b"}", "too many digits"),
    *of_file("byte order mark", b"\xef\xbb\xbf" + GOOD, "begins with a byte order mark", CHECKED),
    *of_file("UTF-16", GOOD.decode().encode("utf-16"), "is not in UTF-8: byte 0xff"),
    *of_file("Latin-1", GOOD.replace(b"disc", b"d\xefsc"), "is not in UTF-8: byte 0xef"),
    *of_file("zeros", bytes(1000), "is truncated or not JSON"),
    *of_file("repeated key", GOOD[:-1] + b', "images": []}', "has the key 'images' twice"),
    *of_file("null", b"null", "is not in COCO's instances format"),
    # Fields
    *of_content("id twice", one("annotations", id=1), "annotation id 1 is given twice"),
    *of_content("image id of text", one("images", id="2"), "refers to image 2", ["score"]),
    *of_content(
        "ids of two kinds",
        lambda x: x["images"].append(x["images"][0] | {"id": "3"}),
        "1 of 3 images have an id of text",
        ["score"],
    ),
    *of_content("id true", one("annotations", id=True), "needs a valid 'id'", ["score"]),
    *of_content("huge id", one("annotations", id=HUGE), "has the id <integer", ["score"]),
    *of_content("no category", each(category_id=9), "refers to category 9", ["train"]),
    *of_content("huge category", each(category_id=HUGE), "refers to category <int", ["score"]),
    *of_content("surrogate", one("categories", name="\ud800"), "not valid Unicode", ["train"]),
    *of_content("long name", one("images", file_name="a" * 10**6), "1000000 char", ["train"]),
    *of_content("null character", one("images", file_name="a\0b"), "do not exist", ["train"]),
    *of_content("no name", one("images", file_name=""), "image 2, images/ .*folder", ["train"]),
    *of_content("iscrowd 2", one("annotations", iscrowd=2), "iscrowd must be 0 or 1, got 2"),
    *of_content("iscrowd yes", one("annotations", iscrowd="yes"), "got 'yes'", ["evaluate"]),
    *of_content("iscrowd list", one("annotations", iscrowd=[1]), r"got \[1\]", ["train"]),
    *of_content("ignore null", one("annotations", ignore=None), "no flag 'ignore'", ["train"]),
    *of_content("bbox NaN", each(bbox=[4, NAN, 12, 16]), "bbox must be 4 numbers", CHECKED),
    *of_content("bbox huge", each(bbox=[4, 4, HUGE, 16]), "bbox must be 4 numbers", ["score"]),
    *of_content("bbox text", each(bbox=["4", 4, 12, 16]), "bbox must be 4 numbers", ["report"]),
    *of_content("keypoints", each(keypoints=[1, None, 2]), "keypoints must be numbers", ["train"]),
    *of_content("keypoints cut", each(keypoints=[1, 2]), "3 for each point", ["evaluate"]),
    *of_content(
        "no annotations", lambda x: x.update(annotations=[]), "has no annotations", ["score"]
    ),
    *of_content(
        "no annotations",
        lambda x: x.update(annotations=[]),
        "no annotation is left to train on .*: .*; the images have no annotations|no annotations",
        ["train", "report"],
    ),
    *of_content(
        "only crowds",
        each(iscrowd=1),
        r"no annotation is left .*; 4 annotations are crowds \(iscrowd 1\), which are not trained",
        ["train"],
    ),
    *of_content(
        "many categories",
        lambda x: x.update(categories=[{"id": k, "name": f"{k}"} for k in range(1, 20_002)]),
        "has 20001 categories, expected at most 20000",
        ["score"],
    ),
    # Sizes
    *of_content(
        "huge image",
        one("images", height=100_000, width=100_000),
        "image 2 .* 100000 x 100000 pixels, expected at most 178,956,970 .*POINT_REND_MAX_PIXELS",
    ),
    *of_content("huge side", one("images", height=HUGE), "has a size of 32 x <integer", ["score"]),
    *of_content("no side", one("images", height=0), "has a size of 32 x 0 pixels", ["report"]),
    *of_content("height 24.0", one("images", height=24.0), "a valid 'height'", ["evaluate"]),
    # Polygons
    *masks("far corner", [[*SQUARE[0], 3e8, 5]], "polygon 1 of 1 has the coordinate 3e.08, far"),
    *masks("far polygon", [[3e8 + k for k in range(6)]], "has the coordinate 3e.08, far beyond"),
    *masks("NaN", [[*SQUARE[0][:-1], NAN]], "has coordinates that are not finite"),
    *masks("infinity", [[*SQUARE[0][:-1], -np.inf]], "has coordinates that are not finite"),
    *masks("huge integer", [[*SQUARE[0][:-1], HUGE]], "not finite: an integer is too large"),
    *masks("text", [[str(x) for x in SQUARE[0]]], "coordinates that are not numbers, such as '4'"),
    *masks("null", [[*SQUARE[0][:-1], None]], "not numbers, such as None"),
    *masks("odd", [SQUARE[0][:-1]], "has 7 numbers, a polygon needs an even count of 6 or more"),
    *masks("two corners", [[4, 4, 16, 16]], "has 4 numbers, a polygon needs"),
    *masks("pairs", [[[4, 4], [16, 4], [16, 16]]], "is a list of lists"),
    *masks("zigzag", [[0, 0, 3000, 3000] * 9000], "outlines of .* pixels, more than any object"),
    *masks("none", None, "no segmentation"),
    *masks("empty", [[]], "has 0 numbers"),
    *of_content("mask of text", each(segmentation="x"), "must be polygons or an RLE, got 'x'"),
    *of_content(
        "outside", each(segmentation=[[40, 4, 60, 4, 60, 9]]), "no annotation is left", ["train"]
    ),
    # RLE
    *masks("RLE too long", {"size": [HEIGHT, WIDTH], "counts": [5, 2**30]}, "RLE of 1073741829"),
    *masks("RLE too short", {"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "RLE of 10 pixels"),
    *masks("RLE empty", {"size": [HEIGHT, WIDTH], "counts": ""}, "RLE of 0 pixels"),
    *masks("RLE cut off", {"size": [HEIGHT, WIDTH], "counts": "T3b1Zco"}, "ends within a number"),
    *masks("RLE foreign", {"size": [HEIGHT, WIDTH], "counts": "T3!"}, "'!' does not occur"),
    *masks("RLE negative", {"size": [HEIGHT, WIDTH], "counts": "N5O"}, "negative or an absurd"),
    *masks("RLE turned", {"size": [WIDTH, HEIGHT], "counts": [700, 68]}, r"RLE of size \(32, 24\)"),
    *of_content(
        "RLE of a huge image",
        each(segmentation={"size": [100_000, 100_000], "counts": [10**10]}),
        "RLE that has a size of 100000 x 100000 pixels",
    ),
    *of_content(
        "RLE of integers too large",
        each(segmentation={"size": [HEIGHT, WIDTH], "counts": [2**40]}),
        "RLE with the run length 1099511627776",
        ["train", "score"],
    ),
    *of_content(
        "RLE of floats",
        each(segmentation={"size": [HEIGHT, WIDTH], "counts": [700.0, 68.0]}),
        "RLE with the run length 700.0, expected integers",
        ["train", "score"],
    ),
    *of_content(
        "RLE without counts",
        each(segmentation={"size": [HEIGHT, WIDTH]}),
        "RLE with the counts None",
        ["train", "report"],
    ),
    # Points
    points("none", None, None),
    points("two kinds", [[5, 5]], None),
    points("fewer labels", [[5, 5], [6, 6]], [1]),
    points("NaN", [[5, NAN]], [1]),
    points("huge", [[5, HUGE]], [1]),
    points("text", [["5", 5]], [1]),
    points("flat", [5, 5], [1, 0]),
    points("deep", [[[5, 5]]], [1]),
    points("label 2", [[5, 5]], [2]),
    points("huge label", [[5, 5]], [HUGE]),
    points("outside", [[500, 5]], [1]),
    points("too many", [[5, 5]] * 100_001, [1] * 100_001),
    *of_file("cut off", GOOD[:-7], "truth.json is truncated or not JSON", [CONVERT]),
    *of_content(
        "no annotations", lambda x: x.update(annotations=[]), "no mask of its 0", [CONVERT]
    ),
    *of_content("flat boxes", each(bbox=[4, 4, 0, 16]), "bbox of size 0 x 16", [CONVERT]),
    *of_content("far", each(segmentation=[[3e8 + k for k in range(6)]]), "far beyond", [CONVERT]),
    *of_content(
        "foreign RLE",
        each(segmentation={"size": [HEIGHT, WIDTH], "counts": "T3!"}),
        "no mask of its 4 annotations can be used, such as annotation 1: .*'!' does not occur",
        [CONVERT],
    ),
    # Boxes in other formats
    *of_content(
        "corners",
        each(bbox=[4, 4, 16, 20]),
        r"4 of 4 boxes seem to be x0, y0, x1, y1, .*such as \[4.0, 4.0, 12.0, 16.0\] for",
        ["train", "evaluate"],
    ),
    *of_content(
        "shares",
        each(bbox=[4 / WIDTH, 4 / HEIGHT, 12 / WIDTH, 16 / HEIGHT]),
        "4 of 4 boxes seem to be x, y, width, height in shares of the image's sides",
        ["train", "evaluate"],
    ),
    *of_content(
        "centers as shares",
        each(bbox=[10 / WIDTH, 12 / HEIGHT, 12 / WIDTH, 16 / HEIGHT]),
        "seem to be center x, center y, width, height in shares",
        ["evaluate"],
    ),
    # Names of files
    *of_content(
        "absolute name",
        one("images", file_name="/etc/passwd"),
        "name the image '/etc/passwd': expected a file in the image folder",
        ["train", "evaluate", "report"],
    ),
    *of_content(
        "name with ..",
        one("images", file_name="a/../../2.png"),
        "expected a file in the image",
        ["train", "evaluate", "report"],
    ),
    # Read, with one line that counts and names
    *of_content(
        "area of text",
        each(area="192"),
        r"4 of 4 annotations have no valid 'area' \(text: 4\)",
        ["score"],
        exit_code=0,
    ),
    *of_content("area null", each(area=None), r"\(null: 4\)", ["score"], exit_code=0),
    *of_content("area a list", each(area=[192]), r"\(a list: 4\)", ["score"], exit_code=0),
    *of_content("area NaN", each(area=NAN), r"\(not finite.*: 4\)", ["score"], exit_code=0),
    *of_content("area negative", each(area=-5), r"\(negative: 4\)", ["report"], exit_code=0),
    *of_content("area 1", each(area=1), "have another 'area' than", ["score"], exit_code=0),
    *of_content(
        "iscrowd null", each(iscrowd=None), r"\(None: 4\), .* 0 or", ["score"], exit_code=0
    ),
    *of_content("iscrowd '0'", each(iscrowd="0"), r"\('0': 4\), .* 0 or 1", ["score"], exit_code=0),
    *of_content(
        "one name twice",
        one("categories", name="square"),
        r"1 class names belong to several ids: 'square': id 1 \(4 annotations\), id 2 \(0",
        ["score"],
        exit_code=0,
    ),
    *of_content(
        "hole",
        each(segmentation=[*SQUARE, [6, 6, 6, 9, 9, 9, 9, 6]]),
        "4 annotations have a polygon within another one, which COCO fills",
        ["score"],
        exit_code=0,
    ),
    *of_content(
        "corners beside masks",
        each(bbox=[4, 4, 16, 20]),
        "4 of 4 boxes seem to be x0, y0, x1, y1",
        ["score", "report"],
        exit_code=0,
    ),
    *of_content(
        "one other box",
        one("annotations", bbox=[20, 1, 5, 5]),
        r"1 of 4 boxes differ .*: annotation 2 of image 1 \(\S+\), bbox \[20, 1, 5, 5\], of",
        ["score"],
        exit_code=0,
    ),
    # Coordinates in another unit
    *of_content(
        "all in shares",
        each(segmentation=[[0.1, 0.2, 0.5, 0.2, 0.5, 0.8]], bbox=[0.1, 0.2, 0.4, 0.6]),
        "coordinates of all 4 masks seem to be shares of the image's sides: .* for annotation 2",
        ["train", "evaluate"],
    ),
    *of_content(
        "all in shares",
        each(segmentation=[[0.1, 0.2, 0.5, 0.2, 0.5, 0.8]], bbox=[0.1, 0.2, 0.4, 0.6]),
        "coordinates of all 4 masks seem to be shares",
        ["score", "report"],
        exit_code=0,
    ),
    *boxes_alone(
        "boxes in shares", {"bbox": [0.2, 0.2, 0.4, 0.6]}, "the 4 boxes without a mask .* shares"
    ),
    *boxes_alone(
        "boxes beyond the image",
        {"bbox": [14, 14, 31, 23]},
        "4 of 4 boxes without a mask reach beyond .* are they corners",
        commands=["evaluate"],
        exit_code=0,
    ),
    # Objects that would be lost without a word
    *boxes_alone(
        "polygons that make Detectron2 drop the boxes",
        {"segmentation": [[4, 4], [5, 5, 6, 6]]},
        "no annotation is left to train on in .*: 4|4 are impossible",
        commands=["train"],
    ),
]


@table(ROWS)
def test_a_bad_annotation_file_ends_in_one_line(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)
