"""tools/ablate.py sampling: planted figures, what is kept and resumed, one tiny training."""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import pytest
import yaml

from point_rend.cli import ablate
from point_rend.experiments.ablation import sampling as ablate_sampling
from point_rend.experiments.ablation.results import origin_of
from point_rend.experiments.ablation.sampling import (
    SETTINGS,
    Cell,
    Setting,
    figures_after,
    format_sampling,
)
from tests.tiny_datasets import POINTREND, TINY_MODEL, process_state_restored, write_coco
from tests.tiny_semantic import write_sem_seg

PLANTED = {
    Cell("uniform", 1): {"segm/AP": 30.0, "boundary/AP": 20.0},
    Cell("uniform", 2): {"segm/AP": 31.5, "boundary/AP": 20.5},
    Cell("uniform", 7): {"segm/AP": 33.0, "boundary/AP": 22.0},
    Cell("mild", 1): {"segm/AP": 40.0, "boundary/AP": 35.0},
    Cell("mild", 2): {"segm/AP": 41.0, "boundary/AP": 34.0},
    Cell("mild", 7): {"segm/AP": 39.5, "boundary/AP": 36.0},
}


@pytest.fixture(autouse=True)
def _restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.argv", ["ablate.py"])
    with process_state_restored():
        yield


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Options of train_net.py for a tiny training."""
    coco = write_coco(tmp_path / "tiny")
    datasets = ["--register-coco", "tiny", *coco]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)", "SOLVER.MAX_ITER", "1"]
    return ["--config-file", POINTREND, *datasets, *TINY_MODEL, *names]


@pytest.fixture
def semantic(tmp_path: Path) -> list[str]:
    """The same for a semantic model."""
    tree = {
        "_BASE_": POINTREND,
        "MODEL": {
            "META_ARCHITECTURE": "PointRendSemanticSegmentor",
            "MASK_ON": False,
            "SEM_SEG_HEAD": {"NAME": "PointRendSemSegHead", "IN_FEATURES": ["p2", "p3"]},
        },
    }
    config = tmp_path / "semantic.yaml"
    config.write_text(yaml.safe_dump(tree))
    datasets = ["--register-sem-seg", "tiny", *write_sem_seg(tmp_path / "scenes")]
    names = ["DATASETS.TRAIN", "('tiny',)", "DATASETS.TEST", "('tiny',)"]
    return ["--config-file", str(config), *datasets, *TINY_MODEL, *names]


class Trainings:
    """Stands for run_training: notes the commands and leaves planted figures.

    Args:
        metric: The name of the figure; its value is the seed and a tenth of k.
        failing: The trainings, by number, that end without figures.
    """

    def __init__(self, metric: str = "segm/AP", failing: Sequence[int] = ()) -> None:
        self.metric, self.failing = metric, failing
        self.folders: list[str] = []

    def __call__(self, options: Sequence[str]) -> None:
        args = ablate_sampling.train_net.build_parser().parse_args(options)
        said = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
        folder = Path(said["OUTPUT_DIR"])
        folder.mkdir(parents=True, exist_ok=True)
        self.folders.append(folder.name)
        if len(self.folders) in self.failing:
            raise SystemExit(143)
        value = int(said["SEED"]) + int(said["MODEL.POINT_HEAD.OVERSAMPLE_RATIO"]) / 10
        lines = [
            {"iteration": 0, "total_loss": 1.0},
            {"iteration": int(said["SOLVER.MAX_ITER"]), self.metric: value},
        ]
        (folder / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainings]:
    def plant(**arguments: object) -> Trainings:
        trainings = Trainings(**arguments)
        monkeypatch.setattr(ablate_sampling, "run_training", trainings)
        return trainings

    return plant


def command(output: Path, options: list[str], *own: str) -> list[str]:
    return ["sampling", "--output", str(output), *own, "--", *options]


def refusal(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        ablate.main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_settings_are_those_of_the_paper():
    chosen = [(s.k, s.beta, s.on_regular_grid) for s in SETTINGS.values()]
    assert chosen == [(1, 0.0, True), (1, 0.0, False), (3, 0.75, False), (10, 0.75, False)]


def test_options_of_a_setting_set_all_three_keys():
    point = "MODEL.POINT_HEAD"
    assert Setting("", k=5, beta=0.5).options == [
        *(f"{point}.TRAIN_ON_REGULAR_GRID", "False", f"{point}.OVERSAMPLE_RATIO", "5"),
        *(f"{point}.IMPORTANCE_SAMPLE_RATIO", "0.5"),
    ]


def test_the_table_has_mean_and_sample_deviation_over_the_seeds():
    table = format_sampling(PLANTED, ["uniform", "mild"], ["segm/AP", "boundary/AP"]).splitlines()
    assert table[:2] == [
        "| training points | segm/AP | boundary/AP | seeds |",
        "|---|---:|---:|---:|",
    ]
    for line, setting in zip(table[2:], ("uniform", "mild"), strict=True):
        cells = []
        for metric in ("segm/AP", "boundary/AP"):
            values = [v[metric] for cell, v in PLANTED.items() if cell.setting == setting]
            cells.append(f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}")
        assert line == f"| {SETTINGS[setting].title} | {cells[0]} | {cells[1]} | 3 |"
    assert "| 31.50 ± 1.50 |" in table[2]


def test_one_seed_has_no_spread():
    table = format_sampling({Cell("mild", 1): {"segm/AP": 2.0}}, ["mild"], ["segm/AP"])
    assert table.splitlines()[-1].endswith("| 2.00 | 1 |")


def test_every_setting_is_trained_with_every_seed_and_shown(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., Trainings],
    capsys: pytest.CaptureFixture[str],
):
    trainings, output = planted(), tmp_path / "output"
    ablate.main(command(output, options, "--settings", "uniform,heavy", "--seeds", "2,5"))
    assert trainings.folders == ["uniform_seed2", "heavy_seed2", "uniform_seed5", "heavy_seed5"]
    table = (output / "sampling.md").read_text()
    spread = f"{statistics.stdev([2, 5]):.2f}"
    assert table.splitlines()[2:] == [
        f"| uniform (k = 1, β = 0) | 3.60 ± {spread} | 2 |",
        f"| heavily biased (k = 10, β = 0.75) | 4.50 ± {spread} | 2 |",
    ]
    assert table in capsys.readouterr().out
    assert cv2.imread(str(output / "sampling.png")).shape == (480, 540, 3)

    ablate.main(command(output, options, "--settings", "uniform,mild,heavy", "--seeds", "2,5"))
    assert trainings.folders[4:] == ["mild_seed2", "mild_seed5"]


def test_an_interrupted_training_is_taken_up_and_finished_ones_are_kept(
    tmp_path: Path, options: list[str], planted: Callable[..., Trainings]
):
    argv = command(tmp_path / "output", options, "--settings", "uniform,mild", "--seeds", "1,2")
    trainings = planted(failing=[3])
    with pytest.raises(SystemExit) as ended:
        ablate.main(argv)
    assert ended.value.code == 143
    ablate.main(argv)
    assert trainings.folders[2:] == ["uniform_seed2", "uniform_seed2", "mild_seed2"]


def test_a_begun_training_is_not_continued_with_other_options(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., Trainings],
    capsys: pytest.CaptureFixture[str],
):
    trainings = planted(failing=[1])
    with pytest.raises(SystemExit):
        ablate.main(command(tmp_path / "output", options))
    other = [*options, "SOLVER.BASE_LR", "0.1"]
    assert "measured with other options" in refusal(command(tmp_path / "output", other), capsys)
    assert len(trainings.folders) == 1


@pytest.mark.parametrize("changed", ["config", "annotations", "weights"])
def test_neither_figures_nor_a_begun_training_outlive_what_they_follow_from(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., Trainings],
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
        part = f"config {config}"
    elif changed == "annotations":
        json_file.write_text(f"{json_file.read_text()} ")
        part = f"annotations {json_file} of tiny"
    else:
        weights.write_bytes(b"other")
        part = f"MODEL.WEIGHTS {weights}"
    said = refusal(argv, capsys)
    assert f"mild_seed1.json was measured with other contents of {part}: expected" in said
    (tmp_path / "output" / "mild_seed1.json").unlink()
    assert f"mild_seed2.json was measured with other contents of {part}" in refusal(argv, capsys)
    assert trainings.folders == ["mild_seed1", "mild_seed2"]


def test_label_maps_are_annotations(semantic: list[str]):
    labels = Path(semantic[5])
    before = origin_of(semantic, training=True).inputs
    next(labels.rglob("*.png")).unlink()
    after = origin_of(semantic, training=True).inputs
    assert [x for x in after if after[x] != before[x]] == [f"annotations {labels} of tiny"]


def test_a_semantic_model_shows_its_own_metric(
    tmp_path: Path, semantic: list[str], planted: Callable[..., Trainings]
):
    planted(metric="sem_seg/mIoU")
    output = tmp_path / "output"
    ablate.main(command(output, semantic, "--settings", "mild", "--seeds", "1"))
    assert (output / "sampling.md").read_text().startswith("| training points | sem_seg/mIoU |")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["MODEL.POINT_HEAD.TRAIN_NUM_POINTS", "200"], "expected a square number"),
        (["MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False"], "expected a model that chooses"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["MODEL.POINT_HEAD.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
    ],
)
def test_what_would_spoil_a_training_is_refused_before_the_first(
    tmp_path: Path,
    options: list[str],
    planted: Callable[..., Trainings],
    capsys: pytest.CaptureFixture[str],
    changed: list[str],
    said: str,
):
    trainings = planted()
    assert said in refusal(command(tmp_path / "output", [*options, *changed]), capsys)
    assert trainings.folders == []


def test_an_evaluation_is_no_training(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
):
    said = refusal(command(tmp_path / "output", ["--eval-only", *options]), capsys)
    assert "--eval-only: expected options of a training" in said


def test_settings_are_known_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = refusal(command(tmp_path, ["x"], "--settings", "mild,wild"), capsys)
    assert "expected some of regular, uniform, mild, heavy" in said
    assert "'mild,wild'" in said


def test_a_training_without_an_evaluation_has_no_figures(tmp_path: Path):
    (tmp_path / "metrics.json").write_text('{"iteration": 9, "total_loss": 1.0}\n')
    with pytest.raises(ValueError, match="no evaluation after 10 iterations"):
        figures_after(tmp_path, 10)


def test_signals_are_passed_on_and_the_exit_code_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    script = tmp_path / "train.py"
    script.write_text(
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.sigwait([signal.SIGTERM])\n"
        "raise SystemExit(143)\n"
    )
    monkeypatch.setattr(ablate_sampling, "TRAIN_NET", script)
    with pytest.raises(SystemExit) as ended:
        ablate_sampling.run_training([])
    assert ended.value.code == 143
    assert "goes on where it was" in capsys.readouterr().err


def test_a_metric_without_objects_is_no_number_and_is_drawn_as_nothing(tmp_path: Path):
    results = {Cell("mild", seed): {"segm/APl": math.nan} for seed in (1, 2)}
    table = format_sampling(results, ["mild"], ["segm/APl"])
    assert "| nan ± nan | 2 |" in table
    ablate_sampling.draw_sampling(results, ["mild"], ["segm/APl"], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("statement", "code", "goes_on"),
    [("raise SystemExit(3)", 3, False), ("os.kill(os.getpid(), 9)", 137, True)],
)
def test_a_training_that_failed_ends_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    code: int,
    goes_on: bool,
):
    script = tmp_path / "train.py"
    script.write_text(f"import os\n{statement}\n")
    monkeypatch.setattr(ablate_sampling, "TRAIN_NET", script)
    with pytest.raises(SystemExit) as ended:
        ablate_sampling.run_training([])
    assert ended.value.code == code
    assert ("goes on where it was" in capsys.readouterr().err) == goes_on


def test_a_tiny_model_is_trained_and_measured(tmp_path: Path, options: list[str]):
    output = tmp_path / "output"
    argv = command(output, options, "--settings", "regular", "--seeds", "3")
    ablate.main(argv)
    kept = json.loads((output / "regular_seed3.json").read_text())["figures"]
    assert {"bbox/AP", "segm/AP", "segm/AP50"} < set(kept)
    assert all(math.isnan(value) or value >= 0 for value in kept.values())
    trained = yaml.safe_load((output / "regular_seed3" / "config.yaml").read_text())
    assert trained["MODEL"]["POINT_HEAD"]["TRAIN_ON_REGULAR_GRID"] is True
    assert trained["SEED"] == 3
    assert f"| regular grid | {kept['segm/AP']:.2f} | 1 |" in (output / "sampling.md").read_text()
