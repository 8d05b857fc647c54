"""The trainer: Detectron2's, safe to interrupt at any moment and exact when it resumes."""

import contextlib
import functools
import inspect
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
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from point_rend.acceleration.prepare import prepared_for_inference
from point_rend.checkpoint.checkpointer import FINAL
from point_rend.checkpoint.class_metadata import CONFIG
from point_rend.checkpoint.finite import check_finite_state
from point_rend.checkpoint.optimizer_state import match_by_name, name_groups, with_names
from point_rend.config.agreement import warn_if_trained_otherwise
from point_rend.config.checks import AVERAGED_RESULTS
from point_rend.config.defaults import pixel_format
from point_rend.config.dumping import dump_config
from point_rend.data.datasets.class_matching import ClassOrder, build_trained_classes
from point_rend.data.datasets.classes import training_class_metadata
from point_rend.data.datasets.keypoints import build_keypoint_metadata
from point_rend.data.loader.foreign import build_own_loader
from point_rend.data.loader.loaders import build_test_loader, build_train_loader
from point_rend.data.loader.samples import UnusableDataError
from point_rend.data.loader.together import BatchStream
from point_rend.data.loader.validation import ValidationLoader, build_validation_loader
from point_rend.data.mapper import NamingDatasetMapper, build_validation_mapper
from point_rend.engine.averaging import (
    AverageWeights,
    TrainingCheckpointer,
    build_average,
    build_averaged_cfg,
    load_average,
)
from point_rend.engine.best import FinishedEarly, build_evaluation_hooks, check_results
from point_rend.engine.hooks import (
    CompletingCheckpointer,
    InterruptibleEvaluation,
    RepeatablePreciseBN,
    SeedEachIteration,
    StopOnSignal,
    StopWithoutFolder,
)
from point_rend.engine.launch import distribute
from point_rend.engine.memory import build_memory_error
from point_rend.engine.output_folder import FolderGoneError, WatchedFolder, output_fault
from point_rend.engine.preflight import check_best_metric
from point_rend.engine.signals import StopSignals
from point_rend.engine.tracking.samples import put_samples
from point_rend.engine.tracking.writer import TrackedRuns, build_tracker_writers
from point_rend.engine.train_step import NonFiniteError, build_train_step
from point_rend.engine.validation import build_validation
from point_rend.engine.writers import build_writers
from point_rend.evaluation.build import build_evaluator
from point_rend.evaluation.class_order import ReorderedClasses
from point_rend.evaluation.postprocessing import UnpastedMasks
from point_rend.evaluation.shared_inference import evaluate_with_shared_inference
from point_rend.evaluation.tta import AutocastModel, build_test_time_augmentation
from point_rend.solver import build_lr_scheduler, build_optimizer
from point_rend.utils import progress
from point_rend.utils.errors import DIVERGED, USER_ERROR, TrainingStop
from point_rend.utils.files import NotSavedError
from point_rend.utils.program import command_words, is_executable, program
from point_rend.utils.signals import kill_daemons

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's trainer with our loaders, evaluators, checkpointer and training step.

    - SIGTERM, SIGINT, SIGHUP and SIGUSR1 end the training after the current iteration, an
      evaluation at once, and the reading of a batch that does not arrive soon. A checkpoint is
      saved, and one line gives the command that resumes. The exit code is 128 plus the number of
      the signal.
    - Resuming is exact: the data follow from the seed and the number of batches consumed, the
      random numbers from the seed, the iteration and the rank. A seed drawn because SEED is not set
      is part of the checkpoint.
    - A disk that cannot be written, an image that cannot be read and a GPU without enough memory
      end the training with one line.

    Args:
        cfg: The finished config.
        allow_unsafe_checkpoint: Whether to load a checkpoint that may run code.
        ignore_class_names: Whether to resume a training of classes with other names.
    """

    data_loader: BatchStream

    def __init__(
        self,
        cfg: CfgNode,
        *,
        allow_unsafe_checkpoint: bool = False,
        ignore_class_names: bool = False,
    ) -> None:
        # DefaultTrainer.__init__ hard-codes the classes of its parts and requires GPUs for several
        # processes, so its parent's __init__ is called instead.
        super(DefaultTrainer, self).__init__()
        if _is_inherited(type(self), "build_evaluator") and _is_inherited(type(self), "test"):
            check_best_metric(cfg)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = build_own_loader(cfg, self.build_train_loader(cfg), self._loader_name)
        self._trainer = build_train_step(cfg, distribute(model), loader, optimizer)
        build_loader = functools.partial(self.build_validation_loader, cfg)
        self.validation = build_validation(cfg, self._trainer, build_loader)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.average = build_average(cfg, model)
        self.checkpointer = TrainingCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            allow_unsafe=allow_unsafe_checkpoint,
            strict_shapes=False,  # a training may start from a model with other classes
            metadata={
                **training_class_metadata(cfg),
                **build_keypoint_metadata(cfg),
                CONFIG: dump_config(cfg),
            },
            check_classes=build_trained_classes(cfg, by_position=ignore_class_names).check,
        )
        self.checkpointer.average = self.average
        self.signals = StopSignals()
        loader.interruptible = self.signals.soon
        self.folder = WatchedFolder(cfg.OUTPUT_DIR) if comm.is_main_process() else None
        trackers = build_tracker_writers(cfg) if comm.is_main_process() else {}
        self.trackers = TrackedRuns(trackers, cfg.OUTPUT_DIR)
        self.last_complete_iter = -1
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @property
    def _loader_name(self) -> str:
        return f"{type(self).__name__}.build_train_loader"

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Build the training loader; a subclass may return any iterable of batches."""
        return build_train_loader(cfg, NamingDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build the loader of a test set; a subclass may return any iterable with a length."""
        return build_test_loader(cfg, dataset_name, NamingDatasetMapper(cfg, is_train=False))

    @classmethod
    def build_validation_loader(cls, cfg: CfgNode, dataset_name: str) -> ValidationLoader:
        """Build the loader of a test set with its ground truth, for TEST.VALIDATION_LOSS."""
        return build_validation_loader(cfg, dataset_name, build_validation_mapper(cfg))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Build the learning rate schedule, including those of DeepLab and mmsegmentation."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build the evaluator of a data set."""
        return build_evaluator(cfg, dataset_name)

    def build_hooks(self) -> list[HookBase | None]:
        """Build Detectron2's hooks together with ours, in the order in which they run."""
        is_main = comm.is_main_process()
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD
        evaluation, *end = build_evaluation_hooks(
            self.cfg,
            self.signals,
            self._evaluate,
            self.checkpointer,
            averaged=None if self.average is None else self.average.applied,
        )
        return [
            self.trackers,
            hooks.IterationTimer(),
            SeedEachIteration(),
            hooks.LRScheduler(),
            AverageWeights(self.average) if self.average is not None else None,
            self._build_precise_bn(self.cfg.clone()),
            StopWithoutFolder(self.folder) if self.folder is not None else None,
            CompletingCheckpointer(self.checkpointer, period) if is_main else None,
            StopOnSignal(self.signals),
            evaluation,
            self._build_samples(),
            # The writer of TensorBoard's events removes the pictures, so the trackers come first.
            hooks.PeriodicWriter([*self.trackers.writers.values(), *self.build_writers()])
            if is_main
            else None,
            *end,
        ]

    def build_writers(self) -> list[EventWriter]:
        """Build the writers of the metrics."""
        return build_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def _build_precise_bn(self, cfg: CfgNode) -> HookBase | None:
        precise_bn = cfg.TEST.PRECISE_BN
        if not precise_bn.ENABLED or not get_bn_modules(self.model):
            return None
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        built = self.build_train_loader(cfg)
        loader = build_own_loader(cfg, built, self._loader_name, warns=False)
        return RepeatablePreciseBN(
            cfg.TEST.EVAL_PERIOD,
            self.model,
            loader,
            precise_bn.NUM_ITER,
            average=self.average,
        )

    def _build_samples(self) -> HookBase | None:
        logging = self.cfg.LOGGING
        if not self.cfg.DATASETS.TEST or not (logging.WANDB or logging.MLFLOW):
            return None
        return InterruptibleEvaluation(self.signals, self.cfg.TEST.EVAL_PERIOD, self._put_samples)

    def _put_samples(self) -> None:
        if comm.is_main_process() and self.cfg.LOGGING.PICTURES:
            name = self.cfg.DATASETS.TEST[0]
            put_samples(
                self.checkpointer.model,
                self.build_test_loader(self.cfg, name),
                MetadataCatalog.get(name),
                count=self.cfg.LOGGING.PICTURES,
                pixel_format=pixel_format(self.cfg),
            )

    def _evaluate(self) -> Any:
        results = self._evaluate_weights(self.cfg)
        if self.average is not None and self.cfg.DATASETS.TEST:
            logger.info("Evaluating the averaged weights (MODEL_EMA)")
            with self.average.applied():
                averaged = self._evaluate_weights(build_averaged_cfg(self.cfg))
            results = {**results, AVERAGED_RESULTS: averaged}
        self._last_eval_results = results
        return results

    def _evaluate_weights(self, cfg: CfgNode) -> Any:
        """Evaluate the weights that the model has now, with the losses if they are wanted."""
        results = self.test(cfg, self.model)
        return results if self.validation is None else self.validation.add_to(results)

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR; without one load MODEL.WEIGHTS.

        Args:
            resume: Whether to look for a checkpoint at all.

        Raises:
            FileNotFoundError, ValueError: As SafeDetectionCheckpointer.resume_or_load.
        """
        super().resume_or_load(resume)
        loaded = self.checkpointer
        warn_if_trained_otherwise(
            self.cfg,
            loaded.config_in_file,
            loaded.source,
            has_point_head=any("point_head." in key for key in loaded.keys_in_file),
        )
        if self.average is not None and not self.average.updates:
            self.average.restart()
        if self.start_iter >= self.max_iter:
            logger.warning(
                "%s is of iteration %d, and SOLVER.MAX_ITER is %d: nothing is left to train. To go "
                "on, raise SOLVER.MAX_ITER; to start anew, choose another OUTPUT_DIR",
                self.checkpointer.source,
                self.start_iter,
                self.max_iter,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the training, including that of the data and parameter names."""
        state = super().state_dict() | {"data": self.data_loader.state_dict()}
        if self.average is not None:
            state["average"] = self.average.state_dict()
        names = name_groups(self.checkpointer.model, self.optimizer)
        state["_trainer"]["optimizer"] = with_names(state["_trainer"]["optimizer"], names)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state of this trainer or of Detectron2's.

        The state of the optimizer is matched by the names of the parameters. If the state lacks
        the data, as Detectron2's does, they follow this seed; without averaged weights the average
        begins with the weights.

        Raises:
            ValueError: If the state of the optimizer does not fit.
        """
        try:
            self._load_state(state_dict)
        except ValueError as error:
            raise ValueError(f"{self.checkpointer.source} cannot be resumed: {error}") from error
        except (LookupError, TypeError, AttributeError, AssertionError) as error:
            raise ValueError(
                f"{self.checkpointer.source} cannot be resumed: its state of the training is not "
                f"that of Detectron2's trainer ({type(error).__name__}: {error})"
            ) from error

    def _load_state(self, state_dict: dict[str, Any]) -> None:
        configured = self.scheduler.base_lrs
        step = state_dict["_trainer"]
        check_finite_state(step["optimizer"])
        optimizer = match_by_name(
            step["optimizer"],
            self.checkpointer.model,
            self.optimizer,
            self.checkpointer.keys_in_file,
        )
        iteration = state_dict["iteration"]
        if not isinstance(iteration, int) or iteration < 0:
            raise ValueError(f"its iteration is {iteration!r:.50}, expected a number, 0 or more")
        super().load_state_dict(state_dict | {"_trainer": step | {"optimizer": optimizer}})
        # The groups may have been saved in another order.
        self.scheduler.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
        if self.scheduler.base_lrs != configured:
            logger.warning(
                "A resumed training keeps the learning rates of its checkpoint, %s, not those of "
                "this config, %s. To change them, start a new training with MODEL.WEIGHTS set to "
                "a checkpoint",
                *(sorted(set(rates)) for rates in (self.scheduler.base_lrs, configured)),
            )
        batches = (self.iter + 1) * self.cfg.SOLVER.ACCUMULATION_STEPS
        fallback = self.data_loader.state_dict() | {"batches": batches}
        self.data_loader.load_state_dict(state_dict.get("data", fallback))
        load_average(self.average, state_dict.get("average"), self.checkpointer.source)

    def train(self) -> Any:
        """Train until the last iteration, or until there is a reason to stop.

        Returns:
            The results of the last evaluation, as Detectron2's trainer returns them.

        Raises:
            SystemExit: If the training stops early; the last line on stderr gives the reason.
        """
        with self.trackers.ending(), self.signals.listening():
            try:
                with self._explaining_errors():
                    return super().train()
            except FinishedEarly:
                return check_results(self.cfg, getattr(self, "_last_eval_results", None))
            except TrainingStop as stop:
                self._exit(stop)
            except Exception:
                if self.last_complete_iter == self.iter:  # an evaluation failed
                    self._save()
                raise

    def run_step(self) -> None:
        """Take one step; a non-finite loss or gradient ends the training before the update.

        Memory that does not suffice ends it, too.
        """
        batches = self.data_loader.batches
        try:
            super().run_step()
        except TrainingStop:  # while a batch was awaited
            self.data_loader.batches = batches
            raise
        except NonFiniteError as error:
            self.data_loader.batches = batches  # the step was not taken
            logger.error("%s", error)
            message = (
                f"{str(error).splitlines()[0]}; the log lists the losses and images. A resumed "
                "training will fail in the same way unless the cause is removed. For a smaller "
                "SOLVER.BASE_LR start a new training, in another OUTPUT_DIR, with MODEL.WEIGHTS "
                "set to a checkpoint"
            )
            raise TrainingStop(message, exit_code=DIVERGED, together=True) from error
        except torch.OutOfMemoryError as error:
            # It may have happened within the update, so there is no state to save. Other ranks wait
            # for this one, so they are ended.
            logger.error("%s", error)
            reason = build_memory_error(self.cfg, f"in iteration {self.iter}", training=True)
            raise TrainingStop(reason, exit_code=USER_ERROR, saves=False) from error

    def after_step(self) -> None:
        """Call the hooks."""
        with self._explaining_errors():
            super().after_step()

    def after_train(self) -> None:
        """Call the hooks; if the training is stopping, its reason comes before theirs."""
        stop = sys.exc_info()[1]  # this is called while it is handled
        try:
            with self._explaining_errors():
                super().after_train()
                if self.folder is not None:
                    self.folder.check()
        except TrainingStop as later:
            raise stop if isinstance(stop, TrainingStop) else later from None

    @contextlib.contextmanager
    def _explaining_errors(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            logger.error("%s", error)
            reason = build_memory_error(self.cfg, "in the evaluation", training=False)
            raise TrainingStop(reason, exit_code=USER_ERROR) from error
        except UnusableDataError as error:
            raise TrainingStop(str(error), exit_code=USER_ERROR) from error
        except OSError as error:
            cause = self._folder_fault() or error  # which any writer may have met first
            reason = output_fault(cause, self.cfg.OUTPUT_DIR)
            if not reason:
                raise
            # A folder that is gone can perhaps be created again.
            saves = isinstance(cause, FolderGoneError)
            raise TrainingStop(reason, exit_code=USER_ERROR, saves=saves) from error

    def _folder_fault(self) -> FolderGoneError | None:
        """Return the error of an output folder that was removed or replaced, else nothing."""
        try:
            if self.folder is not None:
                self.folder.check()
        except FolderGoneError as gone:
            return gone
        return None

    def _save(self) -> None:
        """Save the last complete iteration; the last of all is saved already, if it is there."""
        if self.last_complete_iter < self.start_iter:
            return
        if self.average is not None:
            self.average.restore()
        self.iter = self.last_complete_iter
        name = f"model_{self.iter:07d}"
        if self.iter >= self.max_iter - 1:
            name = FINAL
            if os.path.exists(os.path.join(self.cfg.OUTPUT_DIR, f"{name}.pth")):
                return
        self.checkpointer.save(name, iteration=self.iter)

    def _exit(self, stop: TrainingStop) -> NoReturn:
        """Save if possible, print one line that gives the reason and how to resume, and exit."""
        self.signals.settle()
        message = [stop.reason]
        if stop.saves:
            try:
                self._save()
            except NotSavedError as error:
                message.append(str(error))
        if comm.is_main_process() or not stop.together:
            with contextlib.suppress(OSError, ValueError):  # its folder may be gone
                if last := self.checkpointer.get_checkpoint_file():
                    message.append(f"the last checkpoint is {last}")
            message.append(f"resume with: {resume_command()}")
            prefix = "error: " if stop.exit_code in (USER_ERROR, DIVERGED) else ""
            line = " ".join("; ".join(message).split())
            with contextlib.suppress(OSError):  # the signal may have ended the reader too
                print(f"{program()}: {prefix}{line}", file=sys.stderr, flush=True)
        if stop.together:
            self.signals.wait_for_all()
        kill_daemons()  # a data worker may be stuck
        raise SystemExit(stop.exit_code) from stop

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Any = None,
        *,
        class_order: ClassOrder | None = None,
    ) -> Any:
        """Evaluate a model, with TEST.AUG and TEST.MIXED_PRECISION.

        Data sets that share images share the inference on them.

        Args:
            cfg: The finished config.
            model: The model.
            evaluators: As of Detectron2's trainer.
            class_order: Order of the model's classes if it is not that of the data sets.

        Returns:
            The results by data set, or those of the only one.
        """
        # Evaluators of others may need tensors.
        paste_masks = evaluators is not None or not _is_inherited(cls, "build_evaluator")
        if cfg.TEST.AUG.ENABLED:
            model = build_test_time_augmentation(cfg, model, paste_masks=paste_masks)
        elif not paste_masks:
            model = UnpastedMasks(model)
        if cfg.TEST.MIXED_PRECISION:
            model = AutocastModel(model, getattr(torch, cfg.SOLVER.AMP.DTYPE))
        if class_order:
            model = ReorderedClasses(model, class_order)
        names = cfg.DATASETS.TEST
        with prepared_for_inference(model), progress.noted_by(model):
            if evaluators is not None or len(names) < 2 or cfg.MODEL.LOAD_PROPOSALS:
                return super().test(cfg, model, evaluators)
            build_loader = functools.partial(cls.build_test_loader, cfg)
            return evaluate_with_shared_inference(
                model, names, build_loader, functools.partial(cls.build_evaluator, cfg)
            )


def _is_inherited(cls: type[Trainer], name: str) -> bool:
    """Return whether a class takes a method from :class:`Trainer` as it is."""
    return inspect.getattr_static(cls, name) is inspect.getattr_static(Trainer, name)


def resume_command() -> str:
    """Return the command line that resumes the training of this process."""
    start, options = command_words()
    options = [word for word in options if word != "--resume"]
    command = shlex.join([*start, "--resume", *options])
    interpreter = "" if is_executable() else f"{shlex.quote(sys.executable)} "
    if comm.get_world_size() > 1 and multiprocessing.parent_process() is None:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun takes no interpreter
            return f"torchrun <with the same options> {command}"
        return f"<the same launcher> {interpreter}{command}"
    return f"{interpreter}{command}"
