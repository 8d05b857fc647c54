"""Training and evaluation of semantic models from the command line, on tiny data sets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic

from point_rend import get_config_file
from point_rend.checkpoint.class_metadata import read_metadata
from point_rend.cli import train
from point_rend.engine import trainer
from point_rend.evaluation.metric_names import build_metric_names
from tests.runs import evaluate, metrics, refusal, set_up
from tests.tiny_datasets import (
    POINTREND,
    TINY_MODEL,
    CocoSet,
    write_cityscapes,
    write_coco,
)
from tests.tiny_panoptic import write_panoptic
from tests.tiny_semantic import (
    CLASSES,
    IGNORED,
    SemSegSet,
    label_map,
    write_label,
    write_sem_seg,
    write_train_ids,
)

PANOPTIC = get_config_file("PanopticSegmentation/pointrend_panoptic_R_50_FPN_1x_coco.yaml")
SEMANTIC = {
    "META_ARCHITECTURE": "SemanticSegmentor",
    "MASK_ON": False,
    "SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead",
        "IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "CONVS_DIM": 32,
    },
}
HEADS = {
    "SemSegFPNHead": [],
    "PointRendSemSegHead": [
        *("MODEL.META_ARCHITECTURE", "PointRendSemanticSegmentor"),
        *("MODEL.SEM_SEG_HEAD.NAME", "PointRendSemSegHead"),
        *("MODEL.POINT_HEAD.SUBDIVISION_STEPS", "2", "MODEL.POINT_HEAD.TRAIN_NUM_POINTS", "32"),
        *("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "128"),
        *("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", "False"),
    ],
}


pytestmark = pytest.mark.usefixtures("_restored")


@pytest.fixture
def config(tmp_path: Path) -> str:
    """Write a config of a semantic model whose class count follows from the data."""
    file = tmp_path / "semantic.yaml"
    crop = {"ENABLED": True, "TYPE": "absolute", "SIZE": [48, 64]}
    crop["SINGLE_CATEGORY_MAX_AREA"] = 0.75
    tree = {"_BASE_": POINTREND, "MODEL": SEMANTIC, "INPUT": {"COLOR_AUG_SSD": True, "CROP": crop}}
    file.write_text(yaml.safe_dump(tree))
    return str(file)


@pytest.fixture
def tiny(tmp_path: Path) -> SemSegSet:
    return write_sem_seg(tmp_path / "tiny")


def command(config: str, written: SemSegSet, output: Path, *more: str) -> list[str]:
    """Build a command line that trains and evaluates on a data set."""
    flags = ["--config-file", config, "--register-sem-seg", "tiny", *written]
    while more and more[0].startswith("--"):
        flags, more = [*flags, more[0]], more[1:]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    return [*flags, *TINY_MODEL, *names, "OUTPUT_DIR", str(output), *more]


# Runs


@pytest.mark.parametrize("head", HEADS)
def test_training_evaluates_at_its_end_and_evaluating_the_checkpoint_gives_the_same(
    head: str, config: str, tiny: SemSegSet, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    train.main(command(config, tiny, output, *HEADS[head]))
    training, evaluation = metrics(output)
    assert training["total_loss"] > 0  # a single loss is logged under this name only
    assert ("loss_sem_seg_point" in training) == (head == "PointRendSemSegHead")
    assert 0 <= evaluation["sem_seg/mIoU"] <= 100
    assert {f"sem_seg/IoU-{name}" for name in CLASSES} <= evaluation.keys()
    assert read_metadata(str(output / "model_final.pth")) == {"stuff_classes": list(CLASSES)}
    # Detectron2's metric of this name differs from the published one.
    assert not [key for key in evaluation if "boundary" in key.lower() or "B-Iou" in key]
    settings = yaml.safe_load((output / "config.yaml").read_text())
    assert settings["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] == len(CLASSES)
    assert settings["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 80  # another head's, untouched

    weights = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    argv = command(config, tiny, tmp_path / "again", "--eval-only", *weights, *HEADS[head])
    results = evaluate(argv)
    assert results["sem_seg"]["mIoU"] == pytest.approx(evaluation["sem_seg/mIoU"])
    names = build_metric_names(set_up(argv).cfg)
    assert {*names.overall, *names.by_class} == {x for x in evaluation if x.startswith("sem_seg/")}


@pytest.mark.parametrize("head", HEADS)
def test_images_of_several_sizes_and_one_without_labels_are_trained_and_evaluated(
    head: str, config: str, tmp_path: Path
) -> None:
    written = write_sem_seg(tmp_path / "mixed", scales=(1, 0.6, 1.3, 1))
    write_label(written.label(0), np.full_like(label_map(0), IGNORED))
    train.main(command(config, written, tmp_path / "output", *HEADS[head]))
    training, evaluation = metrics(tmp_path / "output")
    assert np.isfinite(training["total_loss"])
    assert np.isfinite(evaluation["sem_seg/mIoU"])


@pytest.mark.parametrize("head", HEADS)
def test_test_time_augmentation_needs_only_its_config_key(
    head: str, config: str, tiny: SemSegSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(32, 64, 112)"]
    seen = []
    build = trainer.build_test_time_augmentation

    def watch(*args: Any, **options: Any) -> Any:
        wrapped = build(*args, **options)
        wrapped.model.register_forward_pre_hook(
            lambda _, inputs: seen.append(tuple(inputs[0][0]["image"].shape[-2:]))
        )
        return wrapped

    monkeypatch.setattr(trainer, "build_test_time_augmentation", watch)
    argv = command(config, tiny, tmp_path / "output", "--eval-only", *sizes, *HEADS[head])
    results = evaluate(argv)
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    assert seen == [size for size in ((32, 48), (64, 96), (112, 168)) for _ in range(2)] * 2


def test_cityscapes_is_evaluated_by_its_own_scripts_without_leaving_files(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_dir, gt_dir = write_cityscapes(tmp_path)
    write_train_ids(Path(gt_dir))
    DatasetCatalog.register("city", lambda: load_cityscapes_semantic(image_dir, gt_dir))
    MetadataCatalog.get("city").set(
        gt_dir=gt_dir,
        evaluator_type="cityscapes_sem_seg",
        ignore_label=IGNORED,
        **_get_builtin_metadata("cityscapes"),
    )
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    output = tmp_path / "output"
    names = ["DATASETS.TRAIN", "('city',)", "DATASETS.TEST", "('city',)"]
    train.main(["--config-file", config, *TINY_MODEL, *names, "OUTPUT_DIR", str(output)])
    assert {"sem_seg/IoU", "sem_seg/iIoU", "sem_seg/IoU_sup"} <= metrics(output)[-1].keys()
    settings = yaml.safe_load((output / "config.yaml").read_text())
    assert settings["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] == 19
    assert not list(here.iterdir())


# Class counts


def test_a_class_count_that_agrees_with_the_data_is_accepted(
    config: str, tiny: SemSegSet, tmp_path: Path
) -> None:
    counts = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "MODEL.POINT_HEAD.NUM_CLASSES", "4"]
    argv = command(config, tiny, tmp_path / "output", *counts)
    job = set_up(argv)
    assert job.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 4


@pytest.mark.parametrize("key", ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "MODEL.POINT_HEAD.NUM_CLASSES"])
@pytest.mark.parametrize("count", ["3", "54"])
def test_a_class_count_that_contradicts_the_data_is_refused_naming_both(
    key: str,
    count: str,
    config: str,
    tiny: SemSegSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = refusal(command(config, tiny, tmp_path / "output", key, count), capsys)
    assert f"{key} is {count}" in error
    assert "is 4 in tiny" in error


def test_sets_of_different_classes_are_refused(
    config: str, tiny: SemSegSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_sem_seg(tmp_path / "other")
    argv = ["--register-sem-seg", "other", *other[:2], "a,b"]
    argv += command(config, tiny, tmp_path / "output", "DATASETS.TEST", "('other',)")
    error = refusal(argv, capsys)
    assert "tiny has 4" in error
    assert "other has 2 (a, b)" in error


# Bad input


def break_values(written: SemSegSet) -> Path:
    write_label(written.label(1), label_map(1) + 9)
    return written.label(1)


def break_size(written: SemSegSet) -> Path:
    write_label(written.label(0), label_map(0)[1:])
    return written.label(0)


def remove_label(written: SemSegSet) -> Path:
    written.label(1).unlink()
    return written.label(1)


def truncate_image(written: SemSegSet) -> Path:
    written.image(1).write_bytes(written.image(1).read_bytes()[:300])
    return written.image(1)


@pytest.mark.parametrize("damage", [break_values, break_size, remove_label, truncate_image])
@pytest.mark.parametrize("flag", [[], ["--eval-only"]], ids=["training", "evaluation"])
def test_a_bad_file_is_named_before_the_run(
    damage: Any,
    flag: list[str],
    config: str,
    tiny: SemSegSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = damage(tiny)
    assert str(file) in refusal(command(config, tiny, tmp_path / "output", *flag), capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"], "MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 0"),
        (["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()"], "TEST.AUG.MIN_SIZES"),
        (["DATASETS.TRAIN", "('streets',)"], "--register-sem-seg NAME IMAGES LABELS CLASSES"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    more: list[str],
    message: str,
    config: str,
    tiny: SemSegSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refusal(command(config, tiny, tmp_path / "output", *more), capsys)


def test_a_data_set_without_labeled_pixels_is_refused(
    config: str, tiny: SemSegSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (0, 1):
        write_label(tiny.label(number), np.full_like(label_map(number), IGNORED))
    error = refusal(command(config, tiny, tmp_path / "output"), capsys)
    assert "no pixel is labeled in tiny" in error


def test_an_evaluation_needs_the_outputs_of_the_model(
    config: str, tiny: SemSegSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco: CocoSet = write_coco(tmp_path / "coco")
    register = ["--register-coco", "boxes", *coco]
    argv = command(config, tiny, tmp_path / "output", "DATASETS.TEST", "('boxes',)")
    assert "cannot evaluate on boxes" in refusal([*register, *argv], capsys)
    argv = command(POINTREND, tiny, tmp_path / "output", "DATASETS.TRAIN", "('boxes',)")
    error = refusal([*register, *argv], capsys)
    assert "evaluator_type 'sem_seg' needs sem_seg" in error


def test_the_name_of_another_data_set_is_refused(
    config: str, tiny: SemSegSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--register-sem-seg", "coco_2017_val", *tiny]
    argv += command(config, tiny, tmp_path / "output")
    assert "'coco_2017_val'" in refusal(argv, capsys)


# Panoptic models


def test_a_panoptic_model_is_trained_and_evaluated_on_all_kinds_of_labels(tmp_path: Path) -> None:
    name = write_panoptic(tmp_path / "data").name
    names = ["DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)"]
    small = ["MODEL.SEM_SEG_HEAD.CONVS_DIM", "32", "MODEL.SEM_SEG_HEAD.POINT_HEAD.FC_DIM", "16"]
    counts = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "OUTPUT_DIR", str(tmp_path / "output")]
    train.main(["--config-file", PANOPTIC, *TINY_MODEL, *names, *small, *counts])
    training, evaluation = metrics(tmp_path / "output")
    assert {"loss_mask_point", "loss_sem_seg_point"} <= training.keys()
    assert {"sem_seg/mIoU", "bbox/AP", "segm/AP"} <= evaluation.keys()
    assert {"panoptic_seg/PQ", "panoptic_seg/PQ_th", "panoptic_seg/RQ_st"} <= evaluation.keys()
    settings = yaml.safe_load((tmp_path / "output" / "config.yaml").read_text())
    assert settings["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 3
