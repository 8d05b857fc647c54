"""From the parsed command line to a checked config: data sets, checks, logger."""

import argparse
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from point_rend.config.checks import check_config, check_test_time_augmentation
from point_rend.config.defaults import pixel_format, value_of
from point_rend.config.dumping import CONFIG_NAME, dump_config
from point_rend.config.loading import COMMAND_LINE, load_config
from point_rend.config.schema import ALWAYS, check_rules
from point_rend.config.tasks import model_outputs
from point_rend.config.trial import check_model
from point_rend.data.checks.annotations import check_datasets
from point_rend.data.checks.label_maps import check_semantic_datasets
from point_rend.data.datasets.cityscapes_panoptic import register_cityscapes_panoptic
from point_rend.data.datasets.classes import CLASS_COUNTS, check_class_count, fill_class_count
from point_rend.data.datasets.coco import register_coco
from point_rend.data.datasets.cocofied_lvis import register_cocofied_lvis
from point_rend.data.datasets.keypoints import fill_keypoints
from point_rend.data.datasets.label_maps import register_sem_seg
from point_rend.data.datasets.loading import guard_loaders
from point_rend.data.datasets.point_annotations import register_point_annotations
from point_rend.data.datasets.proposals import check_proposal_files, check_test_proposals
from point_rend.engine.output_folder import (
    check_config_file,
    check_output_dir,
    check_output_name,
    check_overwritable,
    check_unused,
)
from point_rend.engine.preflight import check_distribution, check_machine, check_weights
from point_rend.engine.tracking.trackers import check_trackers
from point_rend.evaluation.build import check_evaluators
from point_rend.runtime.files import exported_file, read_description
from point_rend.runtime.hub import find_folder
from point_rend.runtime.model_folder import build_folder_config, read_model_folder
from point_rend.runtime.run_config import build_run_config
from point_rend.utils.arguments import check_backend
from point_rend.utils.errors import USER_ERROR, user_errors
from point_rend.utils.files import write_text
from point_rend.utils.locks import lock_folder
from point_rend.utils.logs import report_write_errors

logger = logging.getLogger(__name__)

LOGGERS = ("detectron2", "fvcore", "point_rend")


class Run(NamedTuple):
    """Everything a process needs to take part in a run.

    Attributes:
        args: The parsed command line.
        cfg: The finished, frozen config.
        datasets_to_clean: Sets that are trained on, or whose losses are computed, that contain
            annotations to leave out.
    """

    args: argparse.Namespace
    cfg: CfgNode
    datasets_to_clean: tuple[str, ...]


def setup(args: argparse.Namespace) -> Run:
    """Build the config and refuse anything that would stop the run later.

    Args:
        args: The parsed command line.

    Returns:
        The run, ready to be launched.

    Raises:
        FileNotFoundError: If a file or a folder is missing.
        ValueError: If options, config, machine or data do not fit together.
    """
    training = not args.eval_only
    cfg, taken = read_config_of_data(args, training=training)
    outputs = model_outputs(cfg)
    train, test = cfg.DATASETS.TRAIN if training else (), cfg.DATASETS.TEST
    check_test_time_augmentation(cfg)
    if exported_file(args.model) is None:
        check_model(cfg, training=training)
    check_machine(cfg, args.num_gpus, training=training)
    if training:
        check_trackers(cfg)
    has_weights = check_weights(cfg, args)
    if training:
        check_distribution(cfg, max(comm.get_world_size(), args.num_gpus * args.num_machines))
    check_proposal_files(cfg, training=training)
    check_evaluators(train, test, outputs=outputs)
    if args.check:
        check_beside_runs(args, cfg)
    else:
        claim_output_dir(args, cfg)
    cfg.freeze()

    set_up_logger(None if args.check else cfg.OUTPUT_DIR, "point_rend")
    for what in taken:
        logger.info("%s", what)
    if args.eval_only and not has_weights:
        logger.warning("MODEL.WEIGHTS is empty: evaluating a model with random weights")
    datasets_to_clean: tuple[str, ...] = ()
    skips = cfg.DATALOADER.ON_CORRUPT_IMAGE == "skip"
    if "instances" in outputs:
        number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
        datasets_to_clean = check_datasets(
            train,
            test,
            masks=cfg.MODEL.MASK_ON,
            points=cfg.INPUT.POINT_SUP,
            keypoints=number,
            skip_broken_images=skips,
            pixel_format=pixel_format(cfg),
            test_losses=training and cfg.TEST.VALIDATION_LOSS,
        )
    if "sem_seg" in outputs:
        ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        check_semantic_datasets(
            train,
            test,
            ignore_value=ignore_value,
            skip_broken_images=skips,
            pixel_format=pixel_format(cfg),
        )
    check_test_proposals(cfg)
    return Run(args, cfg, datasets_to_clean)


def read_config_of_data(args: argparse.Namespace, *, training: bool) -> tuple[CfgNode, list[str]]:
    """Read the config, register the data sets, and take numbers of classes and keypoints from them.

    Args:
        args: The parsed command line.
        training: Whether the config is for training, too.

    Returns:
        The checked config, not frozen, and messages of what was taken from the data sets.

    Raises:
        FileNotFoundError: If a file or a folder is missing.
        ValueError: If the options, the config and the data sets do not fit together.
    """
    cfg = read_config(args)
    check_rules(cfg, ALWAYS)
    register_datasets(args)
    train, test = cfg.DATASETS.TRAIN if training else (), cfg.DATASETS.TEST
    if not (train if training else test):
        raise ValueError(f"DATASETS.{'TRAIN' if training else 'TEST'} is empty")
    outputs = model_outputs(cfg)
    datasets, taken = [*train, *test], []
    for count in CLASS_COUNTS:
        if count.output in outputs and args.model is not None:
            check_class_count(cfg, count, test, args.model)
        elif count.output in outputs and fill_class_count(
            cfg, count, datasets, args.config_file, args.opts
        ):
            number = value_of(cfg, count.key)
            taken.append(f"{count.key} is {number}, the class count of the data sets")
    if cfg.MODEL.KEYPOINT_ON and args.model is None:
        taken += fill_keypoints(cfg, datasets, args.config_file, args.opts)
    check_config(cfg, training=training)
    return cfg, taken


def check_beside_runs(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Refuse an output folder that a training would refuse, but create and change nothing there.

    Raises:
        ValueError: If it cannot be used, or holds an earlier training.
    """
    check_output_name(cfg.OUTPUT_DIR)
    if Path(cfg.OUTPUT_DIR).exists():
        check_earlier_runs(args, cfg)


def claim_output_dir(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Check the output folder, and lock it for this run until the program ends.

    Raises:
        ValueError: If it cannot be used, another run uses it, or a training would start over the
            files of an earlier one.
    """
    check_output_dir(cfg.OUTPUT_DIR)
    if args.machine_rank == 0 and comm.is_main_process():
        try:
            lock_folder(cfg.OUTPUT_DIR)
        except ValueError as error:
            raise ValueError(f"OUTPUT_DIR {error}") from error
    check_earlier_runs(args, cfg)


def check_earlier_runs(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Refuse a training that would start over the files of an earlier one.

    Raises:
        ValueError: If it would.
    """
    if not args.eval_only:
        check_config_file(cfg.OUTPUT_DIR, args.config_file)
    if args.overwrite:
        check_overwritable(cfg.OUTPUT_DIR, [cfg.MODEL.WEIGHTS])
    elif not (args.resume or args.eval_only):
        check_unused(cfg.OUTPUT_DIR)


def read_config(args: argparse.Namespace) -> CfgNode:
    """Read the config file, or the config of --model, and the options that override it.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If no file is given, or the file or an option is invalid.
    """
    check_backend(args.backend, exported_file(args.model))
    if args.model is not None:
        for flag, given in (("--config-file", args.config_file), ("--resume", args.resume)):
            if given:
                raise ValueError(f"--model {args.model} has config and weights: leave {flag} out")
        if exported_file(args.model) is None:
            folder = read_model_folder(find_folder(args.model))
            return build_folder_config(folder, args.opts, opts_source=COMMAND_LINE)
        description = read_description(args.model)
        return build_run_config(description, args.model, args.opts, opts_source=COMMAND_LINE)
    if not args.config_file:
        raise ValueError(
            "--config-file is missing: pass a file or the name of a config, such as "
            "InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco.yaml"
        )
    return load_config(args.config_file, args.opts, opts_source=COMMAND_LINE)


def register_datasets(args: argparse.Namespace) -> None:
    """Register the data sets of the command line, and the built-in ones that Detectron2 lacks.

    All sets then load without stray files, and with errors that name them.
    """
    register_cocofied_lvis()
    register_point_annotations()
    register_cityscapes_panoptic()
    for dataset in args.register_coco:
        register_coco(*dataset)
    for dataset in args.register_sem_seg:
        register_sem_seg(*dataset)
    guard_loaders()


def set_up_logger(output_dir: str | None, *names: str) -> None:
    """Send the messages of packages to the console and the log file, as Detectron2 does.

    Args:
        output_dir: Folder of the log file; None for none.
        names: Names of their loggers.
    """
    for name in names:
        setup_logger(output_dir, distributed_rank=comm.get_rank(), name=name)
    report_write_errors(*names)


def begin_run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Set up Detectron2 in every process of a run, as its ``default_setup`` does.

    That function would also overwrite the config.yaml of an earlier run; see :func:`write_config`.
    """
    set_up_logger(cfg.OUTPUT_DIR, *LOGGERS)
    rank = comm.get_rank()
    log = logging.getLogger("detectron2").info
    log("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    log("Environment info:\n%s", collect_env_info())
    log("Command line arguments: %s", args)
    if comm.is_main_process():
        log("Running with full config:\n%s", cfg.dump())
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def write_config(cfg: CfgNode, *, replace: bool) -> None:
    """Write the config of a run into its output folder.

    Args:
        cfg: The config.
        replace: Whether to replace that of an earlier run.
    """
    path = Path(cfg.OUTPUT_DIR, CONFIG_NAME)
    if comm.is_main_process() and (replace or not path.exists()):
        write_text(path, dump_config(cfg))


def set_up_together(args: argparse.Namespace) -> Run:
    """Run :func:`setup` in one process of each machine; an error there ends all processes."""
    outcome: Run | int | None = None
    if comm.get_local_rank() == 0:
        try:
            with user_errors():
                outcome = setup(args)
        except SystemExit:
            outcome = USER_ERROR
    outcomes = comm.all_gather(outcome)
    if USER_ERROR in outcomes:
        raise SystemExit(USER_ERROR)
    return outcomes[comm.get_rank() - comm.get_local_rank()]
