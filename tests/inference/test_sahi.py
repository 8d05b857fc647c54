"""The calls by which SAHI loads a model."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

import point_rend
from point_rend.config.dumping import dump_config
from tests.config.test_published_configs import SMALL


def short_file(name: str) -> str:
    """Text of a YAML file on top of a shipped one, with the options of a small model."""
    tree = {"_BASE_": point_rend.get_config_file(name)}
    for key, value in zip(SMALL[::2], SMALL[1::2], strict=True):
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value if value in ("", "cpu") else ast.literal_eval(value)
    return yaml.safe_dump(tree)


@pytest.mark.parametrize("kind", ["short", "written"])
@pytest.mark.parametrize("head", ["pointrend_rcnn", "implicit_pointrend"])
def test_a_shipped_config_and_that_of_a_training_predict_the_same_in_sahi(
    kind: str, head: str, tmp_path: Path
) -> None:
    name = f"InstanceSegmentation/{head}_R_50_FPN_3x_coco.yaml"
    ours = point_rend.load_config(name, SMALL)
    config_path, model_path = str(tmp_path / "config.yaml"), str(tmp_path / "model.pth")
    Path(config_path).write_text(short_file(name) if kind == "short" else dump_config(ours))
    torch.manual_seed(0)
    model = build_model(ours)
    for parameter in model.roi_heads.mask_head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # otherwise most masks would be empty
    torch.save({"model": model.state_dict()}, model_path)

    cfg = get_cfg()  # without add_pointrend_config
    cfg.set_new_allowed(True)
    cfg.merge_from_file(config_path)
    cfg.MODEL.WEIGHTS = model_path
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.INPUT.MAX_SIZE_TEST = 64
    predictor = DefaultPredictor(cfg)
    assert type(predictor.model.roi_heads.mask_head).__module__ == "point_rend.mask_head"
    ours.INPUT.MIN_SIZE_TEST = ours.INPUT.MAX_SIZE_TEST = 64
    ours.MODEL.WEIGHTS = model_path
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    found, expected = (run(image)["instances"] for run in (predictor, point_rend.Predictor(ours)))
    assert len(found) == 3
    assert found.pred_boxes.tensor.equal(expected.pred_boxes.tensor)
    assert found.pred_masks.equal(expected.pred_masks)
    assert found.pred_masks.any()
