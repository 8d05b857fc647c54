"""Training hooks: seeding, stopping on signals, interruptible evaluation, repeatable PreciseBN.

One more notices an output folder that is removed.
"""

import os
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

from point_rend.checkpoint.checkpointer import FINAL
from point_rend.engine.averaging import WeightAverage
from point_rend.engine.output_folder import WatchedFolder
from point_rend.engine.signals import StopSignals
from point_rend.utils import progress
from point_rend.utils.errors import TrainingStop
from point_rend.utils.seeding import seed_all


class SeedEachIteration(HookBase):
    """Makes the random numbers of an iteration a function of seed, iteration and rank."""

    def before_step(self) -> None:
        """Seed all generators."""
        seed_all(self.trainer.data_loader.seed, self.trainer.iter, comm.get_rank())


class StopWithoutFolder(HookBase):
    """Ends the training when its output folder is removed.

    It comes after the hooks that change the state of the training, and before those that save.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: WatchedFolder) -> None:
        self._folder = folder

    def after_step(self) -> None:
        """Record that the iteration is complete, then look for the folder."""
        self.trainer.last_complete_iter = self.trainer.iter
        self._folder.check()


class CompletingCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook that saves checkpoints; the last one is saved even after a kill before it.

    The last iteration may be saved twice, by its number and as the final one, and a process may be
    killed in between. When it is resumed, nothing is left to train, and only the latter to save.
    """

    def before_train(self) -> None:
        """Save the final checkpoint if a training that is complete lacks it."""
        super().before_train()
        trainer = self.trainer
        final = os.path.join(self.checkpointer.save_dir, f"{FINAL}.pth")
        if trainer.start_iter == trainer.max_iter and not os.path.exists(final):
            trainer.iter = trainer.max_iter - 1
            self.checkpointer.save(FINAL, iteration=trainer.iter)
            trainer.iter = trainer.start_iter


class StopOnSignal(HookBase):
    """Ends the training after an iteration in which any process received a signal."""

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals

    def after_step(self) -> None:
        """Record that the iteration is complete, then check for signals."""
        self.trainer.last_complete_iter = self.trainer.iter
        self.signals.check()


class InterruptibleEvaluation(hooks.EvalHook):
    """Detectron2's evaluation hook; a signal ends the evaluation at once.

    The evaluation after the training is left out if the training stopped early.

    Args:
        signals: The signals.
        period: Iterations between evaluations; 0 means one evaluation, after the training.
        evaluate: Evaluates the model.
    """

    def __init__(self, signals: StopSignals, period: int, evaluate: Any) -> None:
        super().__init__(period, evaluate)
        self.signals = signals

    def _do_eval(self) -> None:
        with self.signals.at_once(), progress.during(progress.EVALUATING):
            super()._do_eval()

    def after_train(self) -> None:
        """Evaluate, if the last iteration was completed."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class RepeatablePreciseBN(hooks.PreciseBN):
    """Detectron2's precise batch statistics, always over the same first images of the order.

    Args:
        period, model, loader, num_iter: As of Detectron2's hook.
        average: The average of the model's weights, if any: it gets statistics of its own.
    """

    def __init__(
        self,
        period: int,
        model: nn.Module,
        loader: Any,
        num_iter: int,
        *,
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__(period, model, loader, num_iter)
        self._average = average

    def update_stats(self) -> None:
        """Update the statistics of the model, and those of its averaged weights."""
        self._update()
        if self._average is not None:
            with self._average.applied():
                self._update()
                self._average.take_buffers()

    def _update(self) -> None:
        self._data_loader.seed = self.trainer.data_loader.seed
        self._data_loader.batches = 0
        self._data_iter = iter(self._data_loader)
        try:
            super().update_stats()
        except TrainingStop as stop:
            # The weights are already updated, but the rest of the state is not.
            stop.saves = False
            raise
