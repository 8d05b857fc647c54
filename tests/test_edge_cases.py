"""Unusual data sets: train_net.py trains on them and evaluates, or refuses them in one line.

Each case is written twice, in COCO's format for both mask heads and as label maps for the semantic
head.
"""

import math
import pickle
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from point_rend import get_config_file, load_config
from point_rend.cli import train
from point_rend.data.datasets import coco
from point_rend.data.mapper import NamingDatasetMapper
from point_rend.engine import arguments, run, setup
from tests.memory import LargestTensor
from tests.pairwise import pairwise_rows
from tests.runs import instance_predictions, metrics, refusal, semantic_predictions
from tests.tiny_datasets import (
    COLORS,
    CONFIGS,
    POINTREND,
    TINY_MODEL,
    CocoSet,
    process_state_restored,
    uncompressed,
)
from tests.tiny_semantic import IGNORED, SemSegSet

IMPLICIT = str(CONFIGS / "implicit_pointrend_R_50_FPN_1x_coco.yaml")
SEMANTIC = get_config_file("SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml")
SMALL_SEMANTIC = [
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("MODEL.POINT_HEAD.TRAIN_NUM_POINTS", "32", "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "128"),
]


# --- cases --------------------------------------------------------------------------------------


class Thing(NamedTuple):
    """A rectangle of one class, in pixels, or a crowd of objects."""

    kind: int
    x: float
    y: float
    width: float
    height: float
    is_crowd: bool = False


class Picture(NamedTuple):
    height: int
    width: int
    things: tuple[Thing, ...]


class Case(NamedTuple):
    """A data set, and the message with which training on it is refused, if it is."""

    pictures: tuple[Picture, ...]
    kinds: int = 2
    has_ground: bool = True  # whether the background is a semantic class
    no_instances: str = ""
    no_semantics: str = ""


def picture(*things: Thing) -> Picture:
    return Picture(64, 96, things)


THINGS = (Thing(0, 5, 5, 30, 30), Thing(1, 50, 20, 20, 25))
CROWDS = tuple(thing._replace(is_crowd=True) for thing in THINGS)
SPECKS = (Thing(0, 10.1, 10.1, 0.3, 0.3), Thing(1, 20.1, 30.1, 0.2, 0.2))
OUTSIDE = (Thing(0, 100, 10, 20, 20), Thing(1, -50, 10, 30, 30))
CROWDED = tuple(Thing(n % 2, n % 25 * 3.7, n // 25 * 3.1, 3, 3) for n in range(500))
NOTHING = "no annotation is left to train on in tiny"

CASES = {
    "an image without objects": Case((picture(*THINGS), picture())),
    "no object at all": Case((picture(), picture()), no_instances=NOTHING),
    "an image of crowds": Case((picture(*THINGS), picture(*CROWDS))),
    "nothing but crowds": Case((picture(*CROWDS), picture(*CROWDS)), no_instances=NOTHING),
    "an image of specks": Case((picture(*THINGS), picture(*SPECKS))),
    "nothing but specks": Case((picture(*SPECKS), picture(*SPECKS))),
    "objects outside the image": Case((picture(*THINGS), picture(*OUTSIDE))),
    "one class": Case((picture(*THINGS[:1]), picture(*THINGS[:1])), kinds=1),
    "one class, and nothing around it": Case(
        (picture(*THINGS[:1]), picture(*CROWDS[:1], THINGS[0])),
        kinds=1,
        has_ground=False,
        no_semantics="has only one class (kind 0), so there is nothing to learn",
    ),
    "one image": Case((picture(*THINGS),)),
    "one row, one column": Case(
        (
            Picture(1, 9000, (Thing(0, 30, 0, 5000, 1),)),
            Picture(9000, 1, (Thing(1, 0, 30, 1, 5000),)),
        )
    ),
    "a few pixels": Case(
        (Picture(1, 1, (Thing(0, 0, 0, 1, 1),)), Picture(1, 2, (Thing(1, 1, 0, 1, 1),)))
    ),
    "500 objects": Case((picture(*CROWDED),)),
}


class Written(NamedTuple):
    """A case on disk, in both formats."""

    coco: CocoSet
    sem_seg: SemSegSet


def category(kind: int) -> int:
    return 3 * kind + 2


def annotation(thing: Thing, height: int, width: int, identity: int) -> dict[str, Any]:
    """Return an annotation without its image; polygons and RLE alternate, crowds are RLE."""
    kind, x, y, w, h, is_crowd = thing
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    (rle,) = mask_util.frPyObjects([polygon], height, width)
    has_pixels = mask_util.area(rle) > 0  # an empty RLE would be refused
    if is_crowd:
        mask = uncompressed(rle)
    elif has_pixels and identity % 2:
        mask = rle | {"counts": rle["counts"].decode()}
    else:
        mask = [polygon]
    return {
        "id": identity,
        "category_id": category(kind),
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": int(is_crowd),
        "segmentation": mask,
    }


def write(folder: Path, case: Case) -> Written:
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    records, annotations = [], []
    first = int(case.has_ground)
    for number, (height, width, things) in enumerate(case.pictures):
        image = Image.new("RGB", (width, height), (50, 50, 50))
        label_map = Image.new("L", (width, height), 0 if case.has_ground else IGNORED)
        for thing in things:
            left, top = math.floor(thing.x), math.floor(thing.y)
            right, bottom = math.ceil(thing.x + thing.width), math.ceil(thing.y + thing.height)
            image.paste(COLORS[thing.kind], (left, top, right, bottom))
            label = IGNORED if thing.is_crowd else first + thing.kind
            label_map.paste(label, (left, top, right, bottom))
            drawn = annotation(thing, height, width, len(annotations) + 1)
            annotations.append(drawn | {"image_id": number + 1})
        name = f"{number:03d}.png"
        image.save(images / name, compress_level=1)
        label_map.save(labels / name, compress_level=1)
        records.append({"id": number + 1, "file_name": name, "height": height, "width": width})
    kinds = [f"kind {kind}" for kind in range(case.kinds)]
    coco = CocoSet(str(folder / "instances.json"), str(images))
    names = [{"id": category(kind), "name": name} for kind, name in enumerate(kinds)]
    coco.rewrite({"images": records, "annotations": annotations, "categories": names})
    classes = ["ground", *kinds] if case.has_ground else kinds
    return Written(coco, SemSegSet(str(images), str(labels), ",".join(classes)))


# --- models -------------------------------------------------------------------------------------


class Model(NamedTuple):
    config: str
    losses: frozenset[str]
    batch: int
    options: tuple[str, ...] = ()


def instance_model(config: str, mask_format: str, batch: int, filter_empty: bool) -> Model:
    """Return a model; with ``filter_empty`` images without objects are not trained on."""
    coarse = "loss_l2" if config == IMPLICIT else "loss_mask"
    options = ("INPUT.MASK_FORMAT", mask_format)
    options += ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(filter_empty))
    return Model(config, frozenset({coarse, "loss_mask_point"}), batch, options)


MODELS = {
    "pointrend": instance_model(POINTREND, "bitmask", 1, filter_empty=False),
    "implicit": instance_model(IMPLICIT, "polygon", 1, filter_empty=False),
    "semantic": Model(SEMANTIC, frozenset({"loss_sem_seg", "loss_sem_seg_point"}), 1),
}
# Every pair of a case, a mask head, a mask format, a batch size and a filter.
INSTANCE_ROWS = pairwise_rows(
    list(CASES), [POINTREND, IMPLICIT], ["bitmask", "polygon"], [1, 2], [False, True]
)
RUNS = [(case, instance_model(*model)) for case, *model in INSTANCE_ROWS]
RUNS += [(case, MODELS["semantic"]) for case in CASES]


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["train_net.py"])
    with process_state_restored():
        yield


def command(model: Model, written: Written, case: Case, output: Path, *flags: str) -> list[str]:
    """Return a command line that trains on every image of a case and evaluates them."""
    if model.config == SEMANTIC:
        data = ["--register-sem-seg", "tiny", *written.sem_seg]
        classes = written.sem_seg.classes.count(",") + 1
        options = [*SMALL_SEMANTIC, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(classes)]
    else:
        data = ["--register-coco", "tiny", *written.coco]
        options = []
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    length = ["SOLVER.IMS_PER_BATCH", str(model.batch), "SOLVER.MAX_ITER", str(len(case.pictures))]
    return [
        *("--config-file", model.config, *data, *flags, *TINY_MODEL, *names, *length),
        *(*model.options, *options, "OUTPUT_DIR", str(output)),
    ]


def check_predictions(model: Model, case: Case, output: Path) -> None:
    """Check that masks and label maps have the sizes of their images and known classes."""
    sizes = [[height, width] for height, width, _ in case.pictures]
    if model.config == SEMANTIC:
        found = semantic_predictions(output, "tiny")
        assert {Path(x["file_name"]).name for x in found} == {
            f"{number:03d}.png" for number in range(len(sizes))
        }
        assert {x["category_id"] for x in found} <= set(range(case.kinds + case.has_ground))
        pixels = dict.fromkeys((x["file_name"] for x in found), 0)
        for x in found:
            size = sizes[int(Path(x["file_name"]).stem)]
            assert x["segmentation"]["size"] == size
            pixels[x["file_name"]] += int(mask_util.area(x["segmentation"]))
        assert sorted(pixels.values()) == sorted(h * w for h, w in sizes)  # a class for each
    else:
        found = instance_predictions(output, "tiny")
        assert found
        assert {x["category_id"] for x in found} <= {category(kind) for kind in range(case.kinds)}
        for x in found:
            height, width = sizes[x["image_id"] - 1]
            assert x["segmentation"]["size"] == [height, width]
            assert 0 <= x["score"] <= 1
            left, top, box_width, box_height = x["bbox"]
            assert left >= 0 <= top
            assert left + box_width <= width + 1e-3
            assert top + box_height <= height + 1e-3


def check_metrics(model: Model, case: Case, measured: dict[str, dict[str, float]]) -> None:
    """Check that metrics lie between 0 and 100, or are NaN if there is nothing to measure."""
    if model.config == SEMANTIC:
        assert 0 <= measured["sem_seg"]["mIoU"] <= 100
        return
    measurable = any(not thing.is_crowd for shown in case.pictures for thing in shown.things)
    for task in ("bbox", "segm"):
        assert 0 <= measured[task]["AP"] <= 100 if measurable else math.isnan(measured[task]["AP"])


def evaluate(argv: list[str]) -> dict[str, dict[str, float]]:
    return run.run(*setup.setup(arguments.build_parser().parse_args(argv)))


def name_of(value: str | Model) -> str:
    if isinstance(value, str):
        return value
    return "-".join(
        [Path(value.config).stem.split("_R_")[0], *value.options[1::2], str(value.batch)]
    )


@pytest.mark.parametrize(("name", "model"), RUNS, ids=name_of)
def test_an_edge_case_is_trained_and_evaluated_or_refused_in_one_line_and_evaluated(
    name: str, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, output = CASES[name], tmp_path / "output"
    written = write(tmp_path / "tiny", case)
    reason = case.no_semantics if model.config == SEMANTIC else case.no_instances
    if reason:
        assert reason in refusal(command(model, written, case, output), capsys)
        assert not list(output.glob("*.pth"))
        measured = evaluate(command(model, written, case, output, "--eval-only"))
    else:
        train.main(command(model, written, case, output))
        training, evaluation = metrics(output)
        assert model.losses <= training.keys()
        assert all(math.isfinite(training[loss]) for loss in {*model.losses, "total_loss"})
        measured = {}
        for key, value in evaluation.items():
            task, _, metric = key.rpartition("/")
            measured.setdefault(task, {})[metric] = value
    check_metrics(model, case, measured)
    check_predictions(model, case, output)


@pytest.mark.parametrize("model", ["pointrend", "semantic"])
def test_an_image_beyond_the_limit_of_pixels_is_named_with_the_way_out(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = CASES["an image without objects"]
    argv = command(MODELS[model], write(tmp_path / "tiny", case), case, tmp_path / "output")
    monkeypatch.setenv("POINT_REND_MAX_PIXELS", str(64 * 96 - 1))
    line = refusal(argv, capsys)
    assert "000.png" in line
    assert "POINT_REND_MAX_PIXELS" in line


# --- large images -------------------------------------------------------------------------------


def large_case(side: int) -> Case:
    """Return one square image with a large, a medium and a small object."""
    boxes = ((0.1, 0.1, 0.4, 0.4), (0.6, 0.2, 0.3, 0.5), (0.05005, 0.80005, 0.09, 0.1))
    things = (Thing(n % 2, *(side * x for x in box)) for n, box in enumerate(boxes))
    return Case((Picture(side, side, tuple(things)),))


def test_a_sample_of_a_large_image_is_as_small_as_that_of_a_small_one(tmp_path: Path) -> None:
    side = 4000
    written = write(tmp_path / "tiny", large_case(side))
    coco.register_coco("tiny", *written.coco)
    (record,) = DatasetCatalog.get("tiny")
    mapper = NamingDatasetMapper(load_config(POINTREND, TINY_MODEL), is_train=True)
    tracemalloc.start()
    with LargestTensor() as largest:
        sample = mapper(record)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sample["image"].shape == (3, 64, 64)
    assert len(sample["instances"]) == 3
    assert largest.bytes <= 8 * 3 * 64 * 64  # tensors are made after resizing only
    assert most < 2.5 * 3 * side**2  # the image, a copy of it, and one mask given as RLE
    assert len(pickle.dumps(sample["instances"])) < 5_000
    shares = sample["instances"].gt_masks.tensor.float().mean(dim=(1, 2))
    expected = torch.tensor([0.16, 0.15, 0.009])
    torch.testing.assert_close(shares, expected, rtol=0.15, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_large_image_is_trained_and_evaluated(model: Model, tmp_path: Path) -> None:
    output, case = tmp_path / "output", large_case(10_000)
    train.main(command(model, write(tmp_path / "tiny", case), case, output))
    training, _ = metrics(output)
    assert all(math.isfinite(training[name]) for name in {*model.losses, "total_loss"})
    check_predictions(model, case, output)
