"""`pointrend train --check`: a training is checked, shown and measured, and none of it is kept."""

import argparse
import contextlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import nn

from point_rend.config.defaults import pixel_format
from point_rend.config.tasks import model_outputs
from point_rend.data.loader.loaders import TrainLoader
from point_rend.engine.dry_run import measuring
from point_rend.engine.dry_run.picture import Shown, page
from point_rend.engine.dry_run.recording import Record, describe_transforms
from point_rend.engine.dry_run.text import lines_of
from point_rend.engine.setup import LOGGERS, set_up_logger
from point_rend.engine.trainer import Trainer
from point_rend.utils.errors import USER_ERROR, TrainingStop, print_result, say_error, user_errors
from point_rend.utils.files import check_output, write_text
from point_rend.utils.json_files import read_json
from point_rend.visualization.layout import save_picture

BATCHES = 3
FOLDER = "check"  # below OUTPUT_DIR
REPORT, PICTURE = "check.json", "check.png"
WRITTEN_BY = "pointrend train --check"


def check_files(folder: str | Path) -> None:
    """Make sure that the files of a dry run can be written into a folder.

    Raises:
        ValueError: If they cannot, or if they would replace files of others.
    """
    for name in (REPORT, PICTURE):
        check_output(Path(folder, name), flag="--check-output", may_replace=_is_own)


def _is_own(path: Path) -> bool:
    with contextlib.suppress(ValueError, OSError):
        found = read_json(path.with_name(REPORT), what="report")
        return isinstance(found, dict) and found.get("written_by") == WRITTEN_BY
    return False


def check_training(args: argparse.Namespace, cfg: CfgNode, trainer: type[Trainer]) -> None:
    """Build a training, load its weights, take its first steps, and report.

    Every process of a run executes this function. Nothing in OUTPUT_DIR is read or written, except
    for a checkpoint to resume from and the report.

    Args:
        args: The parsed command line.
        cfg: The finished config.
        trainer: The class that would train.

    Raises:
        SystemExit: With the exit code with which the training would end, if it would; with code 2
            if its checkpoints do not fit the disk.
    """
    folder = Path(args.check_output or Path(cfg.OUTPUT_DIR, FOLDER))
    set_up_logger(None, *LOGGERS)
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        with user_errors():
            check_files(folder)
            training, weights = build_training(args, cfg, trainer, scratch)
        record = Record(BATCHES)
        start = training.start_iter
        with _stops_reported(), _recorded(training, record):
            steps = measuring.take_steps(training, BATCHES) if start < training.max_iter else None
            found = build_findings(cfg, training, steps) | {"weights": weights}
    if not comm.is_main_process():
        return
    with user_errors():
        if record.batches:
            picture = page(_title(args, start), record.batches, record.points, build_shown(cfg))
            save_picture(folder / PICTURE, picture)
            found["picture"] = str(folder / PICTURE)
        write_text(folder / REPORT, json.dumps(found, indent=1) + "\n")
        for line in lines_of(found):
            print_result(line)
        print_result(f"{'report':10}{folder / REPORT}")
    if start >= training.max_iter:
        _end(f"nothing is left to train: {weights['source']} is of iteration {start}")
    disk = found["disk"]
    if disk["needed_bytes"] > disk["free_bytes"]:
        _end(
            f"the {disk['checkpoints']} checkpoints of SOLVER.CHECKPOINT_PERIOD "
            f"{cfg.SOLVER.CHECKPOINT_PERIOD} need "
            f"{measuring.format_bytes(disk['needed_bytes'])}, but OUTPUT_DIR has "
            f"{measuring.format_bytes(disk['free_bytes'])}: raise the period, or choose another "
            "OUTPUT_DIR"
        )


def _title(args: argparse.Namespace, start: int) -> str:
    when = f", after iteration {start}" if start else ""
    return f"{Path(args.config_file).name}: the first batches as the model reads them{when}"


def _end(reason: str) -> None:
    say_error(reason)
    raise SystemExit(USER_ERROR)


@contextlib.contextmanager
def _stops_reported() -> Iterator[None]:
    """Print the reason for which the training would end, and exit with its code."""
    try:
        yield
    except TrainingStop as stop:
        if comm.is_main_process() or not stop.together:
            say_error(str(stop.__cause__ or stop.reason).splitlines()[0])
        raise SystemExit(stop.exit_code) from stop


@contextlib.contextmanager
def _recorded(training: Trainer, record: Record) -> Iterator[None]:
    """Record the batches and the points of a training within a block; then end its workers."""
    step = training._trainer
    describe_transforms(training.data_loader)
    step._data_loader_iter_obj = record.passing(iter(training.data_loader))
    try:
        with record.of_points(training.checkpointer.model):
            yield
    finally:
        step._data_loader_iter_obj.close()


def build_training(
    args: argparse.Namespace, cfg: CfgNode, trainer: type[Trainer], scratch: str
) -> tuple[Trainer, dict[str, Any]]:
    """Build the trainer, with another output folder and no trackers, and load its weights.

    Returns:
        The trainer, and what was loaded.
    """
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    own = cfg.clone()
    own.defrost()
    own.OUTPUT_DIR, own.LOGGING.WANDB, own.LOGGING.MLFLOW = scratch, False, False
    own.freeze()
    training = trainer(
        own,
        allow_unsafe_checkpoint=args.allow_unsafe_checkpoint,
        ignore_class_names=args.ignore_class_names,
    )
    checkpointer = training.checkpointer
    checkpointer.save_dir = cfg.OUTPUT_DIR
    training.resume_or_load(resume=args.resume)
    checkpointer.save_dir = scratch
    in_model = training.checkpointer.model.state_dict()
    loaded = in_model.keys() & {*checkpointer.keys_in_file}
    return training, {
        "source": checkpointer.source if checkpointer.keys_in_file else "",
        "loaded": len(loaded),
        "total": len(in_model),
        "initial": _by_part(in_model.keys() - loaded),
        "unused": _by_part({*checkpointer.keys_in_file} - loaded),
    }


def _by_part(names: set[str]) -> dict[str, int]:
    return dict(sorted(Counter(map(measuring.part_of, names)).items()))


def build_findings(
    cfg: CfgNode, training: Trainer, steps: measuring.Steps | None
) -> dict[str, Any]:
    """Collect the findings, as the report has them; sizes in bytes, times in seconds."""
    loader = training.data_loader
    start, end = training.start_iter, training.max_iter
    images = len(loader.records) if isinstance(loader, TrainLoader) else None  # type: ignore[arg-type]
    each = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION_STEPS
    weights = measuring.bytes_of(training.checkpointer.model.state_dict())
    size = weights + measuring.bytes_of(training.state_dict())
    checkpoints = measuring.number_of_checkpoints(start, end, cfg.SOLVER.CHECKPOINT_PERIOD)
    more = [training.average is not None, bool(cfg.TEST.BEST_METRIC)]  # weights saved alone
    return {
        "written_by": WRITTEN_BY,
        "parameters": measuring.count_parameters(training.checkpointer.model),
        "data": {
            "sets": list(cfg.DATASETS.TRAIN),
            "images": images,
            "images_per_process": cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
            "processes": comm.get_world_size(),
            "accumulation_steps": cfg.SOLVER.ACCUMULATION_STEPS,
            "images_per_iteration": each,
        },
        "length": {
            "start": start,
            "iterations": end,
            "epochs": end * each / images if images else None,
        },
        "learning_rate": build_schedule(cfg, training),
        "losses": steps.losses if steps else [],
        "memory": build_memory(training, steps) if steps else {},
        "time": build_times(cfg, training, steps) if steps else {},
        "disk": {
            "checkpoints": checkpoints,
            "checkpoint_bytes": size,
            "needed_bytes": checkpoints * size + sum(more) * weights,
            "free_bytes": measuring.free_bytes(cfg.OUTPUT_DIR),
        },
        "picture": "",
    }


def build_memory(training: Trainer, steps: measuring.Steps) -> dict[str, Any]:
    """Return the memory of the steps, in bytes."""
    device = next(training.model.parameters()).device
    on_gpu = device.type == "cuda"
    whole = torch.cuda.get_device_properties(device).total_memory if on_gpu else None
    return {
        "device": str(device),
        "peak_bytes": steps.peak_bytes,
        "reserved_bytes": steps.reserved_bytes,
        "device_bytes": whole,
    }


def build_schedule(cfg: CfgNode, training: Trainer) -> dict[str, Any]:
    """Return the learning rate at the moments where the schedule may change its course."""
    solver = cfg.SOLVER
    last = max(training.max_iter - 1, 0)
    moments = {0, solver.WARMUP_ITERS, *solver.STEPS, last // 2, last}
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "lr": group.get("initial_lr", group["lr"])}
        for group in training.optimizer.param_groups
    ]
    optimizer = torch.optim.SGD(groups, lr=solver.BASE_LR)
    scheduler = training.build_lr_scheduler(cfg, optimizer)
    wanted = sorted(x for x in moments if 0 <= x <= last)
    rates = measuring.learning_rates(optimizer, scheduler, wanted)
    return {
        "schedule": solver.LR_SCHEDULER_NAME,
        "moments": [{"iteration": when, "rate": rate} for when, rate in rates],
    }


def build_times(cfg: CfgNode, training: Trainer, steps: measuring.Steps) -> dict[str, Any]:
    """Estimate the time of the training from its first steps, and from some test images."""
    end, start, period = training.max_iter, training.start_iter, cfg.TEST.EVAL_PERIOD
    evaluations, seconds = 0, 0.0
    if cfg.DATASETS.TEST:
        evaluations = 1
        if period > 0:  # Detectron2 evaluates once more after the last iteration
            evaluations = (end - 1) // period - start // period + 1
        if comm.is_main_process():
            for name in cfg.DATASETS.TEST:
                loader = training.build_test_loader(training.cfg, name)
                seconds += measuring.seconds_of_inference(training.checkpointer.model, loader)
        if training.average is not None:  # whose weights are evaluated, too
            seconds *= 2
    return {
        "steps": len(steps.seconds),
        "step_seconds": steps.seconds_per_step,
        "waiting_seconds": steps.waiting_per_step,
        "evaluations": evaluations,
        "evaluation_seconds": seconds,
        "total_seconds": (end - start) * steps.seconds_per_step + evaluations * seconds,
    }


def build_shown(cfg: CfgNode) -> Shown:
    """Return how the pictures of a training are shown."""
    head = cfg.MODEL.SEM_SEG_HEAD
    ignore = head.IGNORE_VALUE if "sem_seg" in model_outputs(cfg) else 255
    return Shown(pixel_format(cfg), MetadataCatalog.get(cfg.DATASETS.TRAIN[0]), ignore)
