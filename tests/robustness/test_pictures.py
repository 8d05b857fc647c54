"""Pictures, label maps and folders that no one can use, or not as they are."""

import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from tests.robustness.harness import Row, run_row, table
from tests.robustness.test_predicting import plant
from tests.tiny_datasets import POINTREND, REPOSITORY, TINY_MODEL

WIDTH, HEIGHT = 48, 32
RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
LABELS = RNG.integers(0, 2, (HEIGHT // 8, WIDTH // 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
SEMANTIC = str(REPOSITORY / "configs" / "Demo" / "pointrend_semantic_streets.yaml")

Make = Callable[[Path], None]  # makes a file


def content(data: bytes) -> Make:
    return lambda path: path.write_bytes(data) and None


def saved(image: Image.Image, form: str, **options: Any) -> Make:
    return lambda path: image.save(path, format=form, **options)


def cut(image: Image.Image, form: str, share: float) -> Make:
    def make(path: Path) -> None:
        image.save(path, format=form)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return make


def png(width: int, height: int, data: bytes = b"", bits: int = 8, mode: int = 2) -> bytes:
    """Write a PNG of a declared size."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, mode, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    )
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x4c\1\0;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, *6 * [0])


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def link(target: str) -> Make:
    def make(path: Path) -> None:
        remove(path)
        path.symlink_to(target)

    return make


def folder_instead(path: Path) -> None:
    remove(path)
    path.mkdir()


def pipe(path: Path) -> None:
    remove(path)
    os.mkfifo(path)


def numbers(values: Any, dtype: Any) -> Image.Image:
    return Image.fromarray(np.full((HEIGHT, WIDTH), values, dtype))


# Files in place of a picture, and how they are named.
FILES: dict[str, tuple[Make, str]] = {
    "empty": (content(b""), r"is empty \(0 bytes\)"),
    "text": (content(b"not a picture\n"), "is not an image, but a text"),
    "zeros": (content(bytes(4096)), "is not an image: it begins with zeros"),
    "pointer of Git LFS": (content(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pul"),
    "web page": (content(b"<!DOCTYPE html><html>404"), "is not an image, but a web page"),
    "SVG": (content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "is SVG, which is not support"),
    "HEIC": (content(b"\0\0\0\x18ftypheic\0\0\0\0"), "is HEIC, which is not supported: convert"),
    "raw of Canon": (content(b"\0\0\0\x18ftypcrx "), "is a raw file of a camera, which is not sup"),
    "raw of Adobe": (
        saved(RGB, "TIFF", tiffinfo={50706: b"\1\4\0\0"}),
        "is a raw file of a camera",
    ),
    "PostScript": (content(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is PostScript"),
    "video": (content(b"\0\0\0\x18ftypisom"), "is not an image, but a video"),
    "truncated PNG": (cut(RGB, "PNG", 0.6), "is truncated or broken"),
    "truncated JPEG": (cut(RGB, "JPEG", 0.6), "is truncated or broken"),
    "truncated TIFF": (cut(RGB, "TIFF", 0.6), "is truncated or"),
    "truncated WebP": (cut(RGB, "WEBP", 0.6), "is truncated or"),
    "truncated BMP": (cut(RGB, "BMP", 0.6), "is truncated or broken"),
    "head of a JPEG": (content(b"\xff\xd8\xff\xe0\0\x10JFIF\0"), "is truncated or"),
    "PNG without pixels": (content(png(WIDTH, HEIGHT)), "is truncated or broken"),
    "PNG of no width": (content(png(0, HEIGHT)), "0 x 32 pixels|is truncated or"),
    "PNG of 50,000 x 50,000": (content(png(50_000, 50_000)), "is too large: it has 2500000000 pix"),
    "PNG of 2^31 - 1": (content(png(2**31 - 1, 2**31 - 1)), "is too large"),
    "GIF of 65,535 x 65,535": (content(gif(65_535, 65_535)), "is too large: it has 4294836225 pi"),
    "BMP of 60,000 x 60,000": (content(bmp(60_000, 60_000)), "is too large: it has 3600000000 pi"),
    "GIF of 13,000 x 13,000": (content(gif(13_000, 13_000)), "is truncated or broken"),
    "fractions beyond 1": (
        saved(numbers(255, np.float32), "TIFF"),
        "values from 255 to 255: expect",
    ),
    "not a number": (
        saved(numbers(np.nan, np.float32), "TIFF"),
        "values from nan to nan: expected",
    ),
    "32 bits": (saved(numbers(1 << 20, np.int32), "TIFF"), "32-bit values from 1048576 to 1048576"),
    "folder": (folder_instead, "cannot be read: a folder, expected a file"),
    "pipe": (pipe, "cannot be read: a pipe, expected a file"),
    "device": (link("/dev/zero"), "cannot be read: a device, expected a file"),
    "link to nothing": (link("nowhere"), "there is no image|do(es)? not exist"),
    "link to itself": (link("0.png"), "Too many levels of symbolic links|do(es)? not exist"),
}


# Commands that read it


def photographs(folder: Path) -> None:
    (folder / "images").mkdir()
    RGB.save(folder / "images" / "0.png")
    corners = [[4, 4, 40, 4, 40, 28, 4, 28]]
    objects = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 36, 24], "area": 864}
    objects |= {"segmentation": corners, "iscrowd": 0}
    images = [{"id": 1, "file_name": "0.png", "width": WIDTH, "height": HEIGHT}]
    coco = {"images": images, "annotations": [objects], "categories": [{"id": 1, "name": "a"}]}
    (folder / "coco.json").write_text(json.dumps(coco))


def label_maps(folder: Path) -> None:
    for name, image in {"images": RGB, "labels": Image.fromarray(LABELS)}.items():
        (folder / name).mkdir()
        image.save(folder / name / "0.png")


def train(folder: Path) -> list[str]:
    photographs(folder)
    words = ["train", "--config-file", POINTREND, "--register-coco", "mine", "coco.json", "images"]
    return [*words, *TINY_MODEL, "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "()"]


def train_semantic(folder: Path) -> list[str]:
    label_maps(folder)
    words = ["train", "--config-file", SEMANTIC, "--register-sem-seg", "mine"]
    words += ["images", "labels", "ground,object", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    return [*words, "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "()"]


def compare(folder: Path) -> list[str]:
    photographs(folder)
    runs = mask_util.encode(np.asfortranarray(np.ones((HEIGHT, WIDTH), np.uint8)))
    runs["counts"] = runs["counts"].decode()
    result = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [0, 0, WIDTH, HEIGHT]}
    (folder / "results.json").write_text(json.dumps([result | {"segmentation": runs}]))
    words = ["--annotations", "coco.json", "--image-root", "images", "--results", "a=results.json"]
    return ["compare", *words, "--output", "out"]


def report(folder: Path) -> list[str]:
    _, *words, _, _ = compare(folder)
    return ["report", *words, "--output", "page.html"]


def compare_semantic(folder: Path) -> list[str]:
    label_maps(folder)
    results: list[dict[str, Any]] = []
    for category in range(2):
        runs = mask_util.encode(np.asfortranarray(category == LABELS).astype(np.uint8))
        runs["counts"] = runs["counts"].decode()
        results.append({"file_name": "images/0.png", "category_id": category})
        results[-1]["segmentation"] = runs
    (folder / "results.json").write_text(json.dumps(results))
    words = ["--images", "images", "--labels", "labels", "--results", "a=results.json"]
    return ["compare-semantic", *words, "--classes", "ground,object", "--output", "out"]


def planted(command: str, folder: Path) -> list[str]:
    photographs(folder)
    for name in ("1.png", "2.png"):
        RGB.save(folder / "images" / name)
    given = "images" if command == "predict" else "images/0.png"
    words = [command, "--config-file", POINTREND, "--input", given, "--output", "out"]
    return [*words, "--opts", *TINY_MODEL, "MODEL.WEIGHTS", "planted.pkl"]


def predict(folder: Path) -> list[str]:
    return planted("predict", folder)


def visualize(folder: Path) -> list[str]:
    return planted("visualize", folder)


def with_file(command: Callable[[Path], Sequence[str]], path: str, make: Make) -> Any:
    """Return a function that prepares a command and then makes a file of its."""

    def prepare(folder: Path) -> Sequence[str]:
        words = command(folder)
        make(folder / path)
        return words

    return prepare


def rows_of(
    reader: str, command: Callable[[Path], Sequence[str]], path: str, names: Sequence[str]
) -> list[Row]:
    return [
        Row(f"{reader}: {name}", with_file(command, path, FILES[name][0]), FILES[name][1])
        for name in names
    ]


SOME = ("empty", "text", "truncated PNG", "PNG of 50,000 x 50,000", "pipe", "HEIC")
ROWS = [
    *rows_of("visualize", visualize, "images/0.png", SOME),
    *rows_of("compare", compare, "images/0.png", list(FILES)),
    *rows_of("report", report, "images/0.png", SOME),
    *rows_of("photograph of compare-semantic", compare_semantic, "images/0.png", SOME),
    *rows_of("label map of compare-semantic", compare_semantic, "labels/0.png", SOME),
    *rows_of("train", train, "images/0.png", [*SOME, "device", "fractions beyond 1"]),
    *rows_of("label map", train_semantic, "labels/0.png", [*SOME, "device", "folder"]),
    *rows_of("photograph of a label map", train_semantic, "images/0.png", SOME),
]


# Label maps


def labels(image: Image.Image, form: str = "PNG", **options: Any) -> Any:
    return with_file(train_semantic, "labels/0.png", saved(image, form, **options))


def gray(values: Any) -> Image.Image:
    return Image.fromarray(np.asarray(values).astype(np.uint8))


SMOOTH = Image.fromarray(LABELS * np.uint8(255)).resize((WIDTH // 2, HEIGHT // 2))
ROWS += [
    Row(
        "labels 1 to 2", labels(gray(LABELS + 1)), "values 2: .* labels from 1 to 2 have to be low"
    ),
    Row("labels of 0 and 254", labels(gray(LABELS * 254)), "values 254: expected 0 to 1, and 255"),
    Row(
        "blended", labels(SMOOTH.resize((WIDTH, HEIGHT))), "more: .* resized without interpolation"
    ),
    Row("JPEG", labels(gray(LABELS * 200), "JPEG"), "has the values .* expected 0 to 1"),
    Row("another size", labels(gray(LABELS[1:])), "48 x 31 pixels, its image 48 x 32"),
    Row("colors", labels(RGB), "of mode RGB, which codes classes by colors: .* by an index"),
    Row("gray in colors", labels(gray(LABELS).convert("RGB")), "gray, so save it with one channel"),
    Row("opacity", labels(gray(LABELS).convert("LA")), "of mode LA: .* save it with one channel"),
    Row(
        "fractions", labels(numbers(0.5, np.float32), "TIFF"), "mode F, with floating-point values"
    ),
    Row("16 bits", labels(numbers(300, np.uint16)), "has the values 300: expected 0 to 1"),
    Row(
        "32 bits", labels(numbers(1 << 20, np.int32), "TIFF"), "has the values 1048576: expected 0"
    ),
    Row("negative", labels(numbers(-1, np.int32), "TIFF"), "has negative values, down to -1"),
    Row("all ignored", labels(gray(numbers(255, np.uint8))), "no pixel is labeled in mine"),
    Row("missing", with_file(train_semantic, "labels/0.png", remove), "do not exist: labels/0.png"),
]


# Sizes, orientation and folders


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    RGB.save(path, exif=exif)


def of_url(folder: Path) -> Sequence[str]:
    words = train(folder)
    text = (folder / "coco.json").read_text()
    (folder / "coco.json").write_text(text.replace('"0.png"', '"s3://bucket/0.png"'))
    return words


def no_images(folder: Path) -> Sequence[str]:
    words = train_semantic(folder)
    (folder / "images" / "0.png").rename(folder / "images" / "._0.png")
    return words


def two_suffixes(folder: Path) -> Sequence[str]:
    words = train_semantic(folder)
    RGB.save(folder / "images" / "0.jpg")
    return words


def set_a_wrong_limit() -> None:
    os.environ["POINT_REND_MAX_PIXELS"] = "many"


def set_a_low_limit() -> None:
    os.environ["POINT_REND_MAX_PIXELS"] = "1000"


def forbid() -> None:
    """Refuse one file, whoever runs the tests."""
    real = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if str(path).endswith("0.png"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **options)

    os.open = refuse


EXIF_TURNS = r"32 x 48 pixels, expected 48 x 32, which is its size before its EXIF orientation"
ROWS += [
    Row("turned photograph", with_file(train, "images/0.png", turned), EXIF_TURNS),
    Row(
        "turned photograph of a label map",
        with_file(train_semantic, "images/0.png", turned),
        "its image 32 x 48 after its EXIF orientation turns it; remove the orientation",
    ),
    Row("URL of a photograph", of_url, "s3://bucket/0.png"),
    Row("no images but stray ones", no_images, "no images in images: expected .jpg"),
    Row("two images of one name", two_suffixes, "0.png have the same name, but one label map"),
    Row("limit of no number", compare, "MAX_PIXELS: expected a number", first=set_a_wrong_limit),
    Row(
        "low limit",
        train_semantic,
        "48 x 32 pixels, the limit is 1000; .* POINT_REND_MAX_PIXELS",
        first=set_a_low_limit,
    ),
    Row("no permission", compare, "images/0.png cannot be read: Permission denied", first=forbid),
    Row(
        "image order of 16 bits", lambda f: [*train(f), "INPUT.FORMAT", "I;16"], "INPUT.FORMAT must"
    ),
]


# Loaders of Detectron2, and archives

TOWN = "datasets/cityscapes/leftImg8bit/train/town"


def built_in(*names: str, config: str = POINTREND, make: Make = lambda _: None) -> Any:
    """Return a function that trains on built-in data sets, of which `make` writes a part."""

    def prepare(folder: Path) -> list[str]:
        make(folder)
        words = ["train", "--config-file", config, *(TINY_MODEL if config == POINTREND else ())]
        return [*words, "DATASETS.TRAIN", str(names), "DATASETS.TEST", "()"]

    return prepare


def town(folder: Path) -> None:
    (folder / TOWN).mkdir(parents=True)
    RGB.save(folder / TOWN / "town_000000_000000_leftImg8bit.png")
    for name in ("._town_000000_000000_leftImg8bit.png", ".DS_Store"):
        (folder / TOWN / name).touch()
    (folder / TOWN).with_name("Thumbs.db").touch()


def foreign_file(folder: Path) -> None:
    town(folder)
    (folder / TOWN / "notes.txt").touch()


def ade20k(label: Make) -> Callable[[Path], Sequence[str]]:
    def prepare(folder: Path) -> list[str]:
        for kind in ("images", "annotations"):
            for split in ("training", "validation"):
                (folder / "ADE" / kind / split).mkdir(parents=True)
        RGB.save(folder / "ADE/images/training/0.jpg")
        label(folder / "ADE/annotations/training/0.png")
        (folder / "ADE/annotations/training/._0.png").touch()
        return ["prepare-ade20k", "ADE"]

    return prepare


ROWS += [
    Row("unknown data set", built_in("mine"), "data set 'mine' is not registered"),
    Row(
        "Cityscapes without files",
        built_in("cityscapes_fine_instance_seg_train"),
        "cityscapes_fine_instance_seg_train cannot be loaded: .*datasets/cityscapes/leftImg8bit",
    ),
    Row(
        "Cityscapes without labels",
        built_in("cityscapes_fine_instance_seg_train", make=town),
        "there is no file datasets/cityscapes/gtFine/train/town/town_000000_000000_gtFine_instance",
    ),
    Row(
        "Cityscapes with a foreign file",
        built_in("cityscapes_fine_instance_seg_train", make=foreign_file),
        "notes.txt in .*leftImg8bit/train.* is not named like an image of Cityscapes",
    ),
    Row(
        "ADE20K without files",
        built_in("ade20k_sem_seg_train", config=SEMANTIC),
        "ade20k_sem_seg_train cannot be loaded: .*datasets/ADEChallengeData2016",
    ),
    Row("label map of ADE20K: empty", ade20k(content(b"")), "0.png is empty"),
    Row("label map of ADE20K: colors", ade20k(saved(RGB, "PNG")), "0.png is of mode RGB, which co"),
    Row(
        "label map of ADE20K: values", ade20k(saved(gray(LABELS + 150), "PNG")), "values up to 151"
    ),
]


# Predictions go on with the others


def two_results(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "out").glob("*.png")) == ["1.png", "2.png"]


ROWS += [
    Row(
        f"predict: {name}",
        with_file(predict, "images/0.png", FILES[name][0]),
        FILES[name][1],
        exit_code=1,
        first=plant,
        then=two_results,
    )
    for name in ("empty", "truncated JPEG", "PNG of 50,000 x 50,000", "GIF of 65,535 x 65,535")
]


@table(ROWS)
def test_unusable_pictures_end_in_one_line(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)


# Pictures that are accepted

GOOD: dict[str, Make] = {
    "16 bits": saved(
        Image.fromarray(RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16)), "PNG"
    ),
    "CMYK": saved(RGB.convert("CMYK"), "TIFF"),
    "CIELAB": saved(Image.frombytes("LAB", RGB.size, RGB.tobytes()), "TIFF"),
    "palette with opacity": saved(RGB.convert("P"), "PNG", transparency=bytes(range(256))),
    "several frames": saved(RGB, "GIF", save_all=True, append_images=[RGB.rotate(90)]),
    "broken EXIF": saved(RGB, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0"),
}


@pytest.mark.parametrize("name", GOOD)
def test_unusual_pictures_are_predicted(name: str, tmp_path: Path) -> None:
    row = Row(name, with_file(predict, "images/0.png", GOOD[name]), "", 0, first=plant)
    run_row(row, tmp_path)
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
