"""Trial construction of a model without memory: what the table of values cannot foresee."""

import contextlib
import logging
import math
import os
import resource
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

CONSTRUCTORS = {"point_rend", "detectron2", "fvcore", "torch", "torchvision"}
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
TRAINING_SHARES = {"SGD": 3, "ADAMW": 4}  # weights, gradients, and one or two momenta
GIB = 2**30


def check_model(cfg: CfgNode, *, training: bool) -> None:
    """Refuse a config from which no model can be built, or none that fits into the memory.

    The model is built on a device that stores nothing. Parts from other packages, which may not
    support that, are not judged.

    Args:
        cfg: A complete config.
        training: Whether the model is about to be trained.

    Raises:
        ValueError: If the model cannot be built or is too large.
    """
    trial = cfg.clone()
    trial.defrost()
    trial.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"), _silence():
            model = build_model(trial)
    except Exception as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames]
        if isinstance(error, ValueError) and packages[-1] not in ("detectron2", "torch"):
            raise
        if not CONSTRUCTORS.issuperset(packages) or "meta" in str(error):
            return
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = str(error) or last.line
        raise ValueError(
            f"no model can be built from this config: {type(error).__name__}: {reason} "
            f"({os.path.basename(last.filename)}, line {last.lineno})"
        ) from error
    size = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    on_cpu = str(cfg.MODEL.DEVICE) == "cpu"
    needed, available = size, memory_limit()
    if training and on_cpu:
        needed *= TRAINING_SHARES[cfg.SOLVER.OPTIMIZER]
    if needed > available:
        raise ValueError(
            f"the model of this config takes {needed / GIB:.1f} GiB"
            f"{' to train' if needed > size else ''}, but this machine has {available / GIB:.1f} "
            "GiB: lower its widths or its numbers of layers and classes"
        )


def memory_limit() -> float:
    """Return the bytes that this process may use: those of the machine, or a limit below."""
    limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for name in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(name)
        limits.append(math.inf if soft == resource.RLIM_INFINITY else soft)
    with contextlib.suppress(OSError, ValueError):  # "max" stands for no limit
        limits.append(float(int(CONTAINER_LIMIT.read_text())))
    return min(limits)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Leave the messages to the construction of the model itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
