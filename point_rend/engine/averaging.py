"""The exponential moving average of a model's weights, known as EMA."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from point_rend.checkpoint.checkpointer import AVERAGED, FINAL, SafeDetectionCheckpointer
from point_rend.checkpoint.finite import check_finite
from point_rend.config.checks import AVERAGED_RESULTS

logger = logging.getLogger(__name__)

Place = tuple[str, nn.Module, str]  # of a tensor: name in the state of the model, module, attribute


def build_average(cfg: CfgNode, model: nn.Module) -> "WeightAverage | None":
    """Build the average that MODEL_EMA asks for, if it does."""
    ema = cfg.MODEL_EMA
    return WeightAverage(model, ema.DECAY) if ema.ENABLED else None


def build_averaged_cfg(cfg: CfgNode) -> CfgNode:
    """Return the config of an evaluation of averaged weights, whose predictions do not mix."""
    averaged = cfg.clone()
    averaged.defrost()
    averaged.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, AVERAGED_RESULTS)
    averaged.freeze()
    return averaged


class WeightAverage:
    """The exponential moving average of the weights of a model in training.

    Update t, counted from 1, sets average = d · average + (1 - d) · weights with
    d = min(decay, t / (9 + t)). The limit is the warm start of TensorFlow's
    ``ExponentialMovingAverage``, there min(decay, (1 + n) / (10 + n)) after n updates: the first
    weights, which are far from good, are soon forgotten.

    Parameters and floating-point buffers, such as the running statistics of batch normalization,
    are averaged. Other buffers, such as the number of batches seen, are those of the model. The
    model is never changed outside of :meth:`applied`.

    Args:
        model: The model; a wrapper for several processes is looked through.
        decay: Share of the average that an update keeps, 0 to below 1.

    Attributes:
        updates: Number of updates.

    Raises:
        ValueError: If the decay is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of averaged weights is {decay}, expected 0 to below 1")
        self.decay = decay
        self.updates = 0
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        # Hooks such as PreciseBN replace buffers, so tensors are looked up each time.
        places = list(_places(inner))
        self._places = [place for place in places if _is_averaged(*place[1:])]
        self._others = [place for place in places if not _is_averaged(*place[1:])]
        self._average = [x.clone() for x in self._weights()]
        # All that the model had before the averaged weights, while it has them.
        self._raw: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the weights that the model has now."""
        self.updates = 0
        _copy(self._weights(), self._average)

    @torch.no_grad()
    def update(self) -> None:
        """Average the weights of the model in, after an update of the optimizer."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        torch._foreach_lerp_(self._average, self._weights(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights, and afterwards its own again, bit for bit.

        Raises:
            RuntimeError: If the model has them already.
        """
        if self._raw is not None:
            raise RuntimeError("the averaged weights are applied already")
        try:
            self._apply()
            yield
        finally:
            self.restore()

    @torch.no_grad()
    def _apply(self) -> None:
        # An exception may be raised between any two lines: a signal can end an evaluation.
        self._raw = (
            [x.clone() for x in self._weights()],
            [x.clone() for x in _tensors(self._others)],
        )
        _copy(self._average, self._weights())

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its own weights if it still has the averaged ones.

        :meth:`applied` does so at its end, unless a signal interrupts just that. So this is called
        before a checkpoint is saved after an interruption.
        """
        if self._raw is not None:
            weights, others = self._raw
            _copy(weights, self._weights())
            _copy(others, _tensors(self._others))
            self._raw = None

    @torch.no_grad()
    def take_buffers(self) -> None:
        """Replace averaged buffers by those that the model has now.

        Called within :meth:`applied`, after statistics were computed with the averaged weights.
        """
        pairs = zip(self._places, self._average, self._weights(), strict=True)
        for (_, module, name), average, value in pairs:
            if name in module._buffers:
                average.copy_(value)

    def _weights(self) -> list[Tensor]:
        return _tensors(self._places)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates, and the averages by their names in the model's state."""
        names = [name for name, _, _ in self._places]
        return {"updates": self.updates, "weights": dict(zip(names, self._average, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: If it is not that of this model.
        """
        updates, weights = state.get("updates"), state.get("weights")
        if type(updates) is not int or updates < 0 or not isinstance(weights, Mapping):
            raise ValueError("its averaged weights have no number of updates or no weights")
        expected = {name: x.shape for (name, _, _), x in self._named()}
        unlike = [
            name
            for name, shape in expected.items()
            if not isinstance(weights.get(name), Tensor) or weights[name].shape != shape
        ]
        unlike += sorted(map(str, weights.keys() - expected.keys()))
        if unlike:
            raise ValueError(
                f"its averaged weights are not those of this model: {len(unlike)} differ or are "
                f"missing, the first is {unlike[0]:.80}"
            )
        check_finite(dict(weights), of="the averaged weights", floating=expected)
        self.updates = updates
        for (name, _, _), average in self._named():
            average.copy_(weights[name])

    def _named(self) -> Iterator[tuple[Place, Tensor]]:
        return zip(self._places, self._average, strict=True)


def load_average(
    average: WeightAverage | None, state: Mapping[str, Any] | None, source: str
) -> None:
    """Restore the average of a training, with a warning if only one of both has one.

    Args:
        average: The average, if the training has one; without a state it stays as it is.
        state: Its state in a checkpoint, if there is one.
        source: The checkpoint, for the warning.

    Raises:
        ValueError: As :meth:`WeightAverage.load_state_dict`.
    """
    if average is not None and state is not None:
        average.load_state_dict(state)
    elif average is not None:
        logger.warning("%s has no averaged weights (MODEL_EMA): they begin as its weights", source)
    elif state is not None:
        logger.warning(
            "%s has averaged weights, which are dropped: MODEL_EMA.ENABLED is False", source
        )


class AverageWeights(HookBase):
    """Averages the weights after each update.

    Args:
        average: The average.
    """

    def __init__(self, average: WeightAverage) -> None:
        self._average = average

    def after_step(self) -> None:
        """Update the average."""
        self._average.update()


class TrainingCheckpointer(SafeDetectionCheckpointer):
    """Saves the averaged weights, if there are any, before the checkpoint of the last iteration.

    So a training that has its last checkpoint has them, too.

    Attributes:
        average: The average of the model's weights.
    """

    average: WeightAverage | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Save the model and the checkpointables, as :class:`SafeDetectionCheckpointer` does."""
        if name == FINAL and self.average is not None:
            with self.average.applied():
                self.save_weights(AVERAGED)
        super().save(name, **kwargs)


def _places(model: nn.Module) -> Iterator[Place]:
    """Yield the places of all parameters and buffers, each tensor once."""
    seen = set()
    for path, module in model.named_modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None and id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{name}".lstrip("."), module, name


def _is_averaged(module: nn.Module, name: str) -> bool:
    """Return whether a tensor has a floating-point type and is part of the model's state."""
    is_saved = name not in module._non_persistent_buffers_set
    return is_saved and getattr(module, name).is_floating_point()


def _tensors(places: Iterable[Place]) -> list[Tensor]:
    return [getattr(module, name).detach() for _, module, name in places]


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)
