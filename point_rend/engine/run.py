"""A run: training or evaluation, as every process executes it."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import nn

from point_rend.checkpoint.complete_model import CompleteModelCheckpointer
from point_rend.config.agreement import warn_if_trained_otherwise
from point_rend.data.checks.annotations import leave_out_impossible_annotations
from point_rend.data.datasets.class_matching import ClassOrder, build_evaluated_classes
from point_rend.engine.arguments import AUTO
from point_rend.engine.dry_run.run import check_training
from point_rend.engine.launch import join, launch, leave, rank_from_launcher
from point_rend.engine.memory import build_memory_error, out_of_memory_reported
from point_rend.engine.output_folder import delete_training, output_errors
from point_rend.engine.preflight import check_machine
from point_rend.engine.setup import (
    begin_run,
    read_config,
    register_datasets,
    set_up_together,
    setup,
    write_config,
)
from point_rend.engine.trainer import Trainer
from point_rend.runtime.exported_model import ExportedModel, build_exported_model
from point_rend.runtime.files import exported_file
from point_rend.runtime.run_config import class_fields
from point_rend.utils.errors import user_errors
from point_rend.utils.locks import keep_folder_locked, unlock_folders
from point_rend.utils.logs import only_errors


def start(args: argparse.Namespace, trainer: type[Trainer] = Trainer) -> None:
    """Check a command line, then train or evaluate in as many processes as it asks for.

    Args:
        args: The parsed command line.
        trainer: The class that trains and evaluates, at the top level of a module.

    Raises:
        SystemExit: With code 2 after an error that the user can correct, with code 3 after a loss
            or a gradient that is not finite, with 128 + n after signal n.
    """
    try:
        _start(args, trainer)
    finally:
        unlock_folders()


def _start(args: argparse.Namespace, trainer: type[Trainer]) -> None:
    with user_errors():
        if not 0 <= args.machine_rank < args.num_machines:
            raise ValueError(
                f"--machine-rank is {args.machine_rank} and --num-machines {args.num_machines}: "
                "expected 1 machine or more, numbered from 0"
            )
        if args.num_machines > 1 and args.dist_url == AUTO:
            raise ValueError(
                f"--num-machines is {args.num_machines}: expected --dist-url "
                "tcp://<address of machine 0>:<a free port there>, the same on all machines"
            )
        if args.overwrite and (args.resume or args.eval_only):
            other = "--resume" if args.resume else "--eval-only"
            raise ValueError(f"--overwrite starts a new training: leave it or {other} out")
        if args.check and args.eval_only:
            raise ValueError("--check is for a training: leave it or --eval-only out")
        if args.check_output and not args.check:
            raise ValueError("--check-output names the folder of --check: pass both")
        requested = args.num_gpus * args.num_machines
        rank_info = rank_from_launcher(os.environ, requested=requested)
        if rank_info is None:
            job = setup(args)
        else:
            cfg = read_config(args)
            check_machine(cfg, 1, launched=True)
            join(rank_info, cfg.MODEL.DEVICE)
    if rank_info is not None:
        run(*set_up_together(args), trainer)
        leave()
        return
    launch(
        run,
        (*job, trainer),
        device=job.cfg.MODEL.DEVICE,
        num_local=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
        silence_limit=args.silence_limit,
    )


def run(
    args: argparse.Namespace,
    cfg: CfgNode,
    datasets_to_clean: Sequence[str],
    trainer: type[Trainer] = Trainer,
) -> Any:
    """Train, evaluate or check; every process of a run executes this function.

    Args:
        args: The parsed command line.
        cfg: The finished, frozen config.
        datasets_to_clean: Sets that contain annotations to leave out.
        trainer: The class that trains and evaluates.

    Returns:
        The results of an evaluation by data set, or of the only one; else None.
    """
    if comm.is_main_process() and not args.check:
        keep_folder_locked(cfg.OUTPUT_DIR)
    register_datasets(args)
    points = cfg.INPUT.POINT_SUP
    for name in datasets_to_clean:
        leave_out_impossible_annotations(
            name, masks=cfg.MODEL.MASK_ON and not points, points=points
        )
    when = "in the evaluation" if args.eval_only else "before the first iteration"
    shortage = build_memory_error(cfg, when, training=not args.eval_only)
    with out_of_memory_reported(shortage):
        if args.check:
            return check_training(args, cfg, trainer)
        return (evaluate if args.eval_only else train)(args, cfg, trainer)


def evaluate(args: argparse.Namespace, cfg: CfgNode, trainer: type[Trainer] = Trainer) -> Any:
    """Evaluate a checkpoint on DATASETS.TEST."""
    with user_errors():
        begin_run(args, cfg)
        # The warning of a head without its point head would repeat the command line.
        is_chosen = "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON" in args.opts[::2]
        if exported_file(args.model) is not None:
            model, class_order = load_exported_model(args, cfg)
        else:
            with only_errors(*["point_rend.mask_head"] * is_chosen):
                model = trainer.build_model(cfg)
            class_order = load_evaluated_model(args, cfg, model, resume=args.resume)
        write_config(cfg, replace=False)
    with output_errors(cfg.OUTPUT_DIR):
        results = trainer.test(cfg, model, class_order=class_order)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def load_evaluated_model(
    args: argparse.Namespace, cfg: CfgNode, model: nn.Module, *, resume: bool = False
) -> ClassOrder:
    """Load a checkpoint and match its classes with those of DATASETS.TEST.

    Args:
        args: The parsed command line.
        cfg: The finished config.
        model: The model, built from it.
        resume: Whether to load the last checkpoint of OUTPUT_DIR, if there is one.

    Returns:
        The order of the model's classes, for :meth:`Trainer.test`.

    Raises:
        FileNotFoundError, OSError: If the file cannot be read.
        ValueError: If it is no checkpoint of this model, or one of other classes.
    """
    classes = build_evaluated_classes(cfg, by_position=args.ignore_class_names)
    checkpointer = CompleteModelCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        allow_unsafe=args.allow_unsafe_checkpoint,
        check_classes=classes.check,
    )
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    warn_if_trained_otherwise(cfg, checkpointer.config_in_file, checkpointer.source)
    return classes.order


def load_exported_model(args: argparse.Namespace, cfg: CfgNode) -> tuple[ExportedModel, ClassOrder]:
    """Load a file of `pointrend export` and match its classes with those of DATASETS.TEST.

    Args:
        args: The parsed command line.
        cfg: The finished config.

    Returns:
        The model, and the order of its classes, for :meth:`Trainer.test`.

    Raises:
        FileNotFoundError, OSError: If the file cannot be read.
        ValueError: If it cannot be run, or is one of other classes.
    """
    model = build_exported_model(
        cfg, args.model, backend=args.backend, allow_unsafe=args.allow_unsafe_checkpoint
    )
    classes = build_evaluated_classes(cfg, by_position=args.ignore_class_names)
    classes.check(args.model, class_fields(model.description))
    return model, classes.order


def train(args: argparse.Namespace, cfg: CfgNode, trainer: type[Trainer] = Trainer) -> Any:
    """Train a model, from the start or from the last checkpoint."""
    with user_errors():
        begin_run(args, cfg)
        training = trainer(
            cfg,
            allow_unsafe_checkpoint=args.allow_unsafe_checkpoint,
            ignore_class_names=args.ignore_class_names,
        )
        training.resume_or_load(resume=args.resume)
        if args.overwrite and comm.is_main_process():
            delete_training(cfg.OUTPUT_DIR)
        write_config(cfg, replace=True)
    return training.train()
