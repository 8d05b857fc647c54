"""Bad results, metrics and flags of `pointrend score`, `report`, `compare`, `compare-semantic`."""

import copy
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.evaluation.oracles import encoded
from tests.robustness.harness import Row, run_row, table

Content = dict[str, Any]
Words = Sequence[str | Path]
HEIGHT, WIDTH = 24, 32
SQUARE = [[4, 4, 16, 4, 16, 16, 4, 16]]
RLE = {"size": [HEIGHT, WIDTH], "counts": [100, 50, 618]}


def truth() -> Content:
    """Return annotations of two images with a square each."""
    return {
        "images": [
            {"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH} for k in (1, 2)
        ],
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}],
        "annotations": [
            {
                "id": k,
                "image_id": k,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [4, 4, 12, 12],
                "area": 144,
                "segmentation": SQUARE,
            }
            for k in (1, 2)
        ],
    }


def results() -> list[Content]:
    """Return perfect results."""
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [{key: x[key] for key in keys} | {"score": 0.9} for x in truth()["annotations"]]


def write(path: Path, content: Any) -> Path:
    """Write bytes, text, or a value as JSON."""
    if not isinstance(content, bytes | str):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def prepare(folder: Path, command: str, found: Any, gt: Any = None) -> list[str | Path]:
    """Write the files of a command, and return its words."""
    for k in (1, 2):
        cv2.imwrite(str(folder / f"{k}.png"), np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    words = [command, "--annotations", write(folder / "truth.json", gt or truth())]
    words += ["--results", f"mine={write(folder / 'results.json', found)}"]
    if command == "score":
        return words
    output = "page.html" if command == "report" else "out"
    return [*words, "--image-root", folder, "--output", folder / output]


def bad_results(name: str, found: Any, line: str, command: str = "score") -> Row:
    """Make the row of a file of results."""
    make = functools.partial(prepare, command=command, found=found)
    return Row(f"{command}: {name}", make, line)


def changed(**fields: Any) -> list[Content]:
    """Return results of which the second one is changed."""
    first, second = results()
    return [first, second | fields]


def without(key: str) -> list[Content]:
    """Return results of which the second one lacks a field."""
    first, second = results()
    del second[key]
    return [first, second]


def text_of_results(old: str, new: str) -> str:
    text = json.dumps(results())
    assert old in text
    return text.replace(old, new)


def predicted(**fields: Any) -> Content:
    """Return results as of `pointrend predict`."""
    return copy.deepcopy(truth()) | {"annotations": results()} | fields


def repeated(fields: Content) -> list[Content]:
    return [x | fields for x in results()]


ONE = "results.json: result 1 "
MASK = ONE + "has a mask whose "
FORM = [
    ("empty", "", "results.json is truncated or not JSON"),
    ("cut off", json.dumps(results())[:-9], "results.json is truncated or not JSON"),
    ("binary", b"\x89PNG\r\n\x1a\n\0\0", "results.json is not in UTF-8"),
    ("UTF-16", json.dumps(results()).encode("utf-16"), "results.json is not in UTF-8"),
    ("byte order mark", b"\xef\xbb\xbf[]", "results.json begins with a byte order mark"),
    ("deep", "[" * 100_000, "results.json is nested too deeply"),
    ("a list of many lists", "[" + "[]," * 20_000_000 + "[]]", "would take .* GiB of memory"),
    ("key twice", text_of_results('"score": 0.9', '"score": 0.9, "score": 0.1'), "twice"),
    ("number", "5", "results.json: expected a list of results.*; got int"),
    ("null", "null", "results.json: expected a list of results.*; got NoneType"),
    ("object", {"results": []}, r"expected a list of results.*; got an object with \['results'\]"),
    ("list of numbers", [1, 2], "result 0 is not an object: 1"),
    ("list of lists", [results()], "result 0 is not an object"),
    ("null among results", [*results(), None], "result 2 is not an object: None"),
]
FIELDS = [
    ("no score", without("score"), ONE + "has no 'score': it has image_id"),
    ("no image", without("image_id"), ONE + "has no 'image_id'"),
    ("no class", without("category_id"), ONE + "has no 'category_id'"),
    ("score as text", changed(score="0.9"), ONE + "has the score '0.9', expected a number"),
    ("score null", changed(score=None), ONE + "has the score None, expected a number"),
    ("score true", changed(score=True), ONE + "has the score True, expected a number"),
    ("score NaN", text_of_results("0.9}]", "NaN}]"), ONE + "has the score nan"),
    ("score infinite", text_of_results("0.9}]", "1e999}]"), ONE + "has the score inf"),
    ("score of 500 digits", text_of_results("0.9}]", "9" * 500 + "}]"), ONE + "has the score <int"),
    ("score of 9000 digits", text_of_results("0.9}]", "9" * 9000 + "}]"), "too many digits"),
    ("image as text", changed(image_id="2"), ONE + "is about image '2', which .* theirs, 1, 2"),
    ("image as share", changed(image_id=2.0), ONE + r"is about image 2\.0, which"),
    ("image unknown", changed(image_id=7), ONE + "is about image 7, which the annotations"),
    ("image true", changed(image_id=True), ONE + "is about image True, which"),
    ("image as list", changed(image_id=[2]), ONE + r"is about image \[2\], which"),
    ("class unknown", changed(category_id=0), ONE + "is of category 0, expected one of .*: 1, 2"),
    ("class as text", changed(category_id="1"), ONE + "is of category '1', expected one"),
    ("class as list", changed(category_id=[1]), ONE + r"is of category \[1\], expected one"),
    ("box of 3", changed(bbox=[1, 2, 3]), ONE + r"has the bbox \[1, 2, 3\], expected 4 numbers"),
    ("box of text", changed(bbox=["1", "2", "3", "4"]), ONE + "has the bbox"),
    ("box NaN", text_of_results("[4, 4, 12, 12]", "[4, 4, 12, NaN]"), "result 0 has the bbox"),
    ("box as object", changed(bbox={"x": 1}), ONE + r"has the bbox {'x': 1}, expected 4 numbers"),
    (
        "keypoints",
        [{"image_id": 1, "category_id": 1, "score": 1, "keypoints": [1, 2, 2]}],
        "result 0 has neither 'segmentation' nor 'bbox' .keypoints are not scored",
    ),
    ("two kinds", [*changed(score=None), *changed(image_id=7)], "result 1 .*; result 3 is about"),
    (
        "one kind many times",
        repeated({"image_id": "x"}),
        r"result 0 is about image 'x', .*\(2 of 2 results\)",
    ),
]
MASKS = [
    ("mask of text", changed(segmentation="x"), ONE + "has the segmentation 'x', expected polyg"),
    ("mask as number", changed(segmentation=5), ONE + "has the segmentation 5, expected polygons"),
    ("some without mask", without("segmentation"), "1 of 2 results have no 'segmentation'"),
    ("some with null", changed(segmentation=None), "1 of 2 results have no 'segmentation'"),
    ("some with no polygon", changed(segmentation=[]), "1 of 2 results have no 'segmentation'"),
    (
        "flat polygon",
        changed(segmentation=SQUARE[0]),
        MASK + "polygon 1 of 8 is 4, expected a list of numbers",
    ),
    ("polygon of 2 points", changed(segmentation=[[1, 2, 3, 4]]), MASK + "poly.* has 4 numbers"),
    ("polygon of 7", changed(segmentation=[[1, 1, 9, 1, 9, 9, 1]]), MASK + "poly.* has 7 numbers"),
    ("polygon of text", changed(segmentation=[["1"] * 6]), MASK + ".* not numbers, such as '1'"),
    ("polygon of null", changed(segmentation=[[None] * 6]), MASK + ".* not numbers, such as None"),
    ("polygon NaN", text_of_results("[[4, 4,", "[[NaN, 4,"), r"not finite \(2 of 2 results\)"),
    (
        "polygon far away",
        changed(segmentation=[[1, 1, 210_000_000, 1, 9, 9]]),
        MASK + "polygon 1 of 1 has the coordinate 2.1e.08, far beyond its image",
    ),
    (
        "polygon far to the left",
        changed(segmentation=[[1, 1, -2e9, 1, 9, 9]]),
        MASK + "polygon 1 of 1 has the coordinate -2e.09, far beyond its image",
    ),
    ("polygon 1e308", changed(segmentation=[[1, 1, 1e308, 1, 9, 9]]), MASK + ".*e.308, far"),
    ("another size", changed(segmentation=RLE | {"size": [WIDTH, HEIGHT]}), ONE + "has an RLE of"),
    ("huge size", changed(segmentation=RLE | {"size": [10**5, 10**5]}), ONE + "has an RLE of size"),
    ("size of text", changed(segmentation=RLE | {"size": ["24", "32"]}), ONE + "has an RLE of si"),
    ("no size", changed(segmentation={"counts": [768]}), ONE + "has an RLE of size None"),
    ("no counts", changed(segmentation={"size": [HEIGHT, WIDTH]}), ONE + "has an RLE with the co"),
    ("short", changed(segmentation=RLE | {"counts": [5, 7]}), ONE + "has an RLE of 12 pixels"),
    ("long", changed(segmentation=RLE | {"counts": [768, 2**31 - 1]}), ONE + "has an RLE of"),
    (
        "negative",
        changed(segmentation=RLE | {"counts": [-1, 769]}),
        ONE + "has an RLE with the run",
    ),
    ("floats", changed(segmentation=RLE | {"counts": [1.0, 767.0]}), ONE + "has an RLE with the r"),
    (
        "malformed",
        changed(segmentation=RLE | {"counts": "!"}),
        ONE + "has an RLE that does not dec",
    ),
    (
        "cut",
        changed(segmentation=RLE | {"counts": "oooo"}),
        ONE + "has an RLE that does not decode",
    ),
    ("not ASCII", changed(segmentation=RLE | {"counts": "\u00e9\u20ac"}), ONE + "has an RLE that"),
    ("counts null", changed(segmentation=RLE | {"counts": None}), ONE + "has an RLE with the coun"),
]
DATA_SETS = [
    ("the truth", truth(), r"none of its 2 annotations has a score: is it the ground truth\?"),
    ("unknown images", predicted(images=[{"id": 1, "file_name": "x.png"}]), r"\('x.png'\) is in"),
    ("unknown classes", predicted(categories=[{"id": 1, "name": "x"}]), r"\('x'\) is in the anno"),
    ("image without name", predicted(images=[{"id": 1}]), "image at position 0 needs an 'id' and"),
    ("image null", predicted(images=[None]), "image at position 0 needs an 'id' and a 'file_name'"),
    (
        "class without id",
        predicted(categories=[{"name": "x"}]),
        "class at position 0 needs an 'id'",
    ),
    ("id as list", predicted(images=[{"id": [1], "file_name": "1.png"}]), "image at position 0 ne"),
    ("images as object", predicted(images={}), r"got an object with \['annotations', 'categ"),
    ("result null", predicted(annotations=[None]), "result 0 is not an object: None"),
    ("image twice", predicted(images=[*truth()["images"], truth()["images"][0]]), "id 1 is given"),
    (
        "name twice",
        predicted(images=[{"id": k, "file_name": "1.png"} for k in (1, 2)]),
        "1 images have a name twice, '1.png'",
    ),
    (
        "other size",
        predicted(images=[x | {"width": 99} for x in truth()["images"]]),
        r"the image '1.png' is of \(height, width\) \(24, 99\), in the annotations of \(24, 32\)",
    ),
    (
        "lost image",
        predicted(annotations=changed(image_id=9)),
        "result 1 has the image_id 9, which",
    ),
    (
        "lost class",
        predicted(annotations=changed(category_id=[])),
        r"result 1 has the category_id ",
    ),
]
ROWS = [bad_results(*case) for case in (*FORM, *FIELDS, *MASKS, *DATA_SETS)]
ROWS += [  # the same function reads them
    bad_results(*case, command)
    for command in ("report", "compare")
    for case in (*FORM[::4], *FIELDS[::6], *MASKS[::5], *DATA_SETS[::5])
]


def flags(command: str, *words: str | Path, file: Callable[[Path], Any] | None = None) -> Any:
    """Make good files, then others, and add words to the command."""

    def make(folder: Path) -> Words:
        made = prepare(folder, command, results())
        if file is not None:
            file(folder)
        return [*made, *words]

    return make


def link(name: str, target: str, make: Callable[..., None] = os.symlink) -> Any:
    return lambda folder: make(folder / target, folder / name)


def run_with(content: Any) -> Callable[[Path], None]:
    """Write a metrics.json."""

    def make(folder: Path) -> None:
        (folder / "run").mkdir()
        write(folder / "run" / "metrics.json", content)

    return make


def with_image(name: str, command: str = "report") -> Callable[[Path], Words]:
    """Give the first image of the annotations a name; a picture lies beside the folder."""

    def make(folder: Path) -> Words:
        gt = truth()
        gt["images"][0]["file_name"] = name.format(folder=folder)
        cv2.imwrite(f"{folder}.png", np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
        return prepare(folder, command, results(), gt)

    return make


def kept(name: str, content: bytes) -> Callable[[Path], None]:
    """Assert that a file is unchanged."""

    def check(folder: Path) -> None:
        assert (folder / name).read_bytes() == content

    return check


TRUTH = json.dumps(truth()).encode()
FOUND = json.dumps(results()).encode()
METRICS_LINE = json.dumps({"iteration": 1, "total_loss": 2.0})
RUN = ("--run", "run")
OVERWRITTEN = "--output: .* is the input .*, which would be overwritten"
OTHER = "exists, and this command has not written it"
OUTSIDE = "the annotations name the image .*: expected a file in the image folder"
NUMBERS = ["-1", "nan", "inf", "1e99", "1.5"]
ROWS += [
    *[
        Row(
            f"{command}: --min-score {value}",
            flags(command, "--min-score", value),
            f"--min-score: expected 0 to 1, got {float(value)}".replace("+", "."),
        )
        for command in ("report", "compare")
        for value in NUMBERS
    ],
    *[
        Row(
            f"{command}: --max-dets {value}",
            flags(command, "--max-dets", value),
            f"--max-dets: expected 1 to 1000000, or -1 .*, got {value}",
        )
        for command in ("score", "report", "compare")
        for value in ("0", "-2", "1000001", "9" * 30)
    ],
    Row("report: --items 0", flags("report", "--items", "0"), "--items: expected 1 or more, got 0"),
    Row("compare: --num-images -1", flags("compare", "--num-images", "-1"), "expected 0 or more"),
    Row(
        "compare: no image folder",
        flags("compare", "--image-root", "nowhere"),
        "--image-root: there is no folder nowhere",
    ),
    # Nothing of the user's is overwritten.
    Row("report over the results", flags("report", "--output", "results.json"), OVERWRITTEN),
    Row("score over the truth", flags("score", "--output", "./truth.json"), OVERWRITTEN),
    Row(
        "score over the results by a link",
        flags("score", "--output", "a.json", file=link("a.json", "results.json")),
        OVERWRITTEN,
        then=kept("results.json", FOUND),
    ),
    Row(
        "report over the truth by a hard link",
        flags("report", "--output", "a.html", file=link("a.html", "truth.json", os.link)),
        OVERWRITTEN,
        then=kept("truth.json", TRUTH),
    ),
    Row(
        "report over the metrics",
        flags("report", *RUN, "--output", "run/metrics.json", file=run_with(METRICS_LINE)),
        OVERWRITTEN,
    ),
    Row(
        "report over a page of somebody else",
        flags("report", "--output", "a.html", file=lambda x: write(x / "a.html", "<html>")),
        OTHER,
        then=kept("a.html", b"<html>"),
    ),
    Row(
        "score over a checkpoint",
        flags("score", "--output", "a.pth", file=lambda x: write(x / "a.pth", b"PK\3\4")),
        OTHER,
        then=kept("a.pth", b"PK\3\4"),
    ),
    Row(
        "score over another JSON file",
        flags("score", "--output", "a.json", file=lambda x: write(x / "a.json", {"lr": 1})),
        OTHER,
    ),
    Row(
        "score over a pipe",
        flags("score", "--output", "a", file=lambda x: os.mkfifo(x / "a")),
        "pipe",
    ),
    Row(
        "compare over the photographs",
        flags("compare", "--output", ".", file=link("01.jpg", "1.png", os.link)),
        OVERWRITTEN,
    ),
    # Pictures are read from the image folder only.
    *[
        Row(f"{command}: image {name}", with_image(name, command), OUTSIDE)
        for command in ("report", "compare")
        for name in ("{folder}.png", "../a.png", "a/../../b.png", "/etc/hostname")
    ],
    # Other inputs.
    Row(
        "results as a pipe",
        flags("score", "--results", "a", file=lambda x: os.mkfifo(x / "a")),
        "result file a: a pipe, expected a file",
    ),
    Row("results as a folder", flags("score", "--results", "."), "a folder, expected a file"),
    Row("results as a device", flags("score", "--results", "/dev/zero"), "a device, expected a f"),
    Row("no results", flags("score", "--results", "nowhere"), "result file does not exist"),
    Row("no run", flags("report", *RUN), "run folder run does not exist"),
]
ROWS += [
    Row(
        f"metrics: {name}", flags("report", *RUN, file=run_with(content)), "metrics.json: line 1 is"
    )
    for name, content in {
        "text": "hello\n\n",
        "binary": b"\x89PNG\r\n\x1a\n\0\0\n{}\n",
        "list": "[1]\n{}\n",
        "no iteration": '{"total_loss": 1}\n{}\n',
        "iteration as text": '{"iteration": "1"}\n{}\n',
        "iteration as list": '{"iteration": [1]}\n{}\n',
        "iteration NaN": '{"iteration": NaN}\n{}\n',
        "huge iteration": '{"iteration": 1' + "0" * 400 + "}\n{}\n",
        "deep": "[" * 100_000 + "\n{}\n",
    }.items()
]


def semantic(
    *words: str | Path, name: str = "images/a.png", **fields: Any
) -> Callable[[Path], Words]:
    """Write an image, a label map and a result of which some fields are changed."""

    def make(folder: Path) -> Words:
        for part in ("images", "labels"):
            (folder / part).mkdir()
            cv2.imwrite(str(folder / part / "a.png"), np.zeros((HEIGHT, WIDTH), np.uint8))
        mask = {
            "size": [HEIGHT, WIDTH],
            "counts": encoded(np.ones((HEIGHT, WIDTH), bool))["counts"],
        }
        record = {"file_name": name, "category_id": 0, "segmentation": mask} | fields
        write(folder / "results.json", [record])
        made = ["compare-semantic", "--images", "images", "--labels", "labels", "--output", "out"]
        return [*made, "--classes", "sky,road", "--results", "results.json", *words]

    return make


def crowded(*words: str, gt: bool = True, count: int = 101) -> Callable[[Path], Words]:
    """Give an image one object or many, and as many results."""

    def make(folder: Path) -> Words:
        content = truth()
        first = content["annotations"][0]
        if gt:
            content["annotations"] = [first | {"id": k} for k in range(1, count + 1)]
        return [*prepare(folder, "score", results()[:1] * count, content), *words]

    return make


def lvis_images(height: int = HEIGHT) -> Iterator[Content]:
    for k in (1, 2):
        fields = {"id": k, "coco_url": f"http://a/val2017/{k}.png", "height": height}
        yield fields | {"width": WIDTH, "neg_category_ids": [], "not_exhaustive_category_ids": []}


def lvis(**fields: Any) -> Callable[[Path], Words]:
    """Add annotations in the form of LVIS, of which some fields are changed."""

    def make(folder: Path) -> Words:
        content = truth() | {"images": [*lvis_images()]}
        for category in content["categories"]:
            category |= {"frequency": "f", "synset": "a.n.01", "synonyms": [category["name"]]}
        file = write(folder / "lvis.json", content | fields)
        return [*prepare(folder, "score", results()), "--lvis-annotations", file]

    return make


LIMITED = "only the best 100 results of an image and class count"
BOXES = [x | {"segmentation": []} for x in results()]
ROWS += [  # Good input, with a word about the result.
    Row(f"score: {name}", make, line, exit_code=0)
    for name, make, line in (
        ("101 objects", crowded(), f"1 image has more than 100 objects .*{LIMITED}"),
        ("101 results", crowded(gt=False), f"1 image has more than 100 results .*{LIMITED}"),
        ("101 objects with a higher limit", crowded("--max-dets", "101"), r"^AP +100\.0"),
        (
            "lists without polygons",
            functools.partial(prepare, command="score", found=BOXES),
            "box AP",
        ),
        (
            "results given twice",
            functools.partial(prepare, command="score", found=results() * 2),
            "2 of 4 results repeat another one, such as in image 1; they count as wrong",
        ),
        ("no results", functools.partial(prepare, command="score", found=[]), "no results at all"),
        (
            "boxes as corners",
            functools.partial(
                prepare,
                command="score",
                found=[x | {"bbox": [20, 14, 30, 20], "segmentation": None} for x in results()],
            ),
            "2 of 2 boxes reach beyond .* are they corners",
        ),
        (
            "boxes as fractions",
            functools.partial(
                prepare,
                command="score",
                found=[x | {"bbox": [0.1, 0.1, 0.5, 0.5], "segmentation": None} for x in results()],
            ),
            "are they fractions of the image",
        ),
        (
            "masks as fractions",
            functools.partial(
                prepare,
                command="score",
                found=repeated({"segmentation": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.6]]}),
            ),
            "no mask reaches beyond the first pixel: .* are they fractions of the image",
        ),
        ("of predict", functools.partial(prepare, command="score", found=predicted()), r"^AP +100"),
        ("with LVIS", lvis(), r"^AP\* +100"),
    )
]
ROWS += [
    Row(f"LVIS: {name}", lvis(**fields), line)
    for name, fields, line in (
        ("no images", {"images": []}, "lvis.json: expected at least one image, found none"),
        ("null", {"images": None}, "lvis.json is not in COCO's instances format"),
        ("other classes", {"categories": [{"id": 1, "name": "x", "frequency": "f"}]}, "lvis.json"),
        ("no frequency", {"categories": truth()["categories"]}, "has no valid 'synset'"),
        ("no lists of classes", {"images": truth()["images"]}, "lvis.json: image at position 0"),
        (
            "another size",
            {"images": [*lvis_images(height=99)]},
            r"image 1 is of \(height, width\) \(99, 32\), in .*truth.json of \(24, 32\)",
        ),
    )
]
FORMAT = "is not a sem_seg_predictions.json"
ROWS += [
    Row(f"compare-semantic: {name}", make, line)
    for name, make, line in (
        ("pictures over the labels", semantic("--output", "labels"), OVERWRITTEN),
        ("pictures over the images", semantic("--output", "images"), OVERWRITTEN),
        (
            "class beyond the last",
            semantic(category_id=2),
            "prediction 0 is of class 2, expected 0",
        ),
        ("class below 0", semantic(category_id=-1), "prediction 0 is of class -1, expected 0 to 1"),
        ("class as text", semantic(category_id="0"), FORMAT),
        (
            "image elsewhere",
            semantic(name="/etc/hostname"),
            "refers to .*, which is not in --images",
        ),
        ("image above", semantic(name="images/../b.png"), "refers to .*, which is not in --images"),
        (
            "image without labels",
            semantic(name="images/b.png"),
            "there is no label map labels/b.png",
        ),
        ("image without a name", semantic(name=""), "which is not in --images"),
        ("null character", semantic(name="images/\0"), "null"),
        (
            "huge size",
            semantic(segmentation={"size": [10**6] * 2, "counts": "0"}),
            "0 has an RLE th",
        ),
        (
            "malformed mask",
            semantic(segmentation={"size": [HEIGHT, WIDTH], "counts": "!"}),
            "not dec",
        ),
        ("mask of another size", semantic(segmentation={"size": [2, 2], "counts": "4"}), "a.png"),
        ("mask null", semantic(segmentation=None), FORMAT),
        ("pictures -1", semantic("--num-images", "-1"), "--num-images: expected 0 or more, got -1"),
        ("no images", semantic("--images", "nowhere"), "--images: there is no folder nowhere"),
    )
]


@table(ROWS)
def test_a_bad_input_ends_in_one_line(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)
