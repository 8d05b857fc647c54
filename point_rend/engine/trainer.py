"""A trainer whose trainings can be ended at any moment and go on as if they had not been."""

import contextlib
import errno
import logging
import multiprocessing
import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules

from point_rend.checkpoint import NotSavedError

from .loading import TrainLoader
from .randomness import seed_all
from .stopping import USER_ERROR, StopSignals, TrainingStop

# What a full disk, a quota, a limit of file sizes and a read-only disk raise.
OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}

logger = logging.getLogger(__name__)


class ResumableTrainer(DefaultTrainer):
    """Detectron2's trainer, safe from signals, kills and full disks, and exact when it resumes.

    - SIGTERM and SIGINT end the iteration, or an evaluation at once; a checkpoint is saved, and one
      line says how to resume. The exit code is 128 and the number of the signal.
    - A training that is resumed goes on exactly: its data follow from the seed and the batches
      seen, its random numbers from the seed, the iteration and the rank. A seed that was drawn for
      want of a SEED is part of the checkpoint.
    - A disk that cannot be written to and an image that cannot be read end it with one line.

    `build_train_loader` must return a :class:`TrainLoader`.
    """

    data_loader: TrainLoader

    def build_hooks(self) -> list[HookBase | None]:
        """Build the hooks of Detectron2, with ours between them."""
        self.signals = StopSignals()
        self.finished = -1  # the last iteration whose state is whole
        is_main = comm.is_main_process()
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        return [
            hooks.IterationTimer(),
            RandomNumbersOfIteration(),
            hooks.LRScheduler(),
            self._build_precise_bn(self.cfg.clone()),
            hooks.PeriodicCheckpointer(self.checkpointer, period) if is_main else None,
            StopBetweenIterations(self.signals),
            InterruptibleEvaluation(self.signals, self.cfg.TEST.EVAL_PERIOD, self._evaluate),
            hooks.PeriodicWriter(self.build_writers()) if is_main else None,
        ]

    def _build_precise_bn(self, cfg: CfgNode) -> HookBase | None:
        precise_bn = cfg.TEST.PRECISE_BN
        if not precise_bn.ENABLED or not get_bn_modules(self.model):
            return None
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self.build_train_loader(cfg)
        return RepeatablePreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, precise_bn.NUM_ITER)

    def _evaluate(self) -> Any:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with that of the data."""
        return super().state_dict() | {"data": self.data_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state; Detectron2's has nothing of the data, which then follow this seed."""
        asked = self.scheduler.base_lrs
        super().load_state_dict(state_dict)
        if self.scheduler.base_lrs != asked:
            logger.warning(
                "A resumed training keeps the learning rates of its checkpoint, %s, not those of "
                "this config, %s; for others start anew with MODEL.WEIGHTS a checkpoint",
                *(sorted(set(rates)) for rates in (self.scheduler.base_lrs, asked)),
            )
        here = self.data_loader.state_dict() | {"batches": self.iter + 1}
        self.data_loader.load_state_dict(state_dict.get("data", here))

    def train(self) -> Any:
        """Train until the end, or until a reason to stop.

        Returns:
            What Detectron2's trainer returns.

        Raises:
            SystemExit: If the training is stopped; the last line on stderr says why.
        """
        with self.signals.listening():
            try:
                return super().train()
            except TrainingStop as stop:
                self._end(stop)
            except Exception:
                if self.finished == self.iter:  # in an evaluation: nothing of the training is lost
                    self._save()
                raise

    def after_step(self) -> None:
        """Call the hooks."""
        with self._errors_of_output_explained():
            super().after_step()

    def after_train(self) -> None:
        """Call the hooks."""
        with self._errors_of_output_explained():
            super().after_train()

    @contextlib.contextmanager
    def _errors_of_output_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, NotSavedError):
                reason = str(error)
            elif error.errno in OUTPUT_ERRORS:
                where = error.filename or self.cfg.OUTPUT_DIR
                reason = f"{where} cannot be written: {error.strerror}; make room there"
            else:
                raise
            raise TrainingStop(reason, exit_code=USER_ERROR, saves=False) from error

    def _save(self) -> None:
        """Save the last iteration that is whole; that of a whole training has been saved."""
        if self.start_iter <= self.finished < self.max_iter - 1:
            self.iter = self.finished
            self.checkpointer.save(f"model_{self.finished:07d}", iteration=self.finished)

    def _end(self, stop: TrainingStop) -> NoReturn:
        said = [stop.reason]
        if stop.saves:
            try:
                self._save()
            except NotSavedError as error:
                said.append(str(error))
        if comm.is_main_process() or not stop.together:
            if self.checkpointer.has_checkpoint():
                said.append(f"the last checkpoint is {self.checkpointer.get_checkpoint_file()}")
            said.append(f"resume with: {resuming_command()}")
            kind = "error: " if stop.exit_code < 128 else ""
            line = " ".join("; ".join(said).split())
            with contextlib.suppress(BrokenPipeError):  # the reader may have got the signal, too
                print(f"{os.path.basename(sys.argv[0])}: {kind}{line}", file=sys.stderr, flush=True)
        if stop.together:
            self.signals.wait_for_all()
        raise SystemExit(stop.exit_code) from stop


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
    """Detectron2's statistics of normalisation, each time over the first images of the order."""

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


def resuming_command() -> str:
    """Return the command line that continues the run of this process."""
    options = [word for word in sys.argv[1:] if word != "--resume"]
    command = shlex.join([sys.argv[0], "--resume", *options])
    if comm.get_world_size() > 1 and multiprocessing.parent_process() is None:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun names no interpreter
            return f"torchrun <with the same options> {command}"
        return f"<the same launcher> {shlex.quote(sys.executable)} {command}"
    return f"{shlex.quote(sys.executable)} {command}"
