"""Checks of the machine, the weights and the output folder before a run."""

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode

from point_rend.checkpoint import zoo
from point_rend.checkpoint.sealed_file import without_query
from point_rend.utils.files import check_writable

GPU_NORMS = ("SyncBN", "nnSyncBN")


def check_machine(cfg: CfgNode, num_gpus: int) -> None:
    """Refuse a device that does not exist.

    Raises:
        ValueError: If MODEL.DEVICE or the number of GPUs does not fit this machine.
    """
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: expected cpu, cuda or cuda:N"
        ) from error
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    available = torch.cuda.device_count()
    if on_gpu and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but there is no CUDA device on this machine; "
            "to run on the CPU pass: MODEL.DEVICE cpu"
        )
    if on_gpu and num_gpus > available:
        raise ValueError(f"--num-gpus is {num_gpus}, but this machine has {available} CUDA devices")


def check_weights(cfg: CfgNode, args: argparse.Namespace) -> bool:
    """Refuse weights that do not exist.

    Returns:
        Whether the model starts from weights or resumes from a checkpoint.

    Raises:
        FileNotFoundError: If MODEL.WEIGHTS names a file or a published model that does not exist.
    """
    if args.resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        return True
    weights = cfg.MODEL.WEIGHTS
    if weights.startswith(zoo.PREFIX):
        zoo.published_url(without_query(weights))
    if weights and "://" not in weights and not os.path.isfile(without_query(weights)):
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no checkpoint {weights}")
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


def norm_keys(node: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield all NORM keys below a node of the config, with their values."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from norm_keys(value, f"{path}.{name}")
        elif name == "NORM":
            yield f"{path}.{name}", value


def check_output_dir(output_dir: str) -> None:
    """Create the output directory and make sure that it is writable.

    Raises:
        ValueError: If it is not.
    """
    try:
        os.makedirs(output_dir, exist_ok=True)
        check_writable(output_dir)
    except OSError as error:
        raise ValueError(f"OUTPUT_DIR {output_dir!r} cannot be written: {error}") from error
