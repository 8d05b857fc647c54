"""Training hooks: seeding, interruption, repeatable PreciseBN."""

from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from point_rend.engine.signals import StopSignals
from point_rend.utils.errors import TrainingStop
from point_rend.utils.seeding import seed_all


class RandomNumbersOfIteration(HookBase):
    """Makes the random numbers of an iteration a function of seed, iteration and rank."""

    def before_step(self) -> None:
        """Seed everything."""
        seed_all(self.trainer.data_loader.seed, self.trainer.iter, comm.get_rank())


class StopBetweenIterations(HookBase):
    """Ends a training after an iteration in which any process has got a signal."""

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def after_step(self) -> None:
        """Note that the iteration is whole, and look for signals."""
        self.trainer.finished = self.trainer.iter
        self.signals.check()


class InterruptibleEvaluation(hooks.EvalHook):
    """Detectron2's evaluation, which a signal ends at once, and which follows no broken training.

    Args:
        signals: The signals.
        period: Iterations from one evaluation to the next; 0 for the one after the training only.
        evaluate: Evaluates the model.
    """

    def __init__(self, signals: StopSignals, period: int, evaluate: Any) -> None:
        super().__init__(period, evaluate)
        self.signals = signals

    def _do_eval(self) -> None:
        with self.signals.at_once():
            super()._do_eval()

    def after_train(self) -> None:
        """Evaluate, if the last iteration has been finished."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class RepeatablePreciseBN(hooks.PreciseBN):
    """Detectron2's statistics of normalization, each time over the first images of the order."""

    def update_stats(self) -> None:
        """Update the statistics of the model."""
        self._data_loader.seed = self.trainer.data_loader.seed
        self._data_loader.batches = 0
        self._data_iter = iter(self._data_loader)
        try:
            super().update_stats()
        except TrainingStop as stop:
            stop.saves = False  # the weights are those of this iteration, all else of the last one
            raise
