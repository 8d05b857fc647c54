"""The built-in data set in the layout of Cityscapes, read by the tools for Cityscapes."""

import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import id2label, name2label
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.cityscapes import (
    load_cityscapes_instances,
    load_cityscapes_semantic,
)
from detectron2.evaluation import CityscapesSemSegEvaluator
from detectron2.structures import Instances
from PIL import Image

from point_rend.data.shapes import __main__, coco
from point_rend.data.shapes import cityscapes as cityscapes_layout
from point_rend.data.shapes.cityscapes import CityscapesSplit, generate_cityscapes, label_images
from point_rend.data.shapes.streets import STUFF, THINGS, Part, draw_street
from point_rend.evaluation import cityscapes_scripts  # noqa: F401
from point_rend.evaluation.cityscapes_evaluators import TidyCityscapesInstanceEvaluator

SIZE = (96, 160)
KINDS = ("labelIds", "labelTrainIds", "instanceIds", "color")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CityscapesSplit]:
    folder = tmp_path_factory.mktemp("data") / "cityscapes"
    return generate_cityscapes(folder, num_train=6, num_val=3, image_size=SIZE, seed=2)


def annotations(split: CityscapesSplit, ending: str) -> list[Path]:
    return sorted(split.gt_dir.glob(f"*/*_gtFine_{ending}"))


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def square(label: str, left: int, top: int, side: int) -> Part:
    right, bottom = left + side - 1, top + side - 1
    return Part(label, np.array([(left, top), (right, top), (right, bottom), (left, bottom)]))


def test_names_and_formats_are_those_of_cityscapes(dataset):
    for split, count in (("train", 6), ("val", 3)):
        images = sorted(dataset[split].image_dir.rglob("*.png"))
        assert len(images) == count
        for path in images:
            stem = path.name.removesuffix("_leftImg8bit.png")
            assert re.fullmatch(r"[a-z]+_\d{6}_\d{6}", stem)
            assert stem.startswith(path.parent.name)
            assert read(path).shape == (*SIZE, 3)
            annotated = dataset[split].gt_dir / path.parent.name
            found = {file.name.removeprefix(f"{stem}_gtFine_") for file in annotated.iterdir()}
            assert {f"{kind}.png" for kind in KINDS} | {"polygons.json"} <= found
            dtypes = [read(annotated / f"{stem}_gtFine_{kind}.png").dtype for kind in KINDS[:2]]
            assert dtypes == [np.uint8, np.uint8]
    assert {path.name for path in dataset["val"].gt_dir.parents[1].iterdir()} == {
        "gtFine",
        "leftImg8bit",
        "shapes.json",
    }


def test_the_scripts_draw_the_same_label_images_from_the_polygons(dataset):
    for path in annotations(dataset["train"], "polygons.json"):
        annotation = Annotation()
        annotation.fromJsonFile(str(path))
        for kind, encoding in (("labelIds", "ids"), ("labelTrainIds", "trainIds")):
            ours = read(path.with_name(path.name.replace("polygons.json", f"{kind}.png")))
            assert ours.dtype == np.uint8
            np.testing.assert_array_equal(ours, np.asarray(createLabelImage(annotation, encoding)))
        ours = read(path.with_name(path.name.replace("polygons.json", "instanceIds.png")))
        theirs = np.asarray(createInstanceImage(annotation, "ids"))
        np.testing.assert_array_equal(ours.astype(np.int32), theirs)
        ours = read(path.with_name(path.name.replace("polygons.json", "color.png")))
        theirs = np.asarray(createLabelImage(annotation, "color"))[..., :3]
        np.testing.assert_array_equal(ours, theirs)


def test_later_polygons_hide_earlier_ones_and_instances_are_numbered_per_class():
    parts = [square("road", 0, 2, 6), square("car", 1, 3, 4), square("bus", 4, 4, 2)]
    images = label_images([*parts, square("car", 0, 6, 2), square("static", 5, 2, 1)], (8, 6))
    expected = np.array(
        [
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0],
            [7, 7, 7, 7, 7, 4],
            [7, 26000, 26000, 26000, 26000, 7],
            [7, 26000, 26000, 26000, 28000, 28000],
            [7, 26000, 26000, 26000, 28000, 28000],
            [26001, 26001, 26000, 26000, 26000, 7],
            [26001, 26001, 7, 7, 7, 7],
        ]
    )
    assert images["instanceIds"].dtype == np.uint16
    np.testing.assert_array_equal(images["instanceIds"], expected)
    ids = np.where(expected >= 1000, expected // 1000, expected)
    np.testing.assert_array_equal(images["labelIds"], ids)
    for train_id, label_id in ((255, 0), (255, 4), (0, 7), (13, 26), (15, 28)):
        assert np.all(images["labelTrainIds"][ids == label_id] == train_id)
        assert np.all(images["color"][ids == label_id] == id2label[label_id].color)


def test_the_19_classes_of_the_benchmark_are_drawn_and_little_is_void():
    images = [
        label_images(draw_street(np.random.default_rng([5, i]), SIZE).parts, SIZE)["labelTrainIds"]
        for i in range(24)
    ]
    counts = np.bincount(np.stack(images).ravel(), minlength=256)
    assert set(np.flatnonzero(counts)) == {*range(19), 255}
    assert 0.01 < counts[255] / counts.sum() < 0.12
    with_instances = {label for label in THINGS if name2label[label].hasInstances}
    assert with_instances == set(THINGS)
    assert not any(name2label[label].hasInstances for label in STUFF)


def test_a_label_lies_where_its_color_was_painted():
    """The hue inside an unoccluded object is that of its class."""
    checked = 0
    for i in range(6):
        street = draw_street(np.random.default_rng([9, i]), SIZE)
        ids = label_images(street.parts, SIZE)["labelIds"]
        hue = cv2.cvtColor(street.image, cv2.COLOR_BGR2HSV)[..., 0].astype(int)
        for label, (wanted, _) in THINGS.items():
            inner = cv2.erode((ids == name2label[label].id).astype(np.uint8), np.ones((3, 3)))
            if inner.sum() > 20:
                off = np.abs((hue[inner > 0] - wanted + 90) % 180 - 90)
                assert np.median(off) <= 12, (i, label)
                checked += 1
    assert checked >= 10


def test_detectron2_reads_the_semantic_annotation(dataset):
    records = load_cityscapes_semantic(str(dataset["val"].image_dir), str(dataset["val"].gt_dir))
    assert len(records) == 3
    for record in records:
        assert (record["height"], record["width"]) == SIZE
        assert read(Path(record["sem_seg_file_name"])).shape == SIZE


class SerialPool:
    """Replaces the processes that Detectron2 starts and never ends."""

    def __init__(self, processes: int) -> None:  # noqa: ARG002
        self.map = lambda function, items: [function(item) for item in items]


@pytest.mark.filterwarnings("ignore:The 'resolution' argument:DeprecationWarning")
@pytest.mark.parametrize("from_json", [True, False])
def test_detectron2_reads_the_instances(dataset, from_json, monkeypatch):
    monkeypatch.setattr("detectron2.data.datasets.cityscapes.mp.Pool", SerialPool)
    image_dir, gt_dir = map(str, dataset["val"])
    records = load_cityscapes_instances(image_dir, gt_dir, from_json=from_json)
    assert len(records) == 3
    for record in sorted(records, key=lambda r: r["file_name"]):
        stem = record["image_id"].removesuffix("_leftImg8bit.png")
        (path,) = dataset["val"].gt_dir.glob(f"*/{stem}_gtFine_instanceIds.png")
        ids = read(path)
        found = sorted(annotation["category_id"] for annotation in record["annotations"])
        things = [name for name in name2label if name in THINGS]
        seen = np.unique(ids[ids >= 1000]) // 1000
        assert found == [things.index(id2label[int(value)].name) for value in seen]


@pytest.fixture
def metadata(dataset):
    name = "drawn_cityscapes_val"
    thing_classes = [name for name in name2label if name in THINGS]
    MetadataCatalog.get(name).set(gt_dir=str(dataset["val"].gt_dir), thing_classes=thing_classes)
    yield name
    MetadataCatalog.pop(name)


def test_the_scripts_give_the_ground_truth_an_miou_of_100(dataset, metadata, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluator = CityscapesSemSegEvaluator(metadata)
    evaluator.reset()
    for path in annotations(dataset["val"], "labelTrainIds.png"):
        labels = torch.as_tensor(read(path)).long()
        logits = torch.nn.functional.one_hot(labels.clamp(max=19), 20)[..., :19].permute(2, 0, 1)
        evaluator.process(
            [{"file_name": path.name.replace("_gtFine_", "_")}], [{"sem_seg": logits}]
        )
    scores = evaluator.evaluate()["sem_seg"]
    assert scores["IoU"] == pytest.approx(100)
    assert scores["IoU_sup"] == pytest.approx(100)


def test_the_scripts_give_the_true_instances_an_ap_of_100(dataset, metadata):
    things = MetadataCatalog.get(metadata).thing_classes
    evaluator = TidyCityscapesInstanceEvaluator(metadata)
    evaluator.reset()
    for path in annotations(dataset["val"], "instanceIds.png"):
        ids = torch.as_tensor(read(path).astype(np.int32))
        values = [int(value) for value in ids.unique() if value >= 1000]
        classes = [things.index(id2label[value // 1000].name) for value in values]
        found = Instances(
            SIZE,
            pred_masks=torch.stack([ids == value for value in values]),
            pred_classes=torch.tensor(classes),
            scores=torch.ones(len(values)),
        )
        name = path.name.replace("_gtFine_instanceIds.png", "_leftImg8bit.png")
        evaluator.process([{"file_name": name}], [{"instances": found}])
    scores = evaluator.evaluate()["segm"]
    assert scores["AP"] == pytest.approx(100)


@pytest.mark.parametrize("size", [(64, 64), (65, 130), (200, 71)])
def test_any_size_of_64_pixels_and_more_is_drawn(size):
    street = draw_street(np.random.default_rng(1), size)
    assert street.image.shape == (*size, 3)
    assert street.image.dtype == np.uint8
    for part in street.parts:
        assert len(part.polygon) >= 3
        assert np.all(part.polygon >= 0)
        assert np.all(part.polygon < size[::-1])
    assert np.mean(label_images(street.parts, size)["labelIds"] > 0) > 0.99


def test_an_image_depends_on_seed_size_split_and_number_only(dataset, tmp_path):
    smaller = generate_cityscapes(tmp_path / "a", num_train=2, num_val=1, image_size=SIZE, seed=2)
    other = generate_cityscapes(tmp_path / "b", num_train=1, num_val=1, image_size=SIZE, seed=3)
    for split in ("train", "val"):
        for path in smaller[split].image_dir.rglob("*.png"):
            same = dataset[split].image_dir / path.parent.name / path.name
            np.testing.assert_array_equal(read(path), read(same))
        (path,) = other[split].image_dir.rglob("*_000000_leftImg8bit.png")
        assert np.any(read(path) != read(dataset[split].image_dir / path.parent.name / path.name))


def test_an_existing_set_is_kept_and_another_one_refused(tmp_path):
    settings = {"num_train": 1, "num_val": 1, "image_size": (64, 64)}
    split = generate_cityscapes(tmp_path, **settings)["val"]
    (path,) = annotations(split, "polygons.json")
    manifest = json.loads((tmp_path / "shapes.json").read_text())
    assert manifest["generator"] == "point_rend.data.cityscapes_layout 1"  # as in the first version
    changed = path.stat().st_mtime_ns
    assert generate_cityscapes(tmp_path, **settings)["val"] == split
    assert path.stat().st_mtime_ns == changed
    with pytest.raises(FileExistsError, match="seed"):
        generate_cityscapes(tmp_path, **settings, seed=1)
    with pytest.raises(FileExistsError, match="holds the data set"):
        coco.generate(tmp_path, **settings)
    path.unlink()
    with pytest.raises(FileExistsError, match=re.escape(path.name)):
        generate_cityscapes(tmp_path, **settings)


def test_the_command_line_writes_the_layout(tmp_path, capsys):
    numbers = ["--train", "1", "--val", "1", "--size", "64", "96"]
    __main__.main(["--layout", "cityscapes", "--output", str(tmp_path / "drawn"), *numbers])
    assert "leftImg8bit" in capsys.readouterr().out
    (path,) = (tmp_path / "drawn" / "gtFine" / "val").glob("*/*_polygons.json")
    content = json.loads(path.read_text())
    assert (content["imgHeight"], content["imgWidth"]) == (64, 96)


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, cityscapes_layout.__name__)
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)
    monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.labels", None)
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["--layout", "cityscapes", "--output", str(tmp_path / "drawn")])
    assert "cityscapesscripts" in capsys.readouterr().err
