"""The ablation of Table 3: settings, tables, a tiny model on a tiny data set."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from point_rend.cli import ablate
from point_rend.engine.arguments import build_parser
from point_rend.engine.setup import read_config
from point_rend.engine.trainer import Trainer
from point_rend.experiments.ablation.subdivision import (
    SubdivisionSetting,
    format_subdivision,
    steps_to,
)
from point_rend.rendering.subdivision import SubdivisionPlan
from tests.experiments.ablation.tiny import (
    evaluation_options,
    refusal,
    semantic_options,
    training_options,
)
from tests.tiny_datasets import BASELINE, POINTREND

SIDES = {"p2": 4, "p3": 8}  # strides


def command(output: Path, options: list[str], *own: str) -> list[str]:
    sides = ["--sides", "14,28", "--point-sides", "14,28"]
    return ["subdivision", "--output", str(output), *sides, *own, "--", *options]


def test_settings_whose_points_cover_all_grids_are_the_same():
    of = SubdivisionSetting.of
    assert of(28, 56**2) == of(28, 28**2) != of(28, 14**2)
    plans = [SubdivisionPlan(7, 2, points).without_covered_steps() for points in (784, 3136)]
    assert {(plan.start_side, plan.steps) for plan in plans} == {(28, 0)}


@pytest.mark.parametrize(("side", "steps"), [(7, 0), (14, 1), (224, 5)])
def test_the_number_of_steps_follows_from_the_side(side: int, steps: int):
    assert steps_to(side, 7) == steps


@pytest.mark.parametrize("side", [3, 21, 30])
def test_a_side_that_no_doubling_reaches_is_refused(side: int):
    with pytest.raises(ValueError, match=rf"{side} is not 7 \(.*\) times a power of two"):
        steps_to(side, 7)


def test_the_table_has_each_side_and_number_of_points():
    results = {
        SubdivisionSetting(14, 196): {"segm/AP": 1.0},
        SubdivisionSetting(28, 196): {"segm/AP": 2.0},
        SubdivisionSetting(28, 784): {"segm/AP": 3.456},
    }
    assert format_subdivision(results, [14, 28], [14, 28], ["segm/AP"]).splitlines() == [
        "| segm/AP | 14² points | 28² points |",
        "|---|---:|---:|",
        "| 14×14 | 1.00 | 1.00 |",
        "| 28×28 | 2.00 | 3.46 |",
    ]


def test_settings_are_evaluated_once_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = evaluation_options(tmp_path)
    rendered = []
    build = Trainer.build_model

    def build_and_record(cfg: object) -> torch.nn.Module:
        model = build(cfg)
        rendered.append(model.roi_heads.mask_head.refinement.renderer.plan)
        return model

    monkeypatch.setattr(Trainer, "build_model", build_and_record)
    output = tmp_path / "output"
    ablate.main(command(output, options))
    assert [(p.output_side, p.points_per_step) for p in rendered] == [
        (14, 196),
        (28, 196),
        (28, 784),
    ]
    names = {file.stem for file in output.glob("*.json")}
    assert names == {"side14_points196", "side28_points196", "side28_points784"}
    table = (output / "subdivision.md").read_text()
    assert table.splitlines()[0] == "| segm/AP | 14² points | 28² points |"
    assert table in capsys.readouterr().out
    assert cv2.imread(str(output / "subdivision.png")).shape == (480, 720, 3)

    lost = output / "side28_points196.json"
    kept = json.loads(lost.read_text())["figures"]
    lost.unlink()
    ablate.main(command(output, options))
    assert len(rendered) == 3 + 1
    assert json.loads(lost.read_text())["figures"] == pytest.approx(kept, nan_ok=True)
    assert (output / "subdivision.md").read_text() == table
    ablate.main(command(output, options, "--metric", "segm/AP,bbox/AP"))
    assert (output / "subdivision.md").read_text().startswith(f"{table}\n| bbox/AP |")
    assert cv2.imread(str(output / "subdivision.png")).shape == (480, 1440, 3)

    message = refusal(command(output, [*options, "TEST.DETECTIONS_PER_IMAGE", "4"]), capsys)
    assert "was measured with other options" in message
    message = refusal(command(output, options, "--metric", "segm/BP"), capsys)
    assert "--metric segm/BP: expected one of" in message
    assert "segm/AP50" in message
    weights = Path(options[-1])
    content = torch.load(weights)
    torch.save({"model": {key: 0.5 * value for key, value in content["model"].items()}}, weights)
    message = refusal(command(output, options), capsys)
    assert f"measured with other contents of MODEL.WEIGHTS {weights}: expected the same" in message
    assert len(rendered) == 3 + 1


def test_maps_are_rendered_with_no_points_some_and_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = [*semantic_options(tmp_path), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"]
    cfg = read_config(build_parser().parse_args(options))
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    options += ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    rendered = []

    def evaluate(_: object, model: torch.nn.Module, **__: object) -> dict[str, dict[str, float]]:
        head = model.sem_seg_head
        features = {name: torch.rand(1, 16, 32 // side, 48 // side) for name, side in SIDES.items()}
        with torch.no_grad():
            coarse = head.coarse_sem_seg_head.layers(features)
            logits, _ = head.eval()(features)
        rendered.append((coarse, logits))
        return {"sem_seg": {"mIoU": float(len(rendered))}}

    monkeypatch.setattr(Trainer, "test", evaluate)
    output = tmp_path / "output"
    ablate.main(["subdivision", "--output", str(output), "--points", "all,0,9", "--", *options])
    assert (output / "subdivision.md").read_text().splitlines() == [
        "| points per step | sem_seg/mIoU |",
        "|---|---:|",
        "| none: coarse logits | 1.00 |",
        "| 9 | 2.00 |",
        "| all pixels | 3.00 |",
    ]
    assert cv2.imread(str(output / "subdivision.png")) is not None
    changed = []
    for coarse, logits in rendered:
        while coarse.shape != logits.shape:
            coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        changed.append((logits != coarse).any(dim=1).float().mean().item())
    assert changed[0] == 0 < changed[1] < 0.5
    assert changed[2] == 1


@pytest.mark.parametrize(
    ("make_options", "own", "message"),
    [
        (semantic_options, ["--sides", "28"], "--sides: expected none, since the model renders th"),
        (training_options, ["--points", "0"], "--points: expected none, since the model renders m"),
        (semantic_options, ["--metric", "sem_seg/x"], "--metric is 'sem_seg/x', which the evaluat"),
    ],
)
def test_flags_for_another_model_are_refused_before_the_first_evaluation(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_options: Callable[[Path], list[str]],
    own: list[str],
    message: str,
):
    argv = ["subdivision", "--output", str(tmp_path / "output"), *own]
    assert message in refusal([*argv, "--", *make_options(tmp_path)], capsys)


@pytest.mark.parametrize("points", ["-1", "8192,every", str(10**7)])
def test_numbers_of_points_are_checked(points: str, capsys: pytest.CaptureFixture[str]):
    message = refusal(["subdivision", "--output", "x", "--points", points, "--", "SEED"], capsys)
    assert f"expected numbers from 0 to 9999999 or all, separated by commas, got {points!r}" in (
        message
    )


def test_a_model_without_subdivision_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = [BASELINE if word == POINTREND else word for word in evaluation_options(tmp_path)]
    assert "expected PointRendMaskHead" in refusal(command(tmp_path / "output", options), capsys)
