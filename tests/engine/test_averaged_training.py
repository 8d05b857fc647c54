"""Trainings with averaged weights: the same training, and one more model to use."""

import inspect
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import Tensor

from point_rend import Predictor
from point_rend.checkpoint.class_metadata import read_stored_metadata
from point_rend.cli import train
from point_rend.engine.trainer import Trainer
from tests.engine.killing import assert_identical, command, signal_itself, tagged_iteration
from tests.runs import evaluate, files_limited_to, metrics, refusal, set_up
from tests.tiny_datasets import CocoSet

pytestmark = pytest.mark.usefixtures("_restored")

EMA = ["MODEL_EMA.ENABLED", "True", "MODEL_EMA.DECAY", "0.7"]
PRECISE = ["TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2"]
SCHEDULE = ["SOLVER.MAX_ITER", "3", "SOLVER.BASE_LR", "0.01"]
ALONE = ["DATASETS.TEST", "()"]


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def exit_code(argv: list[str], prepare: Callable[[], None]) -> int:
    """Run a training in this process after changes of the trainer; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("run_step", "test"):
            patch.setattr(Trainer, name, inspect.getattr_static(Trainer, name))  # to be restored
        prepare()
        with pytest.raises(SystemExit) as ended:
            train.main(argv)
    return ended.value.code


def start_anew(written: CocoSet, output: Path, *more: str) -> list[str]:
    """Build the arguments of a training that does not resume."""
    return command(written, output, *more)[1:]


def test_the_average_does_not_change_the_training_and_is_saved_with_the_last_iteration(
    mixed: CocoSet, tmp_path: Path
) -> None:
    """Also not with precise batch statistics, which the average gets for itself."""
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    for output, more in ((plain, []), (averaged, EMA)):
        train.main(command(mixed, output, *SCHEDULE, *PRECISE, *more))
    checkpoints = [read(output / "model_final.pth") for output in (plain, averaged)]
    average = checkpoints[1]["trainer"].pop("average")
    for checkpoint in checkpoints:
        checkpoint["metadata"].pop("config")
    assert_identical(checkpoints[1], checkpoints[0])
    losses = [
        {name: value for name, value in line.items() if "time" not in name and "ema/" not in name}
        for output in (plain, averaged)
        for line in metrics(output)
    ]
    assert losses[: len(losses) // 2] == losses[len(losses) // 2 :]

    saved = read(averaged / "model_final_ema.pth")
    assert saved.keys() == {"model", "metadata"}
    assert saved["model"].keys() == checkpoints[1]["model"].keys()
    assert average["updates"] == 3
    for name, value in saved["model"].items():
        raw = checkpoints[1]["model"][name]
        assert torch.equal(value, average["weights"][name] if value.is_floating_point() else raw)
    assert not torch.equal(
        saved["model"]["backbone.bottom_up.res2.0.conv1.weight"],
        checkpoints[1]["model"]["backbone.bottom_up.res2.0.conv1.weight"],
    )
    assert not (plain / "model_final_ema.pth").exists()
    assert "ema" not in json.dumps(metrics(plain))
    assert_precise(saved["model"], set_up(command(mixed, averaged, *PRECISE)).cfg)


def assert_precise(state: dict[str, Tensor], cfg: CfgNode) -> None:
    """Compare the statistics of a backbone with those that its weights have on the data."""
    model = Trainer.build_model(cfg)
    model.load_state_dict(state)
    model.train()
    for norm in get_bn_modules(model):
        norm.running_mean.fill_(7.0)
    with EventStorage():
        update_bn_stats(model, iter(Trainer.build_train_loader(cfg)), cfg.TEST.PRECISE_BN.NUM_ITER)
    for name, value in model.state_dict().items():
        if name.startswith("backbone") and "running" in name:
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_resumed_training_ends_with_the_average_of_an_uninterrupted_one(
    mixed: CocoSet, tmp_path: Path
) -> None:
    """Also with several batches for an update and precise batch statistics."""
    schedule = [*EMA, *PRECISE, "SOLVER.ACCUMULATION_STEPS", "2", "TEST.EVAL_PERIOD", "1"]
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    train.main(command(mixed, uninterrupted, *SCHEDULE, *schedule, *ALONE))
    argv = command(mixed, resumed, *SCHEDULE, *schedule, *ALONE)
    stop = signal_itself(signal.SIGTERM, iteration=1)
    assert exit_code(argv, stop) == 128 + signal.SIGTERM
    assert tagged_iteration(resumed) == 1
    assert read(resumed / "model_0000001.pth")["trainer"]["data"]["batches"] == 4
    assert not (resumed / "model_final_ema.pth").exists()
    train.main(argv)
    for name in ("model_final.pth", "model_final_ema.pth"):
        found, expected = (read(folder / name) for folder in (resumed, uninterrupted))
        for checkpoint in (found, expected):
            checkpoint["metadata"].pop("config")
        assert_identical(found, expected)


@pytest.mark.parametrize(
    "more",
    [
        [],
        pytest.param(
            [
                *("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48, 64)"),
                *("TEST.MIXED_PRECISION", "True"),
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "augmented"],
)
def test_the_average_is_evaluated_as_its_file_is_on_several_data_sets(
    more: list[str], mixed: CocoSet, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    options = ["DATASETS.TEST", "('mixed', 'again')", "SOLVER.BASE_LR", "0.01", *more]
    flags = ["--register-coco", "again", *mixed]
    train.main([*flags, *command(mixed, output, *options, *EMA)])
    logged = metrics(output)[-1]
    folder = str(output / "model_final_ema.pth")
    argv = [*flags, *start_anew(mixed, tmp_path / "evaluated", *options, "MODEL.WEIGHTS", folder)]
    results = evaluate(["--eval-only", *argv])
    for name in ("mixed", "again"):
        for task in ("bbox", "segm"):
            assert logged[f"ema/{name}/{task}/AP"] == pytest.approx(results[name][task]["AP"])
            assert f"{name}/{task}/AP" in logged
        predictions = [
            (folder / "inference" / name / "coco_instances_results.json").read_text()
            for folder in (output, output / "ema", tmp_path / "evaluated")
        ]
        assert predictions[1] == predictions[2]
        assert predictions[0] != predictions[1]


def test_expected_results_are_those_of_the_weights_themselves(
    mixed: CocoSet, tmp_path: Path
) -> None:
    expected = ["TEST.EXPECTED_RESULTS", "[['segm', 'AP', 0.0, 100.0]]"]
    train.main(command(mixed, tmp_path / "output", *EMA, *expected, "SOLVER.MAX_ITER", "1"))
    log = (tmp_path / "output" / "log.txt").read_text()
    assert "Results verification passed" in log
    before, _, after = log.partition("Evaluating the averaged weights (MODEL_EMA)")
    assert before.count("copypaste: Task: segm") == after.count("copypaste: Task: segm") == 1


def test_the_file_of_the_average_is_a_model_like_any_other(mixed: CocoSet, tmp_path: Path) -> None:
    output = tmp_path / "output"
    train.main(command(mixed, output, *SCHEDULE, *EMA, *ALONE))
    path = str(output / "model_final_ema.pth")
    stored = read_stored_metadata(path)
    assert stored == read_stored_metadata(str(output / "model_final.pth"))
    assert stored.classes["thing_classes"] == ["disc", "box", "triangle"]
    predictor = Predictor.from_checkpoint(path)
    saved = read(output / "model_final_ema.pth")["model"]
    assert_same(predictor.model.state_dict(), saved)

    for name in ("model_final_ema.pth", "model_final.pth"):
        model = Trainer.build_model(set_up(command(mixed, tmp_path / "other")).cfg)
        DetectionCheckpointer(model).load(str(output / name))
        assert_same(model.state_dict(), read(output / name)["model"])


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_checkpoint_without_an_average_begins_one_and_one_with_it_may_lose_it(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whose average is incomplete is refused."""
    output = tmp_path / "output"
    train.main(command(mixed, output, *ALONE, "SOLVER.MAX_ITER", "1"))
    rate = ["SOLVER.BASE_LR", "0.01"]
    train.main(command(mixed, output, *ALONE, *rate, "SOLVER.MAX_ITER", "2", *EMA))
    log = (output / "log.txt").read_text()
    assert "model_final.pth has no averaged weights (MODEL_EMA): they begin as its weights" in log
    first = read(output / "model_final.pth")
    assert first["trainer"]["average"]["updates"] == 1
    del first["trainer"]["average"]["weights"]["backbone.fpn_lateral2.weight"]
    torch.save(first, output / "model_final.pth")
    line = refusal(command(mixed, output, *ALONE, *EMA, "SOLVER.MAX_ITER", "3"), capsys)
    assert "cannot be resumed: its averaged weights are not those of this model: 1 differ" in line
    train.main(command(mixed, output, *ALONE, *rate, "SOLVER.MAX_ITER", "3"))
    log = (output / "log.txt").read_text()
    assert "model_final.pth has averaged weights, which are dropped" in log
    assert "average" not in read(output / "model_final.pth")["trainer"]


def test_a_signal_in_the_evaluation_of_the_average_saves_the_weights_themselves(
    mixed: CocoSet, tmp_path: Path
) -> None:
    calls = []

    def test(*_: Any) -> dict[str, Any]:
        calls.append("begins")
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            calls.append("goes on")
        return {}

    def signal_at_the_second() -> None:
        Trainer.test = test  # type: ignore[method-assign]

    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    more = [*SCHEDULE, *EMA, "TEST.EVAL_PERIOD", "2"]
    argv = command(mixed, interrupted, *more)
    assert exit_code(argv, signal_at_the_second) == 128 + signal.SIGTERM
    assert calls == ["begins", "begins"]
    assert tagged_iteration(interrupted) == 1
    train.main(command(mixed, whole, *more, *ALONE, "SOLVER.CHECKPOINT_PERIOD", "2"))
    found, expected = (read(x / "model_0000001.pth") for x in (interrupted, whole))
    for checkpoint in (found, expected):
        checkpoint["metadata"].pop("config")
    assert_identical(found, expected)


def test_a_full_disk_ends_the_training_at_the_file_of_the_average(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    with files_limited_to(200_000):
        line = refusal(command(mixed, output, *EMA, *ALONE, "SOLVER.MAX_ITER", "1"), capsys)
    assert f"error: {output / 'model_final_ema.pth'} could not be saved" in line
    assert not list(output.glob("*.pth"))


def test_the_file_of_the_average_belongs_to_the_training_that_overwrite_deletes(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    path = output / "model_final_ema.pth"
    path.write_bytes(b"an earlier one")
    argv = start_anew(mixed, output, *ALONE, "SOLVER.MAX_ITER", "1")
    assert "holds an earlier training (model_final_ema.pth)" in refusal(argv, capsys)
    train.main(["--overwrite", *argv])
    assert not path.exists()


def test_no_data_set_may_have_the_name_of_the_averaged_results(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [*EMA, "DATASETS.TEST", "('mixed', 'ema')"]
    argv = ["--register-coco", "ema", *mixed, *command(mixed, tmp_path / "output", *more)]
    line = refusal(argv, capsys)
    assert "DATASETS.TEST has a data set named ema, which MODEL_EMA.ENABLED names its" in line


def test_a_metric_of_averaged_weights_needs_them(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["TEST.BEST_METRIC", "ema/segm/AP", "TEST.EVAL_PERIOD", "2"]
    line = refusal(command(mixed, tmp_path / "output", *more), capsys)
    assert "TEST.BEST_METRIC is ema/segm/AP, a result of averaged weights, but MODEL_EMA" in line
