"""A trainer whose trainings can be ended at any moment and go on as if they had not been."""

import contextlib
import errno
import functools
import logging
import multiprocessing
import os
import shlex
import sys
import weakref
from collections.abc import Iterator
from typing import Any, NoReturn

import torch
from detectron2.config import CfgNode
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import LRScheduler
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.data.datasets.classes import known_of_classes
from point_rend.data.loader.loaders import (
    EvaluationLoader,
    TrainLoader,
    build_test_loader,
    build_train_loader,
)
from point_rend.data.mapper import NamingDatasetMapper
from point_rend.engine.hooks import (
    InterruptibleEvaluation,
    RandomNumbersOfIteration,
    RepeatablePreciseBN,
    StopBetweenIterations,
)
from point_rend.engine.launch import distribute
from point_rend.engine.signals import StopSignals
from point_rend.engine.train_step import NonFiniteError, build_step
from point_rend.evaluation.build import build_evaluator
from point_rend.evaluation.shared_inference import evaluate_together
from point_rend.evaluation.tta import InMixedPrecision, build_test_time_augmentation
from point_rend.solver import build_lr_scheduler
from point_rend.utils.errors import USER_ERROR, TrainingStop
from point_rend.utils.files import NotSavedError
from point_rend.utils.program import command_words, is_executable, program

logger = logging.getLogger(__name__)


# What a full disk, a quota, a limit of file sizes and a read-only disk raise.
OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


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
                print(f"{program()}: {kind}{line}", file=sys.stderr, flush=True)
        if stop.together:
            self.signals.wait_for_all()
        raise SystemExit(stop.exit_code) from stop


def resuming_command() -> str:
    """Return the command line that continues the run of this process."""
    start, options = command_words()
    options = [word for word in options if word != "--resume"]
    command = shlex.join([*start, "--resume", *options])
    interpreter = "" if is_executable() else f"{shlex.quote(sys.executable)} "
    if comm.get_world_size() > 1 and multiprocessing.parent_process() is None:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun names no interpreter
            return f"torchrun <with the same options> {command}"
        return f"<the same launcher> {interpreter}{command}"
    return f"{interpreter}{command}"


logger = logging.getLogger("point_rend.train_net")
DIVERGED = 3  # exit code of a training that ends at a loss or a gradient that is not finite


class Trainer(ResumableTrainer):
    """Our trainer with our step, checkpointer, mapper and evaluators."""

    def __init__(self, cfg: CfgNode, *, allow_unsafe_checkpoint: bool = False) -> None:
        # DefaultTrainer.__init__ names the classes of its parts outright, and wants several
        # processes to have GPUs; its own parent has no such wishes.
        super(DefaultTrainer, self).__init__()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._trainer = build_step(cfg, distribute(model), loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SafeDetectionCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            allow_unsafe=allow_unsafe_checkpoint,
            strict_shapes=False,  # a training may start from a model of other classes
            metadata=known_of_classes(cfg),
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def run_step(self) -> None:
        """Take one step; a loss or gradient that is not finite ends the training before it."""
        try:
            super().run_step()
        except NonFiniteError as error:
            self.data_loader.batches -= 1  # the step has not been taken
            logger.error("%s", error)
            message = (
                f"{str(error).splitlines()[0]}; the losses and images are in the log; unless their "
                "cause is gone, a resumed training meets it again, at the same SOLVER.BASE_LR: for "
                "a smaller one start anew, in another OUTPUT_DIR, with MODEL.WEIGHTS a checkpoint"
            )
            raise TrainingStop(message, exit_code=DIVERGED, together=True) from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Build our loader with our mapper."""
        return build_train_loader(cfg, NamingDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> EvaluationLoader:
        """Build our loader with our mapper."""
        return build_test_loader(cfg, dataset_name, NamingDatasetMapper(cfg, is_train=False))

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Build the schedule of the learning rate, DeepLab's and mmsegmentation's included."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the evaluator of a data set."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        """Evaluate a model, with the variants of each image if TEST.AUG.ENABLED asks for them.

        TEST.MIXED_PRECISION computes in a shorter type. Data sets that share their images share the
        inference.
        """
        if cfg.TEST.AUG.ENABLED:
            model = build_test_time_augmentation(cfg, model)
        if cfg.TEST.MIXED_PRECISION:
            model = InMixedPrecision(model, getattr(torch, cfg.SOLVER.AMP.DTYPE))
        names = cfg.DATASETS.TEST
        if evaluators is not None or len(names) < 2 or cfg.MODEL.LOAD_PROPOSALS:
            return super().test(cfg, model, evaluators)
        build_loader = functools.partial(cls.build_test_loader, cfg)
        return evaluate_together(
            model, names, build_loader, functools.partial(cls.build_evaluator, cfg)
        )
