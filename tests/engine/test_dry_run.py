"""`pointrend train --check`: its batches and losses are the training's; nothing else is kept."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.solver import LRMultiplier
from detectron2.structures import Boxes, Instances
from fvcore.common.checkpoint import PeriodicCheckpointer
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn

from point_rend import get_config_file
from point_rend.cli import train
from point_rend.color_augmentation import ColorAugSSD
from point_rend.data.datasets.coco import register_coco
from point_rend.data.loader.loaders import build_train_loader
from point_rend.data.mapper import NamingDatasetMapper
from point_rend.engine.dry_run import measuring, picture
from point_rend.engine.dry_run import run as dry_run
from point_rend.engine.dry_run.recording import Points, describe, of_boxes, of_labels
from point_rend.engine.trainer import Trainer
from point_rend.ground_truth.shared_masks import SharedMasks
from tests.engine.killing import command, start_two
from tests.runs import refusal, set_up
from tests.tiny_datasets import (
    POINTREND,
    TINY_MODEL,
    CocoSet,
    process_state_restored,
    write_coco,
)
from tests.tiny_semantic import CLASSES, IGNORED, write_sem_seg

pytestmark = pytest.mark.usefixtures("_restored")

NO_TEST = ["DATASETS.TEST", "()"]
SEMANTIC = [
    *("MODEL.META_ARCHITECTURE", "PointRendSemanticSegmentor", "MODEL.MASK_ON", "False"),
    *("MODEL.SEM_SEG_HEAD.NAME", "PointRendSemSegHead", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
    *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", "2", "MODEL.POINT_HEAD.TRAIN_NUM_POINTS", "32"),
    *("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "128", "INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", "False", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"),
]
Drawn = tuple[list[list[dict[str, Any]]], list[list[list[Points]]]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """The batches and points that were drawn on the last page."""
    found: list[Drawn] = []

    def page(title: str, batches: Any, points: Any, shown: Any) -> np.ndarray:
        found.append((batches, points))
        return original(title, batches, points, shown)

    original = dry_run.page
    monkeypatch.setattr(dry_run, "page", page)
    monkeypatch.setattr(picture, "WIDTH", 600)  # small pages are drawn soon
    return found


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "check.json").read_text())


def contents(folder: Path) -> dict[str, Any]:
    """All files below a folder, with their times and contents."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(x): (x.stat().st_mtime_ns, x.read_bytes()) for x in files}


# --- the training's own steps ---------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_check_shows_the_batches_of_the_training_and_its_losses(
    workers: str, mixed: CocoSet, tmp_path: Path, drawn: list[Drawn]
) -> None:
    class Spy(Trainer):
        def run_step(self) -> None:
            super().run_step()
            values = self.storage.latest()
            seen.append({k: v for k, (v, _) in values.items() if "loss" in k})

        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            loader = super().build_train_loader(cfg)
            batches = loader.__class__.__iter__

            class Noting(type(loader)):  # type: ignore[misc]
                def __iter__(self) -> Iterator[Any]:
                    for batch in batches(self):
                        taken.append(batch)
                        yield batch

            loader.__class__ = Noting
            return loader

    seen: list[dict[str, float]] = []
    taken: list[Any] = []
    more = [*NO_TEST, "SOLVER.MAX_ITER", "3", "DATALOADER.NUM_WORKERS", workers]
    train.main([*command(mixed, tmp_path / "trained", *more)[1:]], trainer=Spy)
    losses, batches = list(seen), list(taken)
    train.main(["--check", *command(mixed, tmp_path / "output", *more)[1:]])
    (shown, _), found = drawn[0], report(tmp_path / "output" / "check")
    assert found["losses"] == losses
    assert len(shown) == len(batches) == 3
    for batch, expected in zip(shown, batches, strict=True):
        for sample, other in zip(batch, expected, strict=True):
            assert torch.equal(sample["image"], other["image"])
            assert sample["image_id"] == other["image_id"]
    size = (tmp_path / "trained" / "model_final.pth").stat().st_size
    assert 0.8 * size < found["disk"]["checkpoint_bytes"] < size
    assert os.listdir(tmp_path / "output") == ["check"]


def test_a_check_of_a_training_to_resume_goes_on_where_that_stopped_and_changes_nothing(
    mixed: CocoSet, tmp_path: Path, drawn: list[Drawn]
) -> None:
    output = tmp_path / "output"
    with process_state_restored():
        train.main(command(mixed, output, *NO_TEST, "SOLVER.MAX_ITER", "2"))
    before = contents(output)
    options = ["--check", "--check-output", str(tmp_path / "check")]
    train.main([*options, *command(mixed, output, *NO_TEST, "SOLVER.MAX_ITER", "5")])
    assert contents(output) == before
    found = report(tmp_path / "check")
    assert found["length"]["start"] == 2
    assert found["weights"]["source"] == str(output / "model_final.pth")
    assert found["weights"]["loaded"] == found["weights"]["total"]
    taken = [x["image_id"] for batch in drawn[0][0] for x in batch]
    cfg = set_up(command(mixed, tmp_path / "other", *NO_TEST)).cfg
    batches = itertools.islice(build_train_loader(cfg, dict), 2, 5)
    assert taken == [x["image_id"] for batch in batches for x in batch]


def test_a_folder_with_a_training_is_refused_as_the_training_refuses_it(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "metrics.json").write_text("{}\n")
    argv = command(mixed, output)[1:]
    assert "holds an earlier training" in refusal(["--check", *argv], capsys)
    train.main(["--check", "--overwrite", *argv, *NO_TEST])
    assert (output / "metrics.json").read_text() == "{}\n"


# --- kinds of models ------------------------------------------------------------------------------


def share_inside(sample: dict[str, Any], coords: torch.Tensor) -> float:
    """The share of points that lie on a pixel of any object."""
    instances = sample["instances"]
    masks = SharedMasks.of(instances.gt_masks, instances.image_size).tensor.any(dim=0)
    height, width = masks.shape
    x = coords[:, 0].long().clamp(0, width - 1)
    y = coords[:, 1].long().clamp(0, height - 1)
    return float(masks[y, x].float().mean())


@pytest.mark.parametrize("implicit", [False, True])
def test_points_of_mask_heads_are_shown_where_their_labels_are_true(
    implicit: bool, mixed: CocoSet, tmp_path: Path, drawn: list[Drawn]
) -> None:
    more = ["SOLVER.MAX_ITER", "3", *NO_TEST]
    if implicit:
        more += ["MODEL.ROI_MASK_HEAD.NAME", "ImplicitPointRendMaskHead"]
        more += ["MODEL.POINT_HEAD.NAME", "ImplicitPointHead"]
        more += ["MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "784"]
    train.main(["--check", *command(mixed, tmp_path / "output", *more)[1:]])
    batches, points = drawn[0]
    pairs = [
        (sample, own)
        for batch, of_images in zip(batches, points, strict=False)
        for sample, (own,) in zip(batch, of_images, strict=True)
        if own.boxes
    ]
    assert pairs
    for sample, own in pairs:
        assert own.boxes <= len(sample["instances"])
        inside = own.labels >= 0.5
        assert share_inside(sample, own.coords[inside]) > 0.9
        assert share_inside(sample, own.coords[~inside]) < 0.3
    page = cv2.imread(str(tmp_path / "output" / "check" / "check.png"))
    assert page.shape[1] == picture.WIDTH + 2 * picture.MARGIN


def test_points_of_semantic_heads_have_the_labels_of_their_pixels(
    tmp_path: Path, drawn: list[Drawn]
) -> None:
    written = write_sem_seg(tmp_path / "maps")
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    argv = ["--config-file", POINTREND, "--register-sem-seg", "tiny", *written, *TINY_MODEL]
    argv += [*SEMANTIC, *names, "OUTPUT_DIR", str(tmp_path / "output")]
    train.main(["--check", *argv])
    for batch, of_images in zip(*drawn[0], strict=False):
        for sample, (own,) in zip(batch, of_images, strict=True):
            assert own.boxes is None
            x, y = own.coords.long().unbind(dim=1)
            assert torch.equal(sample["sem_seg"][y, x], own.labels.long())
    assert report(tmp_path / "output" / "check")["time"]["evaluation_seconds"] > 0


def test_a_panoptic_model_shows_objects_labels_and_the_points_of_both_heads(
    tmp_path: Path, drawn: list[Drawn]
) -> None:
    coco, maps = write_coco(tmp_path / "coco"), write_sem_seg(tmp_path / "maps")
    register_coco("things", *coco)
    records = DatasetCatalog.get("things")
    for number, record in enumerate(records):
        record["sem_seg_file_name"] = str(maps.label(number))
    DatasetCatalog.register("both", lambda: records)
    known = MetadataCatalog.get("things").as_dict() | {"name": "both"}
    MetadataCatalog.get("both").set(**known, stuff_classes=list(CLASSES), ignore_label=IGNORED)
    config = get_config_file("PanopticSegmentation/pointrend_panoptic_R_50_FPN_1x_coco.yaml")
    small = ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.POINT_HEAD.FC_DIM", "16"]
    small += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "OUTPUT_DIR", str(tmp_path / "output")]
    argv = ["--config-file", config, *TINY_MODEL, "DATASETS.TRAIN", "('both',)", *NO_TEST, *small]
    train.main(["--check", *argv])
    _, points = drawn[0]
    assert [{x.boxes is None for x in image} for image in points[0]] == [{True, False}] * 2


def test_keypoints_and_boxes_without_masks_are_shown(tmp_path: Path, drawn: list[Drawn]) -> None:
    written = write_coco(tmp_path / "people", categories=(1,))
    content = written.read()
    content["categories"][0] |= {"keypoints": ["left_a", "right_a", "nose"], "skeleton": []}
    for annotation in content["annotations"]:
        x, y, width, height = annotation["bbox"]
        corners = [(x, y), (x + width, y), (x + width / 2, y + height / 2)]
        annotation["keypoints"] = [v for corner in corners for v in (*corner, 2)]
        annotation["num_keypoints"] = 3
    written.rewrite(content)
    more = [
        "MODEL.KEYPOINT_ON",
        "True",
        "MODEL.MASK_ON",
        "False",
        "OUTPUT_DIR",
        str(tmp_path / "o"),
    ]
    more += ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "3", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS"]
    more += ["(8,)", "DATASETS.TRAIN", "('people',)", *NO_TEST, "MODEL.ROI_HEADS.NUM_CLASSES", "1"]
    argv = ["--config-file", POINTREND, "--register-coco", "people", *written, *TINY_MODEL, *more]
    train.main(["--check", *argv])
    batches, points = drawn[0]
    assert batches[0][0]["instances"].has("gt_keypoints")
    assert points[0] == [[], []]
    assert report(tmp_path / "o" / "check")["parameters"]["total"] > 0


def test_the_loader_of_a_user_is_shown(
    mixed: CocoSet, tmp_path: Path, drawn: list[Drawn], capsys: pytest.CaptureFixture[str]
) -> None:
    class Own(Trainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            mapper = NamingDatasetMapper(cfg, is_train=True)
            return [[mapper(x)] for x in DatasetCatalog.get("mixed")]

    argv = ["--check", *command(mixed, tmp_path / "output", *NO_TEST, "SOLVER.MAX_ITER", "3")[1:]]
    train.main(argv, trainer=Own)
    assert [[x["image_id"] for x in batch] for batch in drawn[0][0]] == [[1], [2], [3]]
    found = report(tmp_path / "output" / "check")
    assert (found["data"]["images"], found["length"]["epochs"]) == (None, None)
    assert "length    3 iterations\n" in capsys.readouterr().out


# --- several processes, and ends ------------------------------------------------------------------


@pytest.mark.slow
def test_one_of_several_processes_reports(mixed: CocoSet, tmp_path: Path) -> None:
    argv = ["--check", *command(mixed, tmp_path / "output", *NO_TEST, "SOLVER.MAX_ITER", "3")[1:]]
    runs = start_two("torchrun", argv, tmp_path)
    assert [run.end() for run in runs] == [0, 0], [run.output() for run in runs]
    assert "memory  " in runs[0].output()
    assert "memory  " not in runs[1].output()
    found = report(tmp_path / "output" / "check")["data"]
    assert (found["processes"], found["images_per_process"]) == (2, 1)


def test_losses_that_are_not_finite_end_a_check_as_they_end_the_training(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*NO_TEST, "SOLVER.BASE_LR", "1e20", "SOLVER.WARMUP_ITERS", "0", "SOLVER.MAX_ITER", "9"]
    with pytest.raises(SystemExit) as ended:
        train.main(["--check", *command(mixed, tmp_path / "output", *more)[1:]])
    assert ended.value.code == 3
    assert "infinite or NaN in iteration 1" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "output").exists()


def test_a_disk_too_small_for_the_checkpoints_is_named_after_the_report(
    mixed: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(measuring, "free_bytes", lambda _: 1000)
    more = [*NO_TEST, "SOLVER.MAX_ITER", "3", "SOLVER.CHECKPOINT_PERIOD", "1"]
    line = refusal(["--check", *command(mixed, tmp_path / "output", *more)[1:]], capsys)
    assert "the 4 checkpoints of SOLVER.CHECKPOINT_PERIOD 1 need" in line
    assert report(tmp_path / "output" / "check")["disk"]["checkpoints"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--check", "--eval-only"], "--check is for a training"),
        (["--check-output", "somewhere"], "--check-output names the folder of --check"),
    ],
)
def test_options_that_contradict_are_refused(
    options: list[str], words: str, mixed: CocoSet, tmp_path: Path, capsys: Any
) -> None:
    assert words in refusal([*options, *command(mixed, tmp_path / "output")[1:]], capsys)


def test_a_file_of_somebody_else_is_not_replaced(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "check.json").write_text("[1]")
    options = ["--check", "--check-output", str(tmp_path)]
    line = refusal([*options, *command(mixed, tmp_path / "output")[1:]], capsys)
    assert "this command has not written it" in line
    assert (tmp_path / "check.json").read_text() == "[1]"


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end", "period"), [(0, 9, 2), (0, 8, 4), (3, 9, 3), (0, 5, 100)])
def test_the_number_of_checkpoints_is_that_of_detectron2s_hook(
    start: int, end: int, period: int
) -> None:
    saved = []
    checkpointer = SimpleNamespace(save=lambda name, **_: saved.append(name), path_manager=None)
    periodic = PeriodicCheckpointer(checkpointer, period, max_iter=end)
    for iteration in range(start, end):
        periodic.step(iteration)
    assert measuring.number_of_checkpoints(start, end, period) == len(saved)


def test_learning_rates_are_those_of_the_schedule() -> None:
    def build() -> tuple[torch.optim.Optimizer, LRMultiplier]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, LRMultiplier(optimizer, CosineParamScheduler(1, 0), 50)

    optimizer, scheduler = build()
    optimizer.step()
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    moments = [0, 1, 20, 49]
    found = measuring.learning_rates(*build(), moments)
    assert found == [(moment, expected[moment]) for moment in moments]


def test_of_the_boxes_of_an_object_the_best_one_is_shown() -> None:
    image = Instances((40, 60))
    image.gt_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 40, 40]]))
    image.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 5, 5], [0, 0, 10, 9], [20, 20, 41, 40]]))
    coords, labels = torch.rand(3, 4, 2), torch.rand(3, 4)
    (found,) = of_boxes([image], coords, labels)
    expected = [coords[1] * torch.tensor([10.0, 9]), 20 + coords[2] * torch.tensor([21.0, 20])]
    torch.testing.assert_close(found.coords, torch.cat(expected))
    assert torch.equal(found.labels, labels[1:].flatten())
    assert found.boxes == 2


def test_points_of_label_maps_are_in_pixels() -> None:
    (found,) = of_labels(torch.zeros(1, 20, 40), torch.tensor([[[0.5, 0.25]]]), torch.ones(1, 1))
    assert found.coords.tolist() == [[20.0, 5.0]]


def test_transforms_are_described_in_words() -> None:
    steps = T.TransformList(
        [
            T.NoOpTransform(),
            T.ResizeTransform(30, 40, 60, 80),
            T.ResizeTransform(60, 80, 60, 80),
            T.CropTransform(0, 0, 50, 20),
            T.CropTransform(0, 0, 90, 10, orig_w=60, orig_h=20),
            T.CropTransform(0, 0, 90, 90, orig_w=60, orig_h=10),
            T.PadTransform(0, 0, 0, 0),
            T.PadTransform(0, 0, 0, 5),
            T.RotationTransform(20, 50, 12.3),
            T.HFlipTransform(50),
            ColorAugSSD("BGR").get_transform(np.zeros((4, 4, 3), np.uint8)),
            T.ExtentTransform((0, 0, 5, 5), (5, 5)),
        ]
    )
    assert describe(steps) == [
        "resized to 80×60",
        "cropped to 50×20",
        "cropped to 60×10",
        "padded",
        "rotated by 12°",
        "flipped left to right",
        "colors changed",
        "extent",
    ]
