"""Checks of the machine, the weights and the output folder before a run."""

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode

from point_rend.checkpoint import timm_weights, zoo  # noqa: F401  (resolve timm:// and zoo://)
from point_rend.checkpoint.checkpointer import holds_checkpoint
from point_rend.checkpoint.sealed_file import without_query
from point_rend.config.defaults import value_of
from point_rend.evaluation.metric_names import build_metric_names
from point_rend.utils.downloads import is_url, resolve
from point_rend.utils.errors import did_you_mean
from point_rend.utils.reading import check_regular_file

PROCESSES_PER_CORE = 8  # beyond this, a number of processes is taken for a mistake
METRIC_SWITCHES = ("TEST.BOUNDARY_METRICS", "TEST.VALIDATION_LOSS")
GPU_NORMS = ("SyncBN", "nnSyncBN")


def check_machine(
    cfg: CfgNode, num_processes: int, *, launched: bool = False, training: bool = False
) -> None:
    """Refuse a device that does not exist, or not for every process, or that cannot train.

    Args:
        cfg: The config of the run.
        num_processes, launched: As of :func:`check_device`.
        training: Whether the run trains.

    Raises:
        ValueError: If MODEL.DEVICE or the number of processes does not fit this machine or the run.
    """
    check_device(cfg.MODEL.DEVICE, num_processes=num_processes, launched=launched)
    if training and torch.device(cfg.MODEL.DEVICE).type == "mps":
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, which has no float64, but the labels of a "
            "training need it: expected cpu or cuda"
        )


def check_device(
    device: str, *, option: str = "MODEL.DEVICE", num_processes: int = 1, launched: bool = False
) -> None:
    """Refuse a device that torch cannot use on this machine.

    Args:
        device: cpu, cuda, cuda:N, or another device of torch, such as mps.
        option: The option that names it.
        num_processes: Number of processes on this machine, --num-gpus.
        launched: Whether a launcher has started several processes; it decides which GPUs each sees.

    Raises:
        ValueError: If there is no such device, or not one for every process.
    """
    try:
        kind, number = torch.device(device).type, torch.device(device).index
    except RuntimeError as error:
        raise ValueError(f"{option} is {device!r}: expected cpu, cuda or cuda:N") from error
    if kind == "cpu":
        most = PROCESSES_PER_CORE * (os.cpu_count() or 1)
        if num_processes > most:
            raise ValueError(
                f"--num-gpus is {num_processes}: expected at most {most} processes without a GPU "
                f"on this machine, {PROCESSES_PER_CORE} for each of its cores"
            )
        return
    available = number_of_devices(kind)
    name = f"{kind.upper()} device"
    if not available:
        raise ValueError(
            f"{option} is {device}, but there is no {name} on this machine; to run on the CPU "
            f"pass: {option} cpu"
        )
    here = f"this machine has {available} {name}{'s' if available > 1 else ''}"
    if number is not None and number >= available:
        last = f" to {kind}:{available - 1}" if available > 1 else ""
        raise ValueError(f"{option} is {device}, but {here}: expected {kind}:0{last}")
    if num_processes < 2 and not launched:
        return
    if kind != "cuda":
        raise ValueError(
            f"{option} is {device}, which only one process can use: several processes run on CUDA "
            "devices or on the CPU"
        )
    if number is not None:
        raise ValueError(
            f"{option} is {device}, but the run has several processes: expected {option} cuda, "
            "with which each process uses a GPU of its own"
        )
    if num_processes > available:
        raise ValueError(f"--num-gpus is {num_processes}, but {here}")


def number_of_devices(kind: str) -> int:
    """Return the number of devices of a kind that torch can use on this machine."""
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or accelerator.type != kind:
        return 0
    return torch.accelerator.device_count()


def check_weights(cfg: CfgNode, args: argparse.Namespace) -> bool:
    """Refuse weights that do not exist.

    Returns:
        Whether the model starts from weights or resumes from a checkpoint.

    Raises:
        FileNotFoundError: If MODEL.WEIGHTS names a file or a published model that does not exist.
        ValueError: If it is a URL that cannot be used, or a folder, a pipe or a device.
    """
    if args.resume and holds_checkpoint(cfg.OUTPUT_DIR):
        return True
    weights = cfg.MODEL.WEIGHTS
    if is_url(weights):
        try:
            resolve(without_query(weights))
        except ValueError as error:
            raise ValueError(f"MODEL.WEIGHTS: {error}") from error
    elif weights:
        path = without_query(weights)
        if not os.path.exists(path):
            raise FileNotFoundError(f"MODEL.WEIGHTS: there is no checkpoint {weights}")
        check_regular_file(path, what="MODEL.WEIGHTS")
    return bool(weights)


def check_distribution(cfg: CfgNode, num_processes: int) -> None:
    """Refuse a training that cannot be distributed over its processes.

    Raises:
        ValueError: If the batch cannot be divided evenly, or if the model has SyncBN layers and
            runs on CPUs.
    """
    images, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if images % (reference or num_processes):
        source = "SOLVER.REFERENCE_WORLD_SIZE" if reference else "the number of processes"
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {images}: expected a multiple of {source}, which is "
            f"{reference or num_processes}"
        )
    synchronized = [key for key, norm in norm_keys(cfg.MODEL, "MODEL") if norm in GPU_NORMS]
    if synchronized and num_processes > 1 and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError(
            f"SyncBN works on GPUs only, but MODEL.DEVICE is {cfg.MODEL.DEVICE}: set "
            f"{', '.join(synchronized)} to naiveSyncBN, which does the same on any device"
        )


def check_best_metric(cfg: CfgNode) -> None:
    """Refuse a TEST.BEST_METRIC that no evaluation of a training gives, as :func:`check_metric`."""
    if cfg.TEST.BEST_METRIC:
        check_metric(cfg, cfg.TEST.BEST_METRIC, "TEST.BEST_METRIC")


def check_metric(cfg: CfgNode, metric: str, setting: str) -> None:
    """Refuse a metric that no evaluation of a training gives.

    Args:
        cfg: The finished config of a training with the evaluators of this package.
        metric: Its name in metrics.json.
        setting: Config key or flag that names it, for the message.

    Raises:
        ValueError: If it is not among the metrics; the message names what to set, or similar ones.
    """
    names = build_metric_names(cfg)
    if names.include(metric):
        return
    if lacking := _build_keys_that_give(metric, cfg):
        advice = f"set {' and '.join(f'{key} True' for key in lacking)}"
    else:
        of_sets = [x for x in names.overall if x.endswith(f"/{metric}")]
        nearest = did_you_mean(metric, [*names.overall, *names.by_class])
        if of_sets and len(cfg.DATASETS.TEST) > 1:
            nearest = f"; did you mean {' or '.join(of_sets)}?"
        advice = f"expected one of {', '.join(names.overall)}{nearest}"
    raise ValueError(
        f"{setting} is {metric!r:.100}, which the evaluations of this config do not give: {advice}"
    )


def _build_keys_that_give(metric: str, cfg: CfgNode) -> list[str]:
    """Return the switches that are off and would give a metric together."""
    off = [key for key in METRIC_SWITCHES if not value_of(cfg, key)]
    names = {}
    for key in ("", *off):
        switched = cfg.clone()
        switched.defrost()
        switched.merge_from_list([x for on in off if on != key for x in (on, True)])
        names[key] = build_metric_names(switched)
    return [key for key in off if names[""].include(metric) and not names[key].include(metric)]


def norm_keys(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield all NORM keys below a node of the config, with their values."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from norm_keys(value, f"{path}.{name}")
        elif name == "NORM":
            yield f"{path}.{name}", value
