"""Trainings by recipes beyond one mask head: cascade, large-scale jitter, keypoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from detectron2.data import MetadataCatalog

from point_rend import Predictor
from point_rend.checkpoint.class_metadata import read_metadata
from point_rend.cli import run_command, train
from point_rend.config.loading import load_config
from tests.engine.killing import assert_identical
from tests.runs import evaluate, metrics, refusal
from tests.tiny_datasets import CONFIGS, HEIGHT, TINY_MODEL, WIDTH, CocoSet, write_coco

pytestmark = pytest.mark.usefixtures("_restored")

NAMES = ["left_end", "right_end", "top"]
MORE = {
    "pointrend_cascade_rcnn_R_50_FPN_1x_coco": ["MODEL.POINT_HEAD.NAME", "ResidualPointHead"],
    "pointrend_rcnn_R_50_FPN_100ep_LSJ_coco": [
        *("INPUT.LSJ.SIZE", "[64, 96]", "MODEL.ROI_BOX_HEAD.CONV_DIM", "16"),
    ],
    "pointrend_keypoint_rcnn_R_50_FPN_1x_coco": ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16,)"],
}


def write_keypoints(folder: Path) -> CocoSet:
    """Write discs with three keypoints, boxes and triangles without any, and one crowd."""
    written = write_coco(folder, images=4)
    content = written.read()
    disc = content["categories"][0]
    disc |= {"keypoints": NAMES, "skeleton": [[1, 3], [3, 2]]}
    for annotation in content["annotations"]:
        if annotation["category_id"] == disc["id"]:
            x, y, width, height = annotation["bbox"]
            ends = [(x, y + height / 2), (x + width, y + height / 2), (x + width / 2, y)]
            annotation["keypoints"] = [value for end in ends for value in (*end, 2)]
            annotation["num_keypoints"] = 3
    crowd = next(x for x in content["annotations"] if isinstance(x["segmentation"], dict))
    crowd["iscrowd"] = 1
    written.rewrite(content)
    return written


def command(written: CocoSet, output: Path, name: str, *more: str) -> list[str]:
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    flags = ["--config-file", str(CONFIGS / f"{name}.yaml"), "--register-coco", "tiny", *written]
    return [*flags, *TINY_MODEL, *names, *MORE[name], "OUTPUT_DIR", str(output), *more]


@pytest.mark.parametrize("name", MORE)
def test_a_resumed_training_ends_as_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    written = write_keypoints(tmp_path / "tiny")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    schedule = ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
    schedule += ["MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    train.main(command(written, whole, name, *schedule))
    resumed.mkdir()
    shutil.copy(whole / "model_0000001.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    train.main(["--resume", *command(written, resumed, name, *schedule)])
    found, expected = (
        torch.load(folder / "model_final.pth", weights_only=True) for folder in (resumed, whole)
    )
    for checkpoint in (found, expected):
        checkpoint["metadata"].pop("config")
    assert_identical(found, expected)


KEYPOINTS = "pointrend_keypoint_rcnn_R_50_FPN_1x_coco"


def test_keypoints_of_a_file_are_trained_evaluated_predicted_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, output = write_keypoints(tmp_path / "tiny"), tmp_path / "out"
    train.main(command(written, output, KEYPOINTS, "MODEL.ROI_HEADS.NUM_CLASSES", "3"))
    log = (output / "log.txt").read_text()
    assert "NUM_KEYPOINTS is 3, the number of names in the data sets" in log
    assert "KEYPOINT_OKS_SIGMAS is 0.067 for each keypoint" in log
    training, evaluation = metrics(output)
    assert training["loss_keypoint"] > 0
    assert training["loss_mask_point"] > 0
    assert {"bbox/AP", "segm/AP", "keypoints/AP"} <= evaluation.keys()
    config, weights = str(output / "config.yaml"), str(output / "model_final.pth")
    cfg = load_config(config)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 3
    assert list(cfg.TEST.KEYPOINT_OKS_SIGMAS) == [0.067] * 3
    again = ["--eval-only", "--config-file", config, "--register-coco", "tiny", *written]
    results = evaluate([*again, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "again")])
    assert results["keypoints"]["AP"] == pytest.approx(evaluation["keypoints/AP"], nan_ok=True)

    stored = read_metadata(weights)
    assert stored["keypoint_names"] == NAMES
    assert [rule[:2] for rule in stored["keypoint_connection_rules"]] == [
        ["left_end", "top"],
        ["top", "right_end"],
    ]
    MetadataCatalog.remove("tiny")
    monkeypatch.setattr("sys.argv", ["predict.py"])
    argv = ["--config-file", config, "--input", written.image_root]
    argv += ["--output", str(tmp_path / "found"), "--formats", "pictures", "coco"]
    argv += ["--confidence-threshold", "0", "--opts", "MODEL.WEIGHTS", weights]
    run_command("predict", argv)
    file = json.loads((tmp_path / "found" / "instances.json").read_text())
    assert file["categories"][0]["keypoints"] == NAMES
    assert file["categories"][0]["skeleton"] == [[1, 3], [3, 2]]
    assert file["annotations"]
    for annotation in file["annotations"]:
        assert len(annotation["keypoints"]) == 9
        assert annotation["segmentation"]
    assert (tmp_path / "found" / "000.png").is_file()

    predictor = Predictor(load_config(config, ["MODEL.WEIGHTS", weights]))
    image = cv2.imread(str(Path(written.image_root) / "000.png"))
    given = predictor.masks_for(image, [[10, 10, 40, 40]], classes=[0])
    assert given.pred_masks.shape == (1, HEIGHT, WIDTH)
    predictor.save_pretrained(tmp_path / "saved")
    assert Predictor.from_pretrained(tmp_path / "saved").metadata.keypoint_names == NAMES


def other_names(content: dict[str, Any]) -> None:
    content["categories"][1]["keypoints"] = ["a", "b", "c"]


def repeated(content: dict[str, Any]) -> None:
    content["categories"][0]["keypoints"] = ["end", "end", "top"]


def missing(content: dict[str, Any]) -> None:
    discs = [x for x in content["annotations"] if "keypoints" in x and not x["iscrowd"]]
    discs[0].pop("keypoints")


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (other_names, (), "or several name different ones"),
        (repeated, (), "or a name occurs twice: expected one list"),
        (missing, (), "1 annotations have no 3 keypoints of 3 numbers"),
        (None, ("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "4"), "names 3 keypoints, but MODEL"),
        (None, ("TEST.KEYPOINT_OKS_SIGMAS", "[0.1]"), "OKS_SIGMAS has 1 numbers, but"),
        (None, ("TEST.AUG.ENABLED", "True"), "no test-time augmentation for keypoints"),
    ],
)
def test_keypoints_that_do_not_fit_are_refused_in_one_line(
    spoil: Any, more: tuple[str, ...], message: str, tmp_path: Path, capsys: Any
) -> None:
    written = write_keypoints(tmp_path / "tiny")
    if spoil is not None:
        content = written.read()
        spoil(content)
        written.rewrite(content)
    more = ("MODEL.ROI_HEADS.NUM_CLASSES", "3", *more)
    assert message in refusal(command(written, tmp_path / "out", KEYPOINTS, *more), capsys)


def test_data_sets_with_other_keypoints_are_refused(tmp_path: Path, capsys: Any) -> None:
    written, other = write_keypoints(tmp_path / "tiny"), write_keypoints(tmp_path / "other")
    content = other.read()
    content["categories"][0]["keypoints"] = ["left_end", "right_end", "bottom"]
    other.rewrite(content)
    argv = command(written, tmp_path / "out", KEYPOINTS, "MODEL.ROI_HEADS.NUM_CLASSES", "3")
    argv = ["--register-coco", "other", *other, *argv, "DATASETS.TEST", "('other',)"]
    line = refusal(argv, capsys)
    assert "must have the same keypoints in the same order" in line
    assert "left_end, right_end, top" in line
