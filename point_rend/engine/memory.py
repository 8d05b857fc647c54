"""Memory of the device that does not suffice: one line that names what to lower."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode

from point_rend.config.tasks import model_outputs
from point_rend.utils.errors import USER_ERROR, say_error

logger = logging.getLogger(__name__)


def build_memory_error(cfg: CfgNode, when: str, *, training: bool) -> str:
    """Return the reason for the end of a run, and what to lower.

    Args:
        cfg: The config of the run.
        when: "in iteration 7", for example.
        training: Whether it happened in a training step.
    """
    on_instances = "instances" in model_outputs(cfg)
    if training:
        size = "INPUT.CROP.SIZE" if cfg.INPUT.CROP.ENABLED else "INPUT.MIN_SIZE_TRAIN"
        size = "INPUT.LSJ.SIZE" if cfg.INPUT.LSJ.ENABLED else size
        batch = "SOLVER.IMS_PER_BATCH (for which SOLVER.ACCUMULATION_STEPS makes up)"
        keys = [batch, size]
        keys += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] if on_instances else []
        mixed_precision, has_it = "SOLVER.AMP.ENABLED", cfg.SOLVER.AMP.ENABLED
    else:
        keys = ["INPUT.MIN_SIZE_TEST"]
        keys += ["TEST.DETECTIONS_PER_IMAGE"] if on_instances else []
        mixed_precision, has_it = "TEST.MIXED_PRECISION", cfg.TEST.MIXED_PRECISION
    *others, last = keys
    advice = f"lower {', '.join(others)} or {last}" if others else f"lower {last}"
    if not has_it:
        advice += f", or set {mixed_precision} True"
    return f"MODEL.DEVICE {cfg.MODEL.DEVICE} ran out of memory {when}: {advice}"


@contextlib.contextmanager
def out_of_memory_reported(message: str) -> Iterator[None]:
    """Report memory that does not suffice in one line; the log has the details.

    Raises:
        SystemExit: With code 2.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        logger.error("%s", error)
        say_error(message)
        raise SystemExit(USER_ERROR) from error
