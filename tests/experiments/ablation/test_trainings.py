"""Ablations that train: planted metrics, resumed commands, one tiny training."""

import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import yaml

from point_rend.cli import ablate
from point_rend.experiments.ablation import trainings as module
from point_rend.experiments.ablation.recipes import with_averaged_weights
from point_rend.experiments.ablation.settings import SAMPLING_SETTINGS, SamplingSetting
from point_rend.experiments.ablation.trainings import (
    TrainingRun,
    final_metrics,
    format_trainings,
    plot_trainings,
    scaled_schedule,
)
from tests.experiments.ablation.tiny import (
    PlantedTrainings,
    refusal,
    semantic_options,
    training_options,
)
from tests.tiny_datasets import POINTREND

METRICS = {
    TrainingRun("uniform", 1): {"segm/AP": 30.0, "boundary/AP": 20.0},
    TrainingRun("uniform", 2): {"segm/AP": 31.5, "boundary/AP": 20.5},
    TrainingRun("uniform", 7): {"segm/AP": 33.0, "boundary/AP": 22.0},
    TrainingRun("mild", 1): {"segm/AP": 40.0, "boundary/AP": 35.0},
    TrainingRun("mild", 2): {"segm/AP": 41.0, "boundary/AP": 34.0},
    TrainingRun("mild", 7): {"segm/AP": 39.5, "boundary/AP": 36.0},
}


def table_of(results: dict[TrainingRun, dict[str, float]], metrics: list[str]) -> str:
    titles = {run.setting: SAMPLING_SETTINGS[run.setting].title for run in results}
    return format_trainings(results, titles, metrics, heading="training points")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    return training_options(tmp_path)


def command(output: Path, options: list[str], *own: str) -> list[str]:
    return ["sampling", "--output", str(output), *own, "--", *options]


def test_the_settings_are_those_of_the_paper():
    chosen = [(s.k, s.beta, s.on_regular_grid) for s in SAMPLING_SETTINGS.values()]
    assert chosen == [(1, 0.0, True), (1, 0.0, False), (3, 0.75, False), (10, 1.0, False)]


def test_the_options_of_a_setting_set_all_three_keys():
    point = "MODEL.POINT_HEAD"
    assert SamplingSetting("", k=5, beta=0.5).options == [
        *(f"{point}.TRAIN_ON_REGULAR_GRID", "False", f"{point}.OVERSAMPLE_RATIO", "5"),
        *(f"{point}.IMPORTANCE_SAMPLE_RATIO", "0.5"),
    ]


def test_the_table_has_mean_and_sample_deviation_over_the_seeds():
    table = table_of(METRICS, ["segm/AP", "boundary/AP"]).splitlines()
    assert table[:2] == [
        "| training points | segm/AP | boundary/AP | seeds |",
        "|---|---:|---:|---:|",
    ]
    for line, setting in zip(table[2:], ("uniform", "mild"), strict=True):
        cells = []
        for metric in ("segm/AP", "boundary/AP"):
            values = [v[metric] for run, v in METRICS.items() if run.setting == setting]
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")
        assert line == f"| {SAMPLING_SETTINGS[setting].title} | {cells[0]} | {cells[1]} | 3 |"
    assert "| 31.50 ± 1.50 |" in table[2]


def test_one_seed_has_no_deviation():
    table = table_of({TrainingRun("mild", 1): {"segm/AP": 2.0}}, ["segm/AP"])
    assert table.splitlines()[-1].endswith("| 2.00 | 1 |")


def test_every_setting_is_trained_with_every_seed_and_shown(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., PlantedTrainings],
    capsys: pytest.CaptureFixture[str],
):
    trainings, output = planted(), tmp_path / "output"
    ablate.main(command(output, options, "--settings", "uniform,heavy", "--seeds", "2,5"))
    assert trainings.folders == ["uniform_seed2", "heavy_seed2", "uniform_seed5", "heavy_seed5"]
    table = (output / "sampling.md").read_text()
    deviation = f"{statistics.stdev([2, 5]):.2f}"
    assert table.splitlines()[2:] == [
        f"| uniform (k = 1, β = 0) | 3.60 ± {deviation} | 2 |",
        f"| heavily biased (k = 10, β = 1) | 4.50 ± {deviation} | 2 |",
    ]
    assert table in capsys.readouterr().out
    assert cv2.imread(str(output / "sampling.png")).shape == (480, 540, 3)

    ablate.main(command(output, options, "--settings", "uniform,mild,heavy", "--seeds", "2,5"))
    assert trainings.folders[4:] == ["mild_seed2", "mild_seed5"]


def test_an_interrupted_training_is_continued_and_finished_ones_are_kept(
    tmp_path: Path, options: list[str], planted: Callable[..., PlantedTrainings]
):
    argv = command(tmp_path / "output", options, "--settings", "uniform,mild", "--seeds", "1,2")
    trainings = planted(failing=[3])
    with pytest.raises(SystemExit) as ended:
        ablate.main(argv)
    assert ended.value.code == 143
    ablate.main(argv)
    assert trainings.folders[2:] == ["uniform_seed2", "uniform_seed2", "mild_seed2"]


def test_a_training_that_diverges_is_named_after_the_others_are_finished(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., PlantedTrainings],
    capsys: pytest.CaptureFixture[str],
):
    trainings, output = planted(failing=[1], code=3), tmp_path / "output"
    with pytest.raises(SystemExit) as ended:
        ablate.main(command(output, options, "--settings", "uniform,mild", "--seeds", "1,2"))
    assert ended.value.code == 3
    assert len(trainings.folders) == 4
    assert "uniform_seed1 diverged; the results of all others" in capsys.readouterr().err
    ablate.main(command(output, options, "--settings", "mild", "--seeds", "1,2"))
    assert len(trainings.folders) == 4
    assert "| 2 |" in (output / "sampling.md").read_text()


def test_keys_that_the_ablation_sets_are_named(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., PlantedTrainings],
    capsys: pytest.CaptureFixture[str],
):
    trainings = planted()
    given = [*options, "SEED", "9", "MODEL.POINT_HEAD.OVERSAMPLE_RATIO", "7"]
    ablate.main(command(tmp_path / "output", given, "--settings", "mild", "--seeds", "4"))
    assert trainings.options[0]["SEED"] == "4"
    named = [line.split()[-11] for line in capsys.readouterr().err.splitlines()]
    assert named == ["SEED", "MODEL.POINT_HEAD.OVERSAMPLE_RATIO"]


@pytest.mark.parametrize(
    ("iterations", "steps"),
    [(1, "()"), (2, "(1,)"), (5, "(3, 4)"), (90, "(60, 80)"), (900, "(600, 800)")],
)
def test_a_short_training_keeps_the_steps_that_rounding_leaves(
    options: list[str], iterations: int, steps: str
):
    schedule = ["SOLVER.MAX_ITER", "90", "SOLVER.STEPS", "(60, 80)"]
    expected = ["SOLVER.MAX_ITER", str(iterations), "SOLVER.STEPS", steps]
    assert scaled_schedule([*options, *schedule], iterations) == expected


def test_an_unfinished_training_is_not_continued_with_other_options(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., PlantedTrainings],
    capsys: pytest.CaptureFixture[str],
):
    trainings = planted(failing=[1])
    with pytest.raises(SystemExit):
        ablate.main(command(tmp_path / "output", options))
    other = [*options, "SOLVER.BASE_LR", "0.1"]
    assert "measured with other options" in refusal(command(tmp_path / "output", other), capsys)
    assert len(trainings.folders) == 1


@pytest.mark.parametrize("changed", ["config", "annotations", "weights"])
def test_neither_metrics_nor_an_unfinished_training_outlive_their_inputs(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., PlantedTrainings],
    capsys: pytest.CaptureFixture[str],
    changed: str,
):
    config, weights, json_file = tmp_path / "a.yaml", tmp_path / "a.pth", Path(options[4])
    config.write_text(yaml.safe_dump({"_BASE_": POINTREND}))
    weights.write_bytes(b"first")
    options = [*options, "MODEL.WEIGHTS", str(weights)]
    options[options.index(POINTREND)] = str(config)
    trainings = planted(failing=[2])
    argv = command(tmp_path / "output", options, "--settings", "mild", "--seeds", "1,2")
    with pytest.raises(SystemExit):
        ablate.main(argv)
    if changed == "config":
        config.write_text(yaml.safe_dump({"_BASE_": POINTREND, "SOLVER": {"GAMMA": 0.3}}))
        name = f"config {config}"
    elif changed == "annotations":
        json_file.write_text(f"{json_file.read_text()} ")
        name = f"annotations {json_file} of tiny"
    else:
        weights.write_bytes(b"other")
        name = f"MODEL.WEIGHTS {weights}"
    message = refusal(argv, capsys)
    assert f"mild_seed1.json was measured with other contents of {name}: expected" in message
    (tmp_path / "output" / "mild_seed1.json").unlink()
    assert f"mild_seed2.json was measured with other contents of {name}" in refusal(argv, capsys)
    assert trainings.folders == ["mild_seed1", "mild_seed2"]


def test_a_semantic_model_shows_its_own_metric(
    tmp_path: Path, planted: Callable[..., PlantedTrainings]
):
    planted(metric="sem_seg/mIoU")
    output, options = tmp_path / "output", semantic_options(tmp_path)
    ablate.main(command(output, options, "--settings", "mild", "--seeds", "1"))
    assert (output / "sampling.md").read_text().startswith("| training points | sem_seg/mIoU |")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([], ["MODEL.POINT_HEAD.TRAIN_NUM_POINTS", "200"], "expected a square number"),
        ([], ["MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False"], "expected a model that samples its"),
        ([], ["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        ([], ["MODEL.POINT_HEAD.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
        (["--eval-only"], [], "--eval-only: expected options of a training"),
    ],
)
def test_options_that_would_spoil_a_training_are_refused_before_the_first(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., PlantedTrainings],
    capsys: pytest.CaptureFixture[str],
    before: list[str],
    after: list[str],
    message: str,
):
    trainings = planted()
    argv = command(tmp_path / "output", [*before, *options, *after])
    assert message in refusal(argv, capsys)
    assert trainings.folders == []


def test_a_training_without_an_evaluation_at_its_end_has_no_metrics(tmp_path: Path):
    (tmp_path / "metrics.json").write_text('{"iteration": 9, "total_loss": 1.0}\n')
    with pytest.raises(ValueError, match="not an evaluation after 10 iterations"):
        final_metrics(tmp_path, 10)


def test_a_metric_without_objects_is_nan_and_leaves_the_plot_empty(tmp_path: Path):
    results = {TrainingRun("mild", seed): {"segm/APl": math.nan} for seed in (1, 2)}
    table = table_of(results, ["segm/APl"])
    assert "| nan ± nan | 2 |" in table
    plot_trainings(results, ["mild"], ["segm/APl"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("lines", "code", "can_continue"),
    [
        (["raise SystemExit(3)"], 3, False),
        (["import os", "os.kill(os.getpid(), 9)"], 137, True),
        (
            [
                "import os, signal",
                "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])",
                "os.kill(os.getppid(), signal.SIGTERM)",
                "signal.sigwait([signal.SIGTERM])",
                "raise SystemExit(143)",
            ],
            143,
            True,
        ),
    ],
    ids=["failed", "killed", "a signal to the command is passed on"],
)
def test_a_training_that_ends_early_ends_the_command_with_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lines: list[str],
    code: int,
    can_continue: bool,
):
    monkeypatch.setattr(module, "TRAIN", (sys.executable, "-c", "\n".join(lines)))
    with pytest.raises(SystemExit) as ended:
        module.train([])
    assert ended.value.code == code
    assert ("same command again to continue" in capsys.readouterr().err) == can_continue


def test_a_tiny_model_is_trained_and_measured(tmp_path: Path, options: list[str]):
    output = tmp_path / "output"
    ablate.main(command(output, options, "--settings", "regular", "--seeds", "3"))
    kept = json.loads((output / "regular_seed3.json").read_text())["figures"]
    assert {"bbox/AP", "segm/AP", "segm/AP50"} < set(kept)
    assert all(math.isnan(value) or value >= 0 for value in kept.values())
    trained = yaml.safe_load((output / "regular_seed3" / "config.yaml").read_text())
    assert trained["MODEL"]["POINT_HEAD"]["TRAIN_ON_REGULAR_GRID"] is True
    assert trained["SEED"] == 3
    assert f"| regular grid | {kept['segm/AP']:.2f} | 1 |" in (output / "sampling.md").read_text()


def test_recipes_are_trained_with_every_seed_and_averaged_weights_have_a_line(
    tmp_path: Path, options: list[str], planted: Callable[..., PlantedTrainings]
):
    trainings, output = planted(others={"ema/segm/AP": 7.5}), tmp_path / "output"
    (other := tmp_path / "other.yaml").write_text(yaml.safe_dump({"_BASE_": POINTREND}))
    argv = ["recipes", "--output", str(output), "--recipes", f"{POINTREND},{other}"]
    shared = options[options.index("--register-coco") :]
    ablate.main([*argv, "--seeds", "1,2", "--", *shared])
    name = Path(POINTREND).stem
    assert trainings.folders == [f"{x}_seed{seed}" for seed in (1, 2) for x in (name, "other")]
    assert (output / "recipes.md").read_text().splitlines() == [
        "| config | segm/AP | seeds |",
        "|---|---:|---:|",
        f"| {name} | 1.50 ± {statistics.stdev([1, 2]):.2f} | 2 |",
        f"| {name}, averaged | 7.50 ± 0.00 | 2 |",
        f"| other | 1.50 ± {statistics.stdev([1, 2]):.2f} | 2 |",
        "| other, averaged | 7.50 ± 0.00 | 2 |",
    ]


@pytest.mark.parametrize(
    ("own", "shared", "message"),
    [
        ([], ["--config-file", "b.yaml"], "--config-file b.yaml: expected config files in --rec"),
        (["--metric", "ema/segm/AP"], [], "--metric ema/segm/AP: expected segm/AP, since averaged"),
    ],
)
def test_what_no_recipe_can_have_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    own: list[str],
    shared: list[str],
    message: str,
):
    argv = ["recipes", "--output", str(tmp_path / "output"), "--recipes", POINTREND, *own]
    assert message in refusal([*argv, "--", *shared, "MODEL_EMA.ENABLED", "True"], capsys)


def test_metrics_of_averaged_weights_belong_to_a_run_of_their_own():
    run = TrainingRun("a", 1)
    shown = with_averaged_weights({run: {"segm/AP": 1.0, "ema/segm/AP": 2.0}})
    assert shown == {run: {"segm/AP": 1.0}, TrainingRun("a, averaged", 1): {"segm/AP": 2.0}}


def test_recipes_of_one_name_are_refused(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
):
    argv = ["recipes", "--output", str(tmp_path / "output"), "--recipes", "a/x.yaml,b/x.yaml"]
    message = refusal([*argv, "--", *options[2:]], capsys)
    assert "--recipes has two files of the name x: expected names that differ" in message
