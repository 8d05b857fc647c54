"""The best checkpoint by a metric, and the end of a training that does not improve any more.

Detectron2's ``BestCheckpointer`` writes a checkpoint that a resumed training would continue from,
forgets the best value when it is resumed, and reports a metric that does not exist only in the log.
"""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict, verify_results
from detectron2.utils import comm

from point_rend.checkpoint.checkpointer import BEST, FINAL, SafeDetectionCheckpointer
from point_rend.checkpoint.formats import read_torch_file
from point_rend.config.checks import AVERAGED_RESULTS
from point_rend.engine.hooks import InterruptibleEvaluation
from point_rend.engine.signals import StopSignals
from point_rend.evaluation.metric_names import is_loss
from point_rend.utils.errors import USER_ERROR, TrainingStop, did_you_mean

# Key in model_best.pth of the metric, its value and the iteration. In metrics.json the value is
# best/METRIC, and there are best/iteration and best/patience_left, too.
RECORD = "best"
PATIENCE_LEFT = "patience_left"
Weights = Callable[[], contextlib.AbstractContextManager[Any]]

logger = logging.getLogger(__name__)


class FinishedEarly(BaseException):
    """Ends a training that has finished before its last iteration.

    It is not an Exception, so that no handler logs or swallows it.
    """

    exit_code = 0


def build_evaluation_hooks(
    cfg: CfgNode,
    signals: StopSignals,
    evaluate: Callable[[], Any],
    checkpointer: SafeDetectionCheckpointer,
    averaged: Weights | None = None,
) -> list[HookBase]:
    """Build the hook that evaluates, and with TEST.BEST_METRIC one that comes after all others.

    Args:
        cfg: The config of the run.
        signals: The signals of the training.
        evaluate: Evaluates the model.
        checkpointer: Saves the model.
        averaged: Returns a context in which the model has its averaged weights, if there are any.
    """
    metric, period = cfg.TEST.BEST_METRIC, cfg.TEST.EVAL_PERIOD
    if not metric:
        return [InterruptibleEvaluation(signals, period, evaluate)]
    own: Weights = contextlib.nullcontext
    best = BestEvaluation(
        signals,
        period,
        evaluate,
        checkpointer,
        metric=metric,
        smaller_is_better=is_loss(metric, cfg.DATASETS.TEST),
        patience=cfg.SOLVER.PATIENCE,
        weights=averaged if averaged and metric.startswith(f"{AVERAGED_RESULTS}/") else own,
    )
    return [best, EndWithoutPatience(best, checkpointer)]


def check_results(cfg: CfgNode, results: Any) -> Any:
    """Check the last results of a training as Detectron2's trainer does at its end.

    Args:
        cfg: The config of the run, with TEST.EXPECTED_RESULTS.
        results: The results; none in all processes but the first.

    Returns:
        The results, if some are expected.

    Raises:
        SystemExit: With code 1 if they are not as expected.
    """
    if not results or not cfg.TEST.EXPECTED_RESULTS:
        return None
    verify_results(cfg, results)
    return results


class BestEvaluation(InterruptibleEvaluation):
    """Evaluates as its parent, and saves the weights of the best evaluation as model_best.pth.

    The best value and the evaluations since are part of the state of the training. A training that
    is killed between its checkpoint and the evaluation of the same iteration evaluates it when it
    is resumed, so that the same evaluations happen as without the interruption.

    Args:
        signals, period, evaluate: As of the parent.
        checkpointer: Saves the model.
        metric: Name of the metric as in metrics.json.
        smaller_is_better: Whether a smaller value of it is better.
        patience: Evaluations without a better value after which the training ends; 0: never.
        weights: Returns a context in which the model has the weights to save.
    """

    def __init__(
        self,
        signals: StopSignals,
        period: int,
        evaluate: Callable[[], Any],
        checkpointer: SafeDetectionCheckpointer,
        *,
        metric: str,
        smaller_is_better: bool = False,
        patience: int = 0,
        weights: Weights = contextlib.nullcontext,
    ) -> None:
        super().__init__(signals, period, self._evaluate_and_keep)
        self.metric = metric
        self.smaller_is_better = smaller_is_better
        self.patience = patience
        self.value: float | None = None
        self.iteration = -1  # of the best evaluation
        self.since = 0  # evaluations after it
        self.evaluated = -1  # last iteration that was evaluated
        self._evaluate = evaluate
        self.checkpointer = checkpointer
        self._weights = weights
        self._results: Mapping[str, float] = {}

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the training has to end."""
        return 0 < self.patience <= self.since

    @property
    def best_so_far(self) -> str:
        """The best value and its iteration, for messages."""
        return (
            "nothing" if self.value is None else f"{self.value:.5g} of iteration {self.iteration}"
        )

    def _evaluate_and_keep(self) -> Any:
        results = self._evaluate()
        self._results = flatten_results_dict(results or {})
        return results

    def _do_eval(self) -> None:
        super()._do_eval()
        # After the last iteration the trainer counts one more.
        self._judge(min(self.trainer.iter, self.trainer.max_iter - 1))

    def before_train(self) -> None:
        """Evaluate the iteration of the checkpoint if it was to be evaluated, but was not."""
        super().before_train()
        trainer = self.trainer
        resumed = trainer.start_iter - 1
        is_due = self._period > 0 and trainer.start_iter % self._period == 0
        if is_due and self.evaluated < resumed < trainer.max_iter - 1:
            logger.info("Iteration %d has no %s yet: it is evaluated first", resumed, self.metric)
            trainer.iter = trainer.storage.iter = resumed
            self._do_eval()
            trainer.iter = trainer.storage.iter = trainer.start_iter
        if resumed >= 0:
            self._compare_with_file(resumed)

    def _judge(self, iteration: int) -> None:
        """Compare an evaluation with the best one, in all processes alike."""
        if iteration <= self.evaluated:
            return
        value, known = comm.all_gather((self._results.get(self.metric), [*self._results]))[0]
        if value is None:
            overall = [name for name in known if "-" not in name]
            raise TrainingStop(
                f"TEST.BEST_METRIC is {self.metric}, which the evaluation does not give: expected "
                f"one of {', '.join(overall)}{did_you_mean(self.metric, known)}",
                exit_code=USER_ERROR,
                together=True,
            )
        value = float(value)
        former = self.best_so_far
        if self._is_better(value):
            self._save(value, iteration)
            logger.info("%s %.5g is the best so far, better than %s", self.metric, value, former)
            self.value, self.iteration, self.since = value, iteration, 0
        else:
            self.since += 1
            logger.info(
                "%s %.5g is not better than %s; evaluations without a better one: %d%s",
                self.metric,
                value,
                former,
                self.since,
                f" of {self.patience}" if self.patience else "",
            )
        self.evaluated = iteration
        self._record()

    def _record(self) -> None:
        """Write the best value beside the metrics of the evaluation, for curves and trackers."""
        record: dict[str, float] = {}
        if self.value is not None:
            record = {self.metric: self.value, "iteration": self.iteration}
        if self.patience:
            record[PATIENCE_LEFT] = max(0, self.patience - self.since)
        named = {f"{RECORD}/{name}": value for name, value in record.items()}
        self.trainer.storage.put_scalars(**named, smoothing_hint=False)

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.value is None:
            return True
        return value < self.value if self.smaller_is_better else value > self.value

    def _save(self, value: float, iteration: int) -> None:
        record = {"metric": self.metric, "value": value, "iteration": iteration}
        with self._weights():
            self.checkpointer.save_weights(BEST, **{RECORD: record})

    def _compare_with_file(self, resumed: int) -> None:
        """Keep a better model_best.pth of this training that its state does not know.

        That of the last iteration is better, for example, if MAX_ITER has been raised since.
        """
        path = os.path.join(self.checkpointer.save_dir, f"{BEST}.pth")
        record = comm.all_gather(_read_record(path) if comm.is_main_process() else None)[0]
        if record is None:
            if self.value is not None:
                logger.warning(
                    "%s of iteration %d is gone; the next better one will be saved",
                    path,
                    self.iteration,
                )
            return
        metric, value, iteration = record
        if metric == self.metric and iteration <= resumed and self._is_better(value):
            logger.info("%s %.5g of iteration %d is the best so far", metric, value, iteration)
            self.value, self.iteration, self.since = value, iteration, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the best evaluation, the number of those since, and the last iteration of one."""
        return {
            "metric": self.metric,
            "value": self.value,
            "iteration": self.iteration,
            "since": self.since,
            "evaluated": self.evaluated,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; that of another metric is left aside.

        Raises:
            ValueError: If it is no state of this hook.
        """
        value = state_dict["value"]
        numbers = [state_dict[name] for name in ("iteration", "since", "evaluated")]
        if not isinstance(value, float | None) or any(type(x) is not int for x in numbers):
            raise ValueError(f"its best evaluation is {state_dict!r:.100}")
        if state_dict["metric"] != self.metric:
            logger.info(
                "TEST.BEST_METRIC was %s, and is %s from here on",
                state_dict["metric"],
                self.metric,
            )
            return
        self.value = value
        self.iteration, self.since, self.evaluated = numbers


class EndWithoutPatience(HookBase):
    """Ends a training as finished after SOLVER.PATIENCE evaluations without a better metric.

    It comes last, when everything about the iteration has been written.

    Args:
        best: The hook that evaluates.
        checkpointer: Saves the model.
    """

    def __init__(self, best: BestEvaluation, checkpointer: SafeDetectionCheckpointer) -> None:
        self._best = best
        self.checkpointer = checkpointer

    def before_train(self) -> None:
        """End a training that has ended before, unless there is more patience now."""
        if self._best.is_out_of_patience and self.trainer.start_iter < self.trainer.max_iter:
            self.trainer.iter = self.trainer.start_iter - 1
            if os.path.basename(self.checkpointer.source) != f"{FINAL}.pth":
                self._save()
            self._end("has ended before; to go on, raise SOLVER.PATIENCE")

    def after_step(self) -> None:
        """End the training if patience is exhausted, unless this is its end anyway."""
        if self._best.is_out_of_patience and self.trainer.iter < self.trainer.max_iter - 1:
            self._save()
            self._end("ends")

    def _end(self, words: str) -> NoReturn:
        best = self._best
        logger.info(
            "The training %s: %d evaluations in a row up to iteration %d gave no %s better than "
            "%s (SOLVER.PATIENCE %d)",
            words,
            best.since,
            best.evaluated,
            best.metric,
            best.best_so_far,
            best.patience,
        )
        raise FinishedEarly

    def _save(self) -> None:
        if comm.is_main_process():
            self.checkpointer.save(FINAL, iteration=self.trainer.iter)


def _read_record(path: str) -> tuple[str, float, int] | None:
    """Return metric, value and iteration of a model_best.pth; nothing if it cannot be read."""
    try:
        record = read_torch_file(path, allow_unsafe=False)[RECORD]
        return str(record["metric"]), float(record["value"]), int(record["iteration"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
