"""Evaluation of one checkpoint with our heads and the stock project's, on a tiny data set."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from pycocotools.mask import decode

from point_rend import load_config
from point_rend.cli import evaluate_with_stock
from point_rend.engine.trainer import Trainer
from point_rend.experiments.stock_evaluation import check_stock_config, compare_results
from tests.tiny_datasets import CONFIGS, POINTREND, TINY_MODEL, process_state_restored, write_coco


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    with process_state_restored():
        yield


@pytest.mark.parametrize(
    "config", [POINTREND, str(CONFIGS / "implicit_pointrend_R_50_FPN_1x_coco.yaml")]
)
def test_one_checkpoint_has_the_same_metrics_with_both(
    config: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    weights, written = tmp_path / "model.pth", write_coco(tmp_path / "tiny")
    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    model = build_model(load_config(config, [*TINY_MODEL, *classes]))
    for parameter in model.roi_heads.mask_head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # otherwise most masks would be empty
    torch.save({"model": model.state_dict()}, weights)

    built = []
    build = Trainer.build_model

    def build_and_record(cfg: object) -> torch.nn.Module:
        built.append(build(cfg))
        return built[-1]

    monkeypatch.setattr(Trainer, "build_model", build_and_record)
    names = ["DATASETS.TEST", "('tiny',)", "MODEL.WEIGHTS", str(weights)]
    output = ["OUTPUT_DIR", str(tmp_path / "output")]
    flags = ["--config-file", config, "--register-coco", "tiny", *written]
    largest = evaluate_with_stock.main([*flags, *TINY_MODEL, *names, *output])

    def pixels(heads: str) -> tuple[np.ndarray, float]:
        folder = tmp_path / "output" / heads / "inference" / "tiny"
        results = json.loads((folder / "coco_instances_results.json").read_text())
        masks = np.stack([decode(result["segmentation"]) for result in results])
        return masks, sum(math.prod(result["bbox"][2:]) for result in results)

    assert largest < 0.01
    ours, stock = (type(model.roi_heads.mask_head) for model in built)
    assert ours.__module__.startswith("point_rend.")
    assert stock.__module__.startswith("detectron2.")
    assert "| tiny | segm | AP | " in capsys.readouterr().out
    (masks, area_of_boxes), (stock_masks, _) = pixels("ours"), pixels("stock")
    assert 0.1 < masks.sum() / area_of_boxes < 0.9
    assert np.mean(masks != stock_masks) <= 1e-5


def test_the_table_shows_every_metric_and_the_largest_difference() -> None:
    ours = {"a": {"segm": {"AP": 30.0, "APl": float("nan")}, "bbox": {"AP": 41.0}}}
    stock = {"a": {"segm": {"AP": 30.5, "APl": float("nan")}, "bbox": {"AP": 41.0}}}
    table, largest = compare_results(ours, stock)
    assert largest == pytest.approx(0.5)
    assert "| a | segm | AP | 30.000 | 30.500 | -0.500 |" in table
    assert len(table.splitlines()) == 2 + 3


def test_a_metric_that_only_one_side_has_is_a_difference() -> None:
    nan = float("nan")
    assert compare_results({"a": {"segm": {"AP": nan}}}, {"a": {"segm": {"AP": 1.0}}})[1] > 1e6


@pytest.mark.parametrize("section", ["MODEL.POINT_HEAD", "MODEL.SEM_SEG_HEAD.POINT_HEAD"])
def test_a_point_head_that_the_stock_project_lacks_is_refused(section: str) -> None:
    cfg = load_config(POINTREND, [f"{section}.NAME", "ResidualPointHead"])
    with pytest.raises(ValueError, match=rf"{section}\.NAME is ResidualPointHead: .*Standard"):
        check_stock_config(cfg)


def test_class_agnostic_masks_are_refused_which_the_stock_head_does_not_support() -> None:
    agnostic = ["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"]
    one, three = (["MODEL.ROI_HEADS.NUM_CLASSES", n] for n in ("1", "3"))
    with pytest.raises(ValueError, match=r"CLS_AGNOSTIC_MASK is True.* each of 3 classes"):
        check_stock_config(load_config(POINTREND, agnostic + three))
    check_stock_config(load_config(POINTREND, agnostic + one))
    check_stock_config(load_config(POINTREND, three))
