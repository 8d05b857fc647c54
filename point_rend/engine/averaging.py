"""The exponential moving average of a model's weights, known as EMA."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from point_rend.checkpoint.finite import check_finite


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
        self._places = list(_places(inner))
        self._average = [x.clone() for x in self._weights()]
        self._raw: list[Tensor] | None = None  # the model's own weights, while it has others

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
        self._raw = [x.clone() for x in self._weights()]
        _copy(self._average, self._weights())

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its own weights if it still has the averaged ones.

        :meth:`applied` does so at its end, unless a signal interrupts just that. So this is called
        before a checkpoint is saved after an interruption.
        """
        if self._raw is not None:
            _copy(self._raw, self._weights())
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
        return [getattr(module, name).detach() for _, module, name in self._places]

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

    def _named(self) -> Iterator[tuple[tuple[str, nn.Module, str], Tensor]]:
        return zip(self._places, self._average, strict=True)


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the floating-point tensors of a model's state: name, module, attribute; each once."""
    seen = set()
    for path, module in model.named_modules():
        buffers = module._buffers.keys() - module._non_persistent_buffers_set
        for name in [*module._parameters, *(x for x in module._buffers if x in buffers)]:
            value = getattr(module, name)
            if value is not None and value.is_floating_point() and id(value) not in seen:
                seen.add(id(value))
                yield f"{path}.{name}".lstrip("."), module, name


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)
