"""The best checkpoint and patience: planted metrics, kills at every moment, resumed trainings."""

import contextlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils import comm
from torch import nn

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.cli import train
from point_rend.engine import trainer
from point_rend.engine.best import (
    BestEvaluation,
    EndWithoutPatience,
    FinishedEarly,
    build_evaluation_hooks,
)
from point_rend.engine.hooks import CompletingCheckpointer
from point_rend.engine.preflight import check_best_metric
from point_rend.engine.signals import StopSignals
from point_rend.evaluation.metric_names import build_metric_names, is_loss
from point_rend.utils.errors import TrainingStop
from tests.engine.killing import assert_identical, command, final
from tests.runs import metrics, refusal, set_up
from tests.tiny_datasets import CocoSet

PERIOD = 2
NAN = math.nan

pytestmark = pytest.mark.usefixtures("_restored")


# A planted training: the weight counts the iterations, the metric of each is given.


class Killed(BaseException):
    """The process is killed at this moment."""


class PlantedTrainer(TrainerBase):
    """Counts iterations in a weight; its evaluations give planted values.

    Args:
        folder: Folder of the checkpoints; a training there is resumed.
        values: Values of the metric, one for each evaluation of an uninterrupted training.
        kill_at: Number of the moment at which it is killed.
        options: Of the hook.
    """

    def __init__(
        self,
        folder: Path,
        values: Sequence[float],
        *,
        max_iter: int = 0,
        kill_at: int = -1,
        checkpoint_period: int = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.values = values
        self.max_iter = max_iter or PERIOD * len(values)
        self.moments = itertools.count()
        self.kill_at = kill_at
        self.evaluated: list[int] = []
        folder.mkdir(exist_ok=True)
        self.checkpointer = SafeDetectionCheckpointer(
            self.model, str(folder), trainer=self, metadata={"thing_classes": ["disc"]}
        )
        self.mortal(self.checkpointer, "save")
        self.mortal(self.checkpointer, "save_weights")
        options = {"metric": "segm/AP", **options}
        self.best = BestEvaluation(
            StopSignals(), PERIOD, self.evaluate, self.checkpointer, **options
        )
        self.register_hooks(
            [
                CompletingCheckpointer(self.checkpointer, checkpoint_period),
                self.best,
                EndWithoutPatience(self.best, self.checkpointer),
            ]
        )
        self.checkpointer.resume_or_load("", resume=True)
        self.start_iter = self.iter + 1 if self.checkpointer.has_checkpoint() else 0

    def mortal(self, owner: Any, name: str) -> None:
        """Let the process be killed before and after a method."""
        inner: Callable[..., Any] = getattr(owner, name)

        def method(*args: Any, **kwargs: Any) -> None:
            self.moment()
            inner(*args, **kwargs)
            self.moment()

        setattr(owner, name, method)

    def moment(self) -> None:
        if next(self.moments) == self.kill_at:
            raise Killed

    def run_step(self) -> None:
        with torch.no_grad():
            self.model.weight += 1

    def evaluate(self) -> dict[str, dict[str, float]]:
        self.moment()
        iteration = round(self.model.weight.item()) - 1  # the weight is what is evaluated
        self.evaluated.append(iteration)
        return {"segm": {"AP": self.values[(iteration + 1) // PERIOD - 1], "AP-disc": 0.0}}

    def run(self) -> str:
        """Train to the end, and return the kind of the end."""
        try:
            with contextlib.ExitStack():
                self.train(self.start_iter, self.max_iter)
        except (Killed, FinishedEarly) as end:
            return type(end).__name__
        return "completed"


class Saved(NamedTuple):
    """The content of a model_best.pth, and the state of the hook in the last checkpoint."""

    weight: float
    record: dict[str, Any]
    state: dict[str, Any]


def saved(folder: Path) -> Saved:
    best = torch.load(folder / "model_best.pth", weights_only=True)
    assert best.keys() == {"model", "metadata", "best"}
    last = (folder / "last_checkpoint").read_text()
    state = torch.load(folder / last, weights_only=True)["trainer"]["hooks"]["BestEvaluation"]
    return Saved(best["model"]["weight"].item(), best["best"], state)


def test_the_weights_of_the_best_evaluation_are_saved_with_its_metric_value_and_iteration(
    tmp_path: Path,
) -> None:
    planted = PlantedTrainer(tmp_path, [1.0, 5.0, NAN, 5.0, 3.0, math.inf])
    assert planted.run() == "completed"
    assert planted.evaluated == [1, 3, 5, 7, 9, 11]
    found = saved(tmp_path)
    assert found.weight == 4
    assert found.record == {"metric": "segm/AP", "value": 5.0, "iteration": 3}
    assert planted.best.since == 4
    assert not list(tmp_path.glob(".*"))

    other = nn.Linear(1, 1, bias=False)
    SafeDetectionCheckpointer(other).load(str(tmp_path / "model_best.pth"))
    assert other.weight.item() == 4


def test_of_a_loss_the_smallest_is_the_best(tmp_path: Path) -> None:
    planted = PlantedTrainer(tmp_path, [2.0, NAN, 0.5, 0.6], smaller_is_better=True)
    planted.run()
    assert saved(tmp_path).record["value"] == 0.5


def test_nan_is_never_the_best(tmp_path: Path) -> None:
    PlantedTrainer(tmp_path, [NAN, NAN]).run()
    assert not (tmp_path / "model_best.pth").exists()


@pytest.mark.parametrize(
    ("values", "patience", "checkpoint_period"),
    [
        ([1.0, 4.0, 2.0, 5.0, 4.0], 0, 3),
        ([1.0, 2.0, 1.0], 0, 2),
        ([1.0, 2.0, NAN, 2.0, 9.0], 2, 1),
        ([1.0, 0.0, 2.0, NAN, 2.0, 9.0], 2, 3),
        ([NAN, NAN, 1.0], 2, 2),
    ],
)
def test_a_kill_at_any_moment_changes_nothing(
    values: list[float],
    patience: int,
    checkpoint_period: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # which takes most of the time
    options = {"patience": patience, "checkpoint_period": checkpoint_period}
    reference = tmp_path / "uninterrupted"
    uninterrupted = PlantedTrainer(reference, values, **options)
    end = uninterrupted.run()
    assert end == ("FinishedEarly" if patience else "completed")
    for moment in range(next(uninterrupted.moments)):
        folder = tmp_path / str(moment)
        killed = PlantedTrainer(folder, values, kill_at=moment, **options)
        assert killed.run() == "Killed"
        resumed = PlantedTrainer(folder, values, **options)
        assert resumed.run() == end
        assert resumed.best.state_dict() == uninterrupted.best.state_dict()
        if uninterrupted.best.value is not None:
            assert saved(folder) == saved(reference)
        assert resumed.model.weight == uninterrupted.model.weight
        assert_identical(*(torch.load(x / "model_final.pth") for x in (folder, reference)))


VALUES = [3.0, 1.0, 2.0, 4.0, 5.0]


def test_without_patience_left_the_training_ends_as_finished_and_is_not_continued(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    planted = PlantedTrainer(tmp_path, VALUES, patience=2)
    assert planted.run() == "FinishedEarly"
    assert "The training ends: 2 evaluations in a row up to iteration 5 gave no segm/AP" in (
        caplog.text
    )
    final_state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert final_state["iteration"] == final_state["trainer"]["iteration"] == 5
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    content = (tmp_path / "model_final.pth").read_bytes()

    again = PlantedTrainer(tmp_path, VALUES, patience=2)
    assert again.run() == "FinishedEarly"
    assert again.evaluated == []
    assert "has ended before; to go on, raise SOLVER.PATIENCE" in caplog.text
    assert (tmp_path / "model_final.pth").read_bytes() == content


def test_with_more_patience_an_ended_training_goes_on_as_if_it_had_always_had_it(
    tmp_path: Path,
) -> None:
    PlantedTrainer(tmp_path / "ended", VALUES, patience=2).run()
    raised = PlantedTrainer(tmp_path / "ended", VALUES, patience=3)
    assert raised.run() == "completed"
    assert raised.evaluated == [7, 9]
    PlantedTrainer(tmp_path / "patient", VALUES, patience=3).run()
    assert saved(tmp_path / "ended") == saved(tmp_path / "patient")


def test_patience_that_ends_with_the_training_changes_nothing(tmp_path: Path) -> None:
    assert PlantedTrainer(tmp_path, VALUES[:3], patience=2).run() == "completed"


def test_a_better_last_iteration_is_kept_if_the_training_is_made_longer(tmp_path: Path) -> None:
    def planted(max_iter: int) -> PlantedTrainer:
        made = PlantedTrainer(tmp_path, [1.0, 8.0, 5.0, 6.0], max_iter=max_iter)
        made.evaluate = lambda: {"segm": {"AP": by_weight[made.model.weight.item()]}}
        made.best._evaluate = made.evaluate
        return made

    by_weight = {2.0: 1.0, 3.0: 8.0, 4.0: 5.0, 6.0: 9.0}
    planted(3).run()
    longer = planted(6)
    assert longer.best.value == 1.0  # as the checkpoint has it
    longer.max_iter = 5
    by_weight[5.0] = 7.0
    longer.run()
    assert saved(tmp_path).record == {"metric": "segm/AP", "value": 8.0, "iteration": 2}
    planted(6).run()
    assert saved(tmp_path).record["value"] == 9.0


def test_another_metric_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    PlantedTrainer(tmp_path, [7.0, 1.0], max_iter=4).run()
    planted = PlantedTrainer(tmp_path, [7.0, 1.0, 2.0], metric="segm/AP-disc")
    assert "TEST.BEST_METRIC was segm/AP, and is segm/AP-disc from here on" in caplog.text
    planted.run()
    assert saved(tmp_path).record == {"metric": "segm/AP-disc", "value": 0.0, "iteration": 3}


def test_a_file_that_is_gone_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PlantedTrainer(tmp_path, [7.0, 1.0, 1.0], kill_at=8).run()
    (tmp_path / "model_best.pth").unlink()
    PlantedTrainer(tmp_path, [7.0, 1.0, 9.0]).run()
    assert "model_best.pth of iteration 1 is gone; the next better one will be saved" in caplog.text
    assert saved(tmp_path).record["value"] == 9.0


def test_a_metric_that_does_not_come_is_answered_with_those_that_do(tmp_path: Path) -> None:
    planted = PlantedTrainer(tmp_path, [1.0, 2.0], metric="segm/APP")
    expected = "expected one of segm/AP; did you mean segm/AP"
    with pytest.raises(TrainingStop, match=expected) as stop:
        planted.run()
    assert (stop.value.exit_code, stop.value.saves, stop.value.together) == (2, True, True)
    corrected = PlantedTrainer(tmp_path, [1.0, 2.0], checkpoint_period=1)
    corrected.run()
    assert saved(tmp_path).record["value"] == 2.0


def test_of_averaged_weights_those_are_saved(tmp_path: Path) -> None:
    @contextlib.contextmanager
    def averaged() -> Iterator[None]:
        planted.model.weight.data += 100
        yield
        planted.model.weight.data -= 100

    planted = PlantedTrainer(tmp_path, [1.0, 2.0], weights=averaged)
    planted.run()
    assert saved(tmp_path).weight == 104
    assert planted.model.weight == 4


@pytest.mark.parametrize(
    ("metric", "is_averaged", "smaller"),
    [("segm/AP", False, False), ("ema/segm/AP", True, False), ("validation/x", False, True)],
)
def test_the_hooks_follow_the_config(
    metric: str, is_averaged: bool, smaller: bool, mixed: CocoSet, tmp_path: Path
) -> None:
    opts = ["TEST.BEST_METRIC", metric, "TEST.EVAL_PERIOD", "5", "SOLVER.PATIENCE", "4"]
    opts += ["MODEL_EMA.ENABLED", str(is_averaged)]
    cfg = set_up(command(mixed, tmp_path, *opts)).cfg
    parts: Any = (StopSignals(), dict, SafeDetectionCheckpointer(nn.Linear(1, 1)))
    best, end = build_evaluation_hooks(cfg, *parts, averaged=dict)  # type: ignore[arg-type]
    assert isinstance(best, BestEvaluation)
    assert isinstance(end, EndWithoutPatience)
    assert (best._weights is dict) == is_averaged
    assert (best.smaller_is_better, best.patience, best._period) == (smaller, 4, 5)


def test_all_processes_decide_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = PlantedTrainer(tmp_path / "main", VALUES, patience=2)
    sent: list[Any] = []
    gather = comm.all_gather
    monkeypatch.setattr(comm, "all_gather", lambda x: sent.append(gather(x)) or sent[-1])
    assert main.run() == "FinishedEarly"
    other = PlantedTrainer(tmp_path / "other", VALUES, patience=2)
    other.checkpointer.save_to_disk = False
    other.best._evaluate = dict
    received = [x for x in sent if isinstance(x[0], tuple)]
    monkeypatch.setattr(comm, "all_gather", lambda _: received.pop(0))
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert other.run() == "FinishedEarly"
    assert other.best.state_dict() == main.best.state_dict()
    assert not list((tmp_path / "other").glob("*.pth"))


# Names of metrics


BEST = ["TEST.EVAL_PERIOD", "2", "TEST.BEST_METRIC"]


@pytest.mark.parametrize(
    ("metric", "more", "advice"),
    [
        ("boundary/AP", [], "set TEST.BOUNDARY_METRICS True"),
        ("validation/loss_cls", [], "set TEST.VALIDATION_LOSS True"),
        (
            "ema/boundary/APs",
            ["MODEL_EMA.ENABLED", "True"],
            "set TEST.BOUNDARY_METRICS True$",
        ),
        ("segm/mAP", [], "expected one of bbox/AP, .*; did you mean segm/AP"),
        ("segm/AP-dsc", [], "did you mean segm/AP-disc"),
        ("keypoints/AP", [], "expected one of bbox/AP"),
        ("segm/AP", ["DATASETS.TEST", "('mixed', 'other')"], "mean mixed/segm/AP or other/segm/AP"),
    ],
)
def test_a_metric_that_the_evaluations_do_not_give_is_refused_with_what_to_set(
    metric: str, more: list[str], advice: str, mixed: CocoSet, tmp_path: Path
) -> None:
    argv = ["--register-coco", "other", *mixed, *command(mixed, tmp_path, *BEST, metric, *more)]
    with pytest.raises(ValueError, match=rf"^TEST.BEST_METRIC is '{metric}', .*{advice}"):
        check_best_metric(set_up(argv).cfg)


def test_a_misspelled_metric_ends_the_command_before_the_training(
    mixed: CocoSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(command(mixed, tmp_path / "output", *BEST, "segm/APP"), capsys)
    assert "TEST.BEST_METRIC is 'segm/APP', which the evaluations of this config do not" in line
    assert not list((tmp_path / "output").glob("*.pth"))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["SOLVER.PATIENCE", "3"], "SOLVER.PATIENCE is 3, but TEST.BEST_METRIC is empty"),
        (["TEST.BEST_METRIC", "segm/AP"], "is segm/AP, but TEST.EVAL_PERIOD is 0"),
        ([*BEST, "x", "DATASETS.TEST", "()"], "TEST.BEST_METRIC is x, but DATASETS.TEST is empty"),
        (
            ["TEST.VALIDATION_LOSS", "True", "DATASETS.TEST", "()"],
            "TEST.VALIDATION_LOSS is True, but DATASETS.TEST is empty",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    more: list[str], expected: str, mixed: CocoSet, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=expected):
        set_up(command(mixed, tmp_path, *more))


def test_a_panoptic_evaluation_gives_the_metrics_of_all_its_parts(
    mixed: CocoSet, tmp_path: Path
) -> None:
    cfg = set_up(command(mixed, tmp_path)).cfg
    known = {"thing_classes": ["disc"], "stuff_classes": ["things", "sky"]}
    MetadataCatalog.get("panoptic").set(evaluator_type="coco_panoptic_seg", **known)
    cfg = cfg.clone()
    cfg.merge_from_list(["DATASETS.TEST", ("panoptic",), "TEST.BOUNDARY_METRICS", True])
    names = build_metric_names(cfg)
    found = ("bbox/AP", "segm/AP", "boundary/AP", "sem_seg/mIoU", "sem_seg/IoU-sky")
    found += (
        "boundary_sem_seg/mIoU",
        "panoptic_seg/PQ",
        "panoptic_seg/PQ_th",
        "panoptic_seg/RQ_st",
    )
    assert all(map(names.include, (*found, "panoptic_seg/PQ-sky")))
    others = ("panoptic_seg/PQ-", "panoptic/PQ", "ema/segm/AP", "segm/AP-disc")
    assert not any(map(names.include, others))


def test_losses_are_those_below_validation() -> None:
    one, several = ["a"], ["a", "validation"]
    assert is_loss("validation/total_loss", one)
    assert is_loss("ema/validation/dice", one)
    assert is_loss("validation/validation/total_loss", several)
    assert is_loss("ema/validation/a/total_loss", several)
    for name in ("segm/AP", "a/segm/AP", "validation/segm/AP", "ema/segm/AP", "validation"):
        assert not is_loss(name, several)


# Trainings


def evaluated_names(output: Path) -> set[str]:
    line = metrics(output)[-1]
    others = ("point/", "mask_rcnn/", "best/")
    return {name for name in line if "/" in name and not name.startswith(others)}


def test_the_names_are_those_of_the_metrics_of_an_evaluation_of_instances(
    mixed: CocoSet, tmp_path: Path
) -> None:
    more = ["TEST.BOUNDARY_METRICS", "True", "TEST.VALIDATION_LOSS", "True", *BEST, "boundary/AP"]
    train.main(argv := command(mixed, tmp_path, *more))
    names = build_metric_names(set_up(argv).cfg)
    found = evaluated_names(tmp_path)
    assert {*names.overall, *names.by_class} == {x for x in found if "/loss_" not in x}
    assert all(map(names.include, found))
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)["best"]
    assert best["iteration"] == metrics(tmp_path)[-1]["best/iteration"] == 1
    assert best["value"] == metrics(tmp_path)[-1]["best/boundary/AP"]


def test_a_training_out_of_patience_ends_with_exit_code_0_and_its_results(
    mixed: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other half of the evaluations would be better."""

    def test(*_: Any) -> dict[str, Any]:
        return {"segm": {"AP": next(values)}}

    monkeypatch.setattr(trainer.Trainer, "test", test)
    schedule = ["SOLVER.MAX_ITER", "5", "TEST.EVAL_PERIOD", "1", "TEST.BEST_METRIC", "segm/AP"]
    values = iter([2.0, 1.0, 3.0, 4.0, 5.0])
    argv = command(mixed, tmp_path / "ended", *schedule, "SOLVER.PATIENCE")
    train.main([*argv, "1"])
    lines = [x for x in metrics(tmp_path / "ended") if "segm/AP" in x]
    assert (lines[-1]["iteration"], lines[-1]["segm/AP"]) == (1, 1.0)
    record = {name: x for name, x in lines[-1].items() if name.startswith("best/")}
    assert record == {"best/segm/AP": 2.0, "best/iteration": 0, "best/patience_left": 0}
    assert final(tmp_path / "ended")["iteration"] == 1
    train.main([*argv, "1"])
    assert final(tmp_path / "ended")["iteration"] == 1
    train.main([*argv, "2"])

    values = iter([2.0, 1.0, 3.0, 4.0, 5.0])
    train.main(command(mixed, tmp_path / "patient", *schedule))
    for name in ("ended", "patient"):
        best = torch.load(tmp_path / name / "model_best.pth", weights_only=True)
        assert best["best"] == {"metric": "segm/AP", "value": 5.0, "iteration": 4}
    ended, patient = final(tmp_path / "ended"), final(tmp_path / "patient")
    for checkpoint in (ended, patient):
        del checkpoint["metadata"]
    assert_identical(ended, patient)
