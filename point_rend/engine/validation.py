"""Losses on the test sets, computed in a way that their curves compare.

Each image is a batch of its own, and the random numbers, such as those of the training points and
of the sampled proposals, follow from its position in the set. So the losses of an image depend on
the weights alone: not on the iteration, the number of processes or that of the workers. A loss is
the mean over the images, each with the same weight.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import log_every_n_seconds
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from point_rend.data.loader.transport import to_device
from point_rend.data.loader.validation import ValidationLoader
from point_rend.engine.train_step import CheckedTrainer
from point_rend.evaluation.metric_names import TOTAL_LOSS, VALIDATION
from point_rend.utils.seeding import random_numbers_of, seed_all

SEED = 0  # the same for every training
LOG_SECONDS = 5.0

logger = logging.getLogger(__name__)
Losses = dict[str, float]


def build_validation(
    cfg: CfgNode, step: CheckedTrainer, build_loader: Callable[[str], ValidationLoader]
) -> "Validation | None":
    """Build the validation of a training, in its precision, if TEST.VALIDATION_LOSS is on.

    Args:
        cfg: The config of the run.
        step: The training step, which has the model.
        build_loader: Builds the loader of a test set.
    """
    if not cfg.TEST.VALIDATION_LOSS:
        return None
    return Validation(step.model, cfg.DATASETS.TEST, build_loader, precision=step.precision)


class Validation:
    """Computes the losses of a model on data sets.

    Args:
        model: Maps a batch to losses by name in training mode; possibly wrapped in
            :class:`DistributedDataParallel`.
        names: Registered names of the data sets.
        build_loader: Builds the loader of one of them, when it is needed first.
        precision: Data type of autocast; float32 disables it.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        build_loader: Callable[[str], ValidationLoader],
        *,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.names = tuple(names)
        self.precision = precision
        self._build_loader = build_loader
        self._loaders: dict[str, ValidationLoader] = {}

    def add_to(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return the results of an evaluation together with the losses; all processes call this.

        Args:
            results: As of Detectron2's trainer: by task, with several data sets also by their name.

        Returns:
            The results with the losses below "validation", with several data sets also by their
            name; as they are in all processes but the first.

        Raises:
            UnusableDataError: If an image cannot be used.
        """
        losses: dict[str, Any] = {name: self.losses_on(name) for name in self.names}
        if not comm.is_main_process():
            return results
        own = losses if len(losses) > 1 else next(iter(losses.values()))
        return {**results, VALIDATION: {**results.get(VALIDATION, {}), **own}}

    def losses_on(self, name: str) -> Losses:
        """Compute the losses on a data set; all processes call this.

        Args:
            name: Its registered name.

        Returns:
            The mean of each loss over the images, and that of their sum as "total_loss"; NaN if the
            model has diverged. Empty in all processes but the first.

        Raises:
            UnusableDataError: If an image cannot be used.
        """
        if name not in self._loaders:
            self._loaders[name] = self._build_loader(name)
        start = time.monotonic()
        own = self._losses_by_image(self._loaders[name], name)
        gathered = comm.gather(own)
        if not comm.is_main_process():
            return {}
        losses = mean_losses(row for rows in gathered for row in rows)
        logger.info(
            "Losses on %s, mean over %d images in %.0f s: %s",
            name,
            sum(map(len, gathered)),
            time.monotonic() - start,
            ", ".join(f"{key} {value:.4g}" for key, value in losses.items()),
        )
        return losses

    def _losses_by_image(self, loader: ValidationLoader, name: str) -> list[Losses]:
        device = next(self.model.parameters()).device
        devices = [device] if device.type == "cuda" else []
        losses = []
        with (
            torch.random.fork_rng(devices),
            random_numbers_of(SEED),
            computing_losses(self.model),
            torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32),
            torch.no_grad(),
            EventStorage(),  # the heads write metrics of their own
        ):
            for done, (number, record) in enumerate(loader):
                seed_all(SEED, number)
                losses.append(self._losses_of(to_device([record], device)))
                log_every_n_seconds(
                    logging.INFO, f"Losses on {name}: {done + 1}/{len(loader)} images", LOG_SECONDS
                )
        return losses

    def _losses_of(self, batch: list[dict[str, Any]]) -> Losses:
        try:
            losses: dict[str, Tensor] = self.model(batch)
        except FloatingPointError:  # Detectron2's proposals are not finite
            return {TOTAL_LOSS: math.nan}
        values = torch.stack([loss.detach().double().cpu() for loss in losses.values()]).tolist()
        return dict(zip(losses, values, strict=True)) | {TOTAL_LOSS: exact_sum(values)}


def mean_losses(by_image: Iterable[Mapping[str, float]]) -> Losses:
    """Return the mean of each loss over images, with the total last.

    The sum is exact, so the order of the images makes no difference. A loss that an image lacks
    counts as 0, as in the sum that a training minimizes.

    Args:
        by_image: Losses of each image by name.
    """
    rows = list(by_image)
    names = dict.fromkeys(name for row in rows for name in row if name != TOTAL_LOSS)
    return {
        name: exact_sum([row.get(name, 0.0) for row in rows]) / len(rows)
        for name in [*names, TOTAL_LOSS]
    }


def exact_sum(values: Sequence[float]) -> float:
    """Return the sum without rounding in between; NaN if a value is infinite or NaN."""
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


@contextmanager
def computing_losses(model: nn.Module) -> Iterator[None]:
    """Let a model return losses without changing it, and restore its modes at the end.

    The heads are in training mode. The backbone and all layers that normalize, drop or have no
    parts are in evaluation mode, so that batch normalization uses its running statistics and
    keeps them.

    Args:
        model: A model of Detectron2.
    """
    modules = list(model.modules())
    # Some heads keep running averages in attributes; some draw pictures, now and then.
    attributes = [dict(vars(module)) for module in modules]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        model.train()
        for module in modules:
            # Not `eval`: the parts of a layer are judged for themselves, such as heads in a list.
            module.training = computes_losses(module)
            if "vis_period" in vars(module):
                vars(module)["vis_period"] = 0
        backbone = getattr(model, "backbone", None)
        if isinstance(backbone, nn.Module):
            backbone.eval()
        yield
    finally:
        for module, former in zip(modules, attributes, strict=True):
            own = vars(module)
            own.update(former)
            for name in own.keys() - former.keys():
                del own[name]
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.copy_(value)


def computes_losses(module: nn.Module) -> bool:
    """Return whether a module may compute losses: a head or a model, in contrast to a layer."""
    is_layer = type(module).__module__.startswith(("torch.", "detectron2.layers."))
    return not is_layer and next(module.children(), None) is not None
