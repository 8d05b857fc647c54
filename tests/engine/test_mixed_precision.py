"""Models in mixed precision compared with the same models in float32."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from point_rend.data.shapes.coco import generate
from point_rend.engine.trainer import Trainer
from tests.config.test_semantic_configs import PANOPTIC, SMALL, load, sample
from tests.runs import set_up, without_finite_gradient
from tests.tiny_datasets import CONFIGS, TINY_MODEL

ITERATIONS, WINDOW = 24, 8
LARGER_SAMPLES = [  # for less noisy losses
    *("SOLVER.IMS_PER_BATCH", "4", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "256"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64", "SOLVER.BASE_LR", "0.02"),
]
IMPLICIT = "implicit_pointrend_R_50_FPN_1x_coco"


pytestmark = pytest.mark.usefixtures("_restored")


def curve(config: str, output: Path, *more: str) -> np.ndarray:
    """Train on the built-in set; return the total loss, averaged over WINDOW iterations each."""
    split = generate(output / "shapes", num_train=8, num_val=1, image_size=(96, 96))["train"]
    argv = ["--config-file", str(CONFIGS / f"{config}.yaml")]
    argv += ["--register-coco", "shapes", str(split.json_file), str(split.image_root)]
    argv += [*TINY_MODEL, "DATASETS.TRAIN", "('shapes',)", "DATASETS.TEST", "()"]
    argv += [*LARGER_SAMPLES, "SOLVER.MAX_ITER", str(ITERATIONS)]
    argv += ["OUTPUT_DIR", str(output / "-".join(["run", *more[3:]]))]
    cfg = set_up([*argv, *more]).cfg
    seed_all_rng(cfg.SEED)  # the initial weights must not depend on other tests
    trainer = Trainer(cfg)
    trainer.train()
    losses = [loss for loss, _ in trainer.storage.history("total_loss").values()]
    return np.reshape(losses, (ITERATIONS // WINDOW, WINDOW)).mean(axis=1)


@pytest.mark.parametrize(
    ("config", "types"),
    [
        ("pointrend_rcnn_R_50_FPN_1x_coco", ["bfloat16"]),
        pytest.param(
            "pointrend_rcnn_R_50_FPN_1x_coco", ["float16", "bfloat16"], marks=pytest.mark.slow
        ),
        pytest.param(IMPLICIT, ["float16", "bfloat16"], marks=pytest.mark.slow),
    ],
)
def test_training_on_the_built_in_set_converges_as_in_float32(
    config: str, types: list[str], tmp_path: Path
) -> None:
    full = curve(config, tmp_path)
    assert full[-1] < 0.85 * full[0]
    for name in types:
        mixed = curve(config, tmp_path, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", name)
        assert not np.array_equal(mixed, full)
        np.testing.assert_allclose(mixed, full, rtol=0.15)


@pytest.mark.parametrize(
    "config",
    [
        PANOPTIC,
        "pointrend_semantic_R_101_FPN_1x_cityscapes",
        "pointrend_deeplab_v3_plus_R_103_os16_90k_cityscapes",
    ],
)
@pytest.mark.parametrize(
    "precision", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str
)
def test_losses_are_in_float32_and_close_to_those_without_mixed_precision(
    config: str, precision: torch.dtype
) -> None:
    cfg = load(config, SMALL)
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith("bbox_pred.bias"):
            torch.nn.init.constant_(parameter, 0.1)  # otherwise the box loss is only rounding
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with EventStorage(), torch.autocast("cpu", precision, enabled=enabled):
            losses = model([sample(cfg)])
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        found.append({name: loss.item() for name, loss in losses.items()})
    assert found[1] != found[0]
    assert found[1] == pytest.approx(found[0], rel=0.02)
    sum(losses.values()).backward()
    assert without_finite_gradient(model) == []
