"""Training and evaluation from the command line to the written files, on tiny data sets."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_instances

from point_rend import Predictor
from point_rend.checkpoint.class_metadata import read_metadata
from point_rend.cli import train
from point_rend.engine import run, setup
from point_rend.engine.trainer import Trainer
from tests.runs import evaluate, metrics, refusal, set_up
from tests.tiny_datasets import (
    BASELINE,
    CONFIGS,
    KINDS,
    POINTREND,
    TINY_MODEL,
    CocoSet,
    write_cityscapes,
    write_coco,
)

pytestmark = pytest.mark.usefixtures("_restored")


@pytest.fixture
def tiny(tmp_path: Path) -> CocoSet:
    return write_coco(tmp_path / "tiny")


def command(written: CocoSet, output: Path, *more: str, config: str = POINTREND) -> list[str]:
    """Build a command line that trains and evaluates on a data set."""
    flags = [*("--config-file", config), *("--register-coco", "tiny", *written)]
    while more and more[0].startswith("--"):
        flags, more = [*flags, more[0]], more[1:]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    names += ["INPUT.MASK_FORMAT", "bitmask"]
    return [*flags, *TINY_MODEL, *names, "OUTPUT_DIR", str(output), *more]


def predictions(output: Path, name: str = "tiny") -> list[dict[str, Any]]:
    return json.loads((output / "inference" / name / "coco_instances_results.json").read_text())


def random_weights(argv: list[str], path: Path) -> list[str]:
    """Write a checkpoint of an untrained model; return the options that select it."""
    cfg = set_up(argv).cfg
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, path)
    return ["MODEL.WEIGHTS", str(path)]


# Runs


@pytest.mark.parametrize("config", [POINTREND, BASELINE], ids=["pointrend", "baseline"])
def test_training_evaluates_at_its_end_and_evaluating_the_checkpoint_gives_the_same(
    config: str, tiny: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # it is imported for plots only
    trained, evaluated = tmp_path / "trained", tmp_path / "evaluated"
    train.main(command(tiny, trained, config=config))
    training, evaluation = metrics(trained)
    assert training["loss_mask"] > 0
    assert ("loss_mask_point" in training) == (config == POINTREND)
    assert "segm/AP-triangle" in evaluation
    assert predictions(trained)
    written = yaml.safe_load((trained / "config.yaml").read_text())
    assert written["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] == 3

    weights = str(trained / "model_final.pth")
    argv = command(tiny, evaluated, "--eval-only", "MODEL.WEIGHTS", weights, config=config)
    results = evaluate(argv)
    assert predictions(evaluated) == predictions(trained)
    assert results["segm"]["AP"] == pytest.approx(evaluation["segm/AP"])
    assert not (evaluated / "model_final.pth").exists()


def test_without_gpus_the_training_runs_in_this_process(
    tiny: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = []
    monkeypatch.setattr(run, "run", lambda *_: callers.append(os.getpid()))
    train.main(command(tiny, tmp_path / "output", "--num-gpus=0"))
    assert callers == [os.getpid()]


def test_a_resumed_training_warns_that_it_keeps_its_learning_rate(
    tiny: CocoSet, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    more = ["DATASETS.TEST", "()", "SOLVER.MAX_ITER"]
    train.main(command(tiny, output, *more, "1"))
    train.main(command(tiny, output, "--resume", *more, "2"))
    warning = (
        "keeps the learning rates of its checkpoint, [0.0005], not those of this config, [0.001]"
    )
    log = output / "log.txt"
    assert "keeps the learning rates" not in log.read_text()
    train.main(command(tiny, output, "--resume", *more, "3", "SOLVER.BASE_LR", "0.001"))
    assert warning in log.read_text()


def test_without_a_checkpoint_resuming_starts_a_new_training_and_logs_it(
    tiny: CocoSet, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    train.main(command(tiny, output, "--resume", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"))
    log = (output / "log.txt").read_text()
    assert "Nothing to resume" in log
    assert "Starting training from iteration 0" in log
    assert (output / "model_final.pth").is_file()


def test_several_test_sets_are_evaluated_separately(tiny: CocoSet, tmp_path: Path) -> None:
    other = write_coco(tmp_path / "other", images=1)
    output = tmp_path / "output"
    weights = random_weights(command(tiny, output), tmp_path / "weights.pth")
    argv = command(tiny, output, "--eval-only", *weights, "DATASETS.TEST", "('tiny', 'other')")
    argv = ["--register-coco", "other", *other, *argv]
    results = evaluate(argv)
    assert list(results) == ["tiny", "other"]
    assert {found["image_id"] for found in predictions(output, "tiny")} == {1, 2}
    assert {found["image_id"] for found in predictions(output, "other")} == {1}


# Detectron2's loader calls shapely in an old way and leaves its worker processes to the collector.
@pytest.mark.filterwarnings("ignore:The 'resolution' argument:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_cityscapes_is_trained_and_evaluated(tmp_path: Path) -> None:
    image_dir, gt_dir = write_cityscapes(tmp_path)
    DatasetCatalog.register("city", lambda: load_cityscapes_instances(image_dir, gt_dir))
    meta = _get_builtin_metadata("cityscapes")
    MetadataCatalog.get("city").set(gt_dir=gt_dir, evaluator_type="cityscapes_instance", **meta)
    output = tmp_path / "output"
    config = str(CONFIGS / "pointrend_rcnn_R_50_FPN_1x_cityscapes.yaml")
    names = ["DATASETS.TRAIN", "('city',)", "DATASETS.TEST", "('city',)"]
    train.main(["--config-file", config, *TINY_MODEL, *names, "OUTPUT_DIR", str(output)])
    assert "segm/AP50" in metrics(output)[-1]


def test_invalid_annotations_are_logged_and_left_out(tiny: CocoSet, tmp_path: Path) -> None:
    content = tiny.read()
    content["annotations"][0]["segmentation"] = [[float("nan")] * 6]
    tiny.rewrite(content)
    output = tmp_path / "output"
    train.main(command(tiny, output, "DATASETS.TEST", "()"))
    log = (output / "log.txt").read_text()
    assert "1 annotations are impossible and are left out" in log
    assert "annotation 1 of image 1" in log
    assert (output / "model_final.pth").is_file()


def test_a_training_may_start_from_a_model_with_other_classes_and_another_point_head(
    tiny: CocoSet, tmp_path: Path
) -> None:
    pair = write_coco(tmp_path / "pair", categories=(1, 2))
    train.main(command(tiny, tmp_path / "three", "DATASETS.TEST", "()"))
    weights = ["MODEL.WEIGHTS", str(tmp_path / "three" / "model_final.pth")]
    weights += ["MODEL.POINT_HEAD.NAME", "ResidualPointHead"]
    argv = command(pair, tmp_path / "two", "DATASETS.TEST", "('pair',)", *weights)
    argv = [word.replace("tiny", "pair") if "/" not in word else word for word in argv]
    train.main(argv)
    log = (tmp_path / "two" / "log.txt").read_text()
    assert "MODEL.POINT_HEAD.NAME StandardPointHead (now ResidualPointHead)" in log
    assert predictions(tmp_path / "two", "pair")
    stored = [read_metadata(str(tmp_path / x / "model_final.pth")) for x in ("three", "two")]
    assert [x["thing_classes"] for x in stored] == [list(KINDS), list(KINDS[:2])]
    ids = [x["thing_dataset_id_to_contiguous_id"] for x in stored]
    assert ids == [{3: 0, 7: 1, 12: 2}, {1: 0, 2: 1}]


def test_a_trained_checkpoint_is_all_that_a_predictor_needs(
    tiny: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = command(tiny, tmp_path / "run", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")
    argv[argv.index(POINTREND)] = "pointrend_rcnn_R_50_FPN_1x_coco"  # a name, not a file
    train.main(argv)
    (tmp_path / "run" / "model_final.pth").rename(tmp_path / "m.pth")
    predictor = Predictor.from_checkpoint(tmp_path / "m.pth")
    assert predictor.metadata.thing_classes == list(KINDS)
    assert str(tmp_path / "run") == predictor.cfg.OUTPUT_DIR
    image = next(Path(tiny.image_root).iterdir())
    assert predictor(image)["instances"].has("pred_masks")


@pytest.mark.parametrize("config", [POINTREND, BASELINE], ids=["pointrend", "baseline"])
def test_a_set_of_polygons_and_rle_trains_in_polygon_format(
    config: str, tiny: CocoSet, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    more = ["DATASETS.TEST", "()", "INPUT.MASK_FORMAT", "polygon", "SOLVER.MAX_ITER", "1"]
    train.main(command(tiny, output, *more, config=config))
    (training,) = metrics(output)
    assert training["loss_mask"] > 0
    assert ("loss_mask_point" in training) == (config == POINTREND)


# Class counts


def test_the_class_count_follows_from_the_data(tiny: CocoSet, tmp_path: Path) -> None:
    argv = command(tiny, tmp_path / "output")
    job = set_up(argv)
    assert job.cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_a_class_count_that_agrees_with_the_data_is_accepted(tiny: CocoSet, tmp_path: Path) -> None:
    counts = ["MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.POINT_HEAD.NUM_CLASSES", "3"]
    argv = command(tiny, tmp_path / "output", *counts)
    job = set_up(argv)
    assert job.cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


@pytest.mark.parametrize("key", ["MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.POINT_HEAD.NUM_CLASSES"])
@pytest.mark.parametrize("count", ["2", "80"])
def test_a_class_count_that_contradicts_the_data_is_refused_naming_both(
    key: str, count: str, tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(command(tiny, tmp_path / "output", key, count), capsys)
    assert f"{key} is {count}" in error
    assert f"is 3 in tiny ({tiny.json_file})" in error
    assert f"leave the key out and it follows the data, or pass {key} 3" in error


def test_a_default_class_count_in_a_config_file_counts_as_explicit(
    tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "eighty.yaml"
    tree = {"_BASE_": POINTREND, "MODEL": {"ROI_HEADS": {"NUM_CLASSES": 80}}}
    config.write_text(yaml.safe_dump(tree))
    key = "MODEL.ROI_HEADS.NUM_CLASSES"
    for more in ([], [key, "80"]):
        error = refusal(command(tiny, tmp_path / "output", *more, config=str(config)), capsys)
        assert f"{key} is 80" in error
        assert f"eighty.yaml or its base sets it; to override it pass {key} 3" in error
        assert "leave the key out" not in error


def test_class_counts_come_from_the_data_sets_of_the_run_only(
    tiny: CocoSet, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    weights = random_weights(command(tiny, output), tmp_path / "weights.pth")
    argv = command(tiny, output, "--eval-only", *weights, "DATASETS.TRAIN", "('not_here',)")
    job = set_up(argv)
    assert job.cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


def test_sets_of_different_classes_are_refused(
    tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(tiny, tmp_path / "output", "DATASETS.TEST", "('coco_2017_val',)")
    error = refusal(argv, capsys)
    assert "tiny" in error
    assert "coco_2017_val" in error


# Bad input


def test_a_failing_command_keeps_the_config_of_the_training(
    tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    train.main(command(tiny, output, "SOLVER.MAX_ITER", "1"))
    written = (output / "config.yaml").read_bytes()
    final = ["MODEL.WEIGHTS", str(output / "model_final.pth")]
    narrow = ["MODEL.ROI_MASK_HEAD.CONV_DIM", "8"]
    gone = ["MODEL.WEIGHTS", str(output / "gone.pth")]
    assert "there is no checkpoint" in refusal(command(tiny, output, "--eval-only", *gone), capsys)
    assert "shape" in refusal(command(tiny, output, "--eval-only", *final, *narrow), capsys)
    train.main(command(tiny, output, "--eval-only", *final, "TEST.DETECTIONS_PER_IMAGE", "7"))
    assert (output / "config.yaml").read_bytes() == written


def test_the_config_of_a_training_stays_until_another_training_has_started(
    tiny: CocoSet, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    config = output / "config.yaml"
    evaluation = set_up(command(tiny, output, "--eval-only"))
    setup.begin_run(evaluation.args, evaluation.cfg)
    assert not config.exists()
    for replace, expected in ((False, "of the training"), (True, "MAX_ITER")):
        config.write_text("of the training")
        setup.write_config(evaluation.cfg, replace=replace)
        assert expected in config.read_text()
    config.unlink()
    setup.write_config(evaluation.cfg, replace=False)
    assert "MAX_ITER" in config.read_text()


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_evaluating_random_weights_is_logged(
    more: tuple[str, ...], tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    for weights, expected in (
        ([], True),
        (random_weights(command(tiny, output), tmp_path / "weights.pth"), False),
    ):
        capsys.readouterr()
        argv = command(tiny, output, "--eval-only", *more, *weights)
        set_up(argv)
        assert ("MODEL.WEIGHTS is empty" in capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["MODEL.POINT_HED.FC_DIM", "4"], "unknown config key MODEL.POINT_HED.FC_DIM"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR must be float"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER must be 1 or more, got 0"),
        (["SOLVER.MAX_ITER", "-1"], "SOLVER.MAX_ITER must be 1 or more, got -1"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD must be 1 or more, got 0"),
        (["DATALOADER.NUM_WORKERS", "-1"], "DATALOADER.NUM_WORKERS must be from 0 to 1024, got -1"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu': expected cpu, cuda or cuda:N"),
        (["MODEL.META_ARCHITECTURE", "GeneralisedRCNN"], "did you mean GeneralizedRCNN"),
        (["MODEL.ROI_HEADS.NAME", "PointRendROIHead"], "did you mean PointRendROIHeads"),
        (
            ["MODEL.ROI_MASK_HEAD.NAME", "PointRendMasks"],
            "ROI_MASK_HEAD.NAME must be a registered name, got 'PointRendMasks'",
        ),
        (
            ["MODEL.BACKBONE.NAME", "resnet"],
            "MODEL.BACKBONE.NAME must be a registered name, got 'resnet'",
        ),
        (["MODEL.RESNETS.DEPTH", "19"], "MODEL.RESNETS.DEPTH must be one of (18, 34, 50, 101"),
        (["INPUT.FORMAT", "XYZ"], "INPUT.FORMAT must be BGR, RGB or L, got 'XYZ'"),
        (["INPUT.MIN_SIZE_TRAIN", "()"], "INPUT.MIN_SIZE_TRAIN must be 1 pixel or more, got ()"),
        (["INPUT.MASK_FORMAT", "bitmap"], "INPUT.MASK_FORMAT must be bitmask or polygon"),
        (["MODEL.DEVICE", "cuda"], "MODEL.DEVICE cpu"),
        (["--num-gpus=3"], "IMS_PER_BATCH is 2: expected a multiple of the number of processes"),
        (["SOLVER.REFERENCE_WORLD_SIZE", "4"], "SOLVER.REFERENCE_WORLD_SIZE, which is 4"),
        (["--num-gpus=2", "MODEL.FPN.NORM", "SyncBN"], "set MODEL.FPN.NORM to naiveSyncBN"),
        (["--num-gpus=-1"], "argument --num-gpus: expected a number, 0 or more, got -1"),
        (["--num-gpus=two"], "argument --num-gpus: expected a number, 0 or more, got two"),
        (["--num-machines=2"], "expected --dist-url tcp://"),
        (["--num-machines=0"], "--num-machines 0: expected 1 machine or more, numbered from 0"),
        (["--num-machines=2", "--machine-rank=2"], "--machine-rank is 2 and --num-machines 2: ex"),
        (["SOLVER.AMP.DTYPE", "float8"], "SOLVER.AMP.DTYPE must be float16 or bfloat16"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["--eval-only", "DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["DATASETS.TRAIN", "('balloons',)"], "'balloons' is not registered"),
        (["DATASETS.TEST", "('voc_2007_val',)"], "voc_2007_val"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "no checkpoint nowhere.pth"),
        (["MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "0"], "SUBDIVISION_NUM_POINTS"),
        (["OUTPUT_DIR", "/dev/null/output"], "OUTPUT_DIR '/dev/null/output' cannot be written"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    more: list[str],
    message: str,
    tiny: CocoSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = refusal(command(tiny, tmp_path / "output", *more), capsys)
    assert message in error


def test_more_gpus_than_available_are_refused(
    tiny: CocoSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    argv = command(tiny, tmp_path / "output", "--num-gpus=3", "MODEL.DEVICE", "cuda")
    assert "--num-gpus is 3, but this machine has 1 CUDA device" in refusal(argv, capsys)


def test_a_missing_config_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml does not exist" in refusal(["--config-file", "nowhere.yaml"], capsys)
    assert "--config-file is missing" in refusal([], capsys)


def test_a_config_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof, config = tmp_path / "proof", tmp_path / "hostile.yaml"
    config.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{proof}']\n")
    assert "hostile.yaml" in refusal(["--config-file", str(config)], capsys)
    assert not proof.exists()


@pytest.mark.parametrize("content", [None, '{"images": [', '{"images": []}'])
def test_a_bad_annotation_file_is_refused_by_name(
    content: str | None, tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(tiny.json_file).unlink()
    if content is not None:
        Path(tiny.json_file).write_text(content)
    assert tiny.json_file in refusal(command(tiny, tmp_path / "output"), capsys)


@pytest.mark.parametrize("content", [None, b""])
def test_a_bad_image_is_refused_by_name_and_id(
    content: bytes | None, tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Path(tiny.image_root) / "001.png"
    image.unlink()
    if content is not None:
        image.write_bytes(content)
    error = refusal(command(tiny, tmp_path / "output"), capsys)
    assert "image 2" in error
    assert str(image) in error


def test_weights_of_other_shapes_are_refused_by_key(
    tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "roi_heads.mask_head.point_head.fc2.weight"
    weights = tmp_path / "other.pth"
    torch.save({"model": {key: torch.zeros(3, 4, 1)}}, weights)
    for flag in ([], ["--eval-only"]):
        argv = command(tiny, tmp_path / "output", *flag, "MODEL.WEIGHTS", str(weights))
        assert key in refusal(argv, capsys)


def test_a_hostile_checkpoint_is_refused_unless_it_is_allowed(
    tiny: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "hostile.pth"
    more = ["--eval-only"]
    more += random_weights(command(tiny, tmp_path / "output", *more), weights)
    state = torch.load(weights)["model"]
    torch.save({"model": state, "path": tmp_path}, weights)  # a Path is an arbitrary object
    assert str(weights) in refusal(command(tiny, tmp_path / "output", *more), capsys)
    train.main(command(tiny, tmp_path / "output", "--allow-unsafe-checkpoint", *more))


def test_a_bug_keeps_its_traceback(
    tiny: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: object) -> None:
        raise ValueError("a bug in the middle of a training")

    monkeypatch.setattr(Trainer, "run_step", stumble)
    with pytest.raises(ValueError, match="a bug in the middle"):
        train.main(command(tiny, tmp_path / "output"))


def test_warnings_of_the_package_reach_the_log(tiny: CocoSet, tmp_path: Path) -> None:
    argv = command(tiny, tmp_path / "output")
    set_up(argv)
    logging.getLogger("point_rend.any_module").warning("look here")
    assert "look here" in (tmp_path / "output" / "log.txt").read_text()
