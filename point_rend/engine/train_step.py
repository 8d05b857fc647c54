"""The training step: mixed precision on any device, and no update from non-finite values."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from point_rend.data.loader.transport import to_device
from point_rend.utils import progress

NUM_NAMED_PARAMETERS = 3  # named in the report of a non-finite gradient


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is infinite or NaN; the step has not changed any weight."""


def build_train_step(
    cfg: CfgNode, model: nn.Module, data_loader: Iterable[Any], optimizer: torch.optim.Optimizer
) -> "CheckedTrainer":
    """Build the training step with the precision of ``SOLVER.AMP``."""
    amp = cfg.SOLVER.AMP
    precision = getattr(torch, amp.DTYPE) if amp.ENABLED else torch.float32
    return CheckedTrainer(model, data_loader, optimizer, precision=precision)


class CheckedTrainer(SimpleTrainer):
    """Detectron2's training step, on any device, in any precision, with checks for finite values.

    Losses and gradients are checked before the optimizer uses them, on all ranks together, so that
    all ranks stop in the same step. The weights stay unchanged, and so do the floating-point
    buffers, such as the running statistics of batch normalization. The check costs one norm over
    all gradients and the one synchronization with the device that logging needs anyway.

    In float16 the loss is scaled. A gradient that overflows is not an error as long as the scale
    can shrink: the step is skipped and the scale halved.

    Args:
        model: Maps a batch to losses by name; on one device, possibly wrapped in
            :class:`DistributedDataParallel`.
        data_loader: Yields batches.
        optimizer: Optimizer of the model's parameters.
        precision: Data type of autocast; float32 disables it.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.precision = precision
        self.device = next(model.parameters()).device
        self.grad_scaler = torch.amp.GradScaler(
            self.device.type, enabled=precision == torch.float16
        )
        # Detectron2 draws the inputs of its models from the CPU.
        self.draws_inputs = getattr(_without_ddp(model), "vis_period", 0) > 0
        self._parameters = [x for x in model.parameters() if x.requires_grad]
        self._buffer_names = [
            (module, name)
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        self._saved_buffers = [x.clone() for x in self._buffers()]

    def run_step(self) -> None:
        """Take one step.

        Raises:
            NonFiniteError: On all ranks, if a loss or a gradient of any rank is not finite.
        """
        progress.note(progress.COMPUTING)
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if not self.draws_inputs:
            batch = to_device(batch, self.device)
        _copy(self._buffers(), self._saved_buffers)
        with (
            torch.autocast(
                self.device.type, self.precision, enabled=self.precision != torch.float32
            ),
            _divergence_as_nan(self.model) as messages,
        ):
            losses = self.model(batch)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()

        check = self._check_finite(losses)
        if not check.losses_are_finite or not (check.gradient_is_finite or self._can_scale_down()):
            _copy(self._saved_buffers, self._buffers())
            raise NonFiniteError(self._report(check, messages, batch))
        # The values are on the host already, so logging needs no further synchronization.
        on_host = {name: torch.tensor(value) for name, value in check.losses.items()}
        self._write_metrics(on_host, data_time)

        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _buffers(self) -> list[Tensor]:
        """Return the current floating-point buffers; hooks such as PreciseBN may replace them."""
        return [getattr(module, name) for module, name in self._buffer_names]

    def _check_finite(self, losses: Mapping[str, Tensor]) -> "_FiniteCheck":
        """Check all values on all ranks; the only place that waits for the device."""
        own = torch.stack([loss.detach().float() for loss in losses.values()])
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # The 2-norm is fast everywhere. It overflows from 1e19 on, which counts as infinite, too.
        norm = get_total_norm(gradients).to(own)
        is_bad = torch.stack([~own.isfinite().all(), ~norm.isfinite()]).float()
        if comm.get_world_size() > 1:
            dist.all_reduce(is_bad, dist.ReduceOp.MAX)
        *values, loss_is_bad, gradient_is_bad = torch.cat([own, is_bad]).tolist()
        return _FiniteCheck(
            losses=dict(zip(losses, values, strict=True)),
            losses_are_finite=not loss_is_bad,
            gradient_is_finite=not gradient_is_bad,
        )

    def _can_scale_down(self) -> bool:
        """Return whether an overflow may be due to the loss scale alone."""
        return self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() > 1

    def _report(
        self, check: "_FiniteCheck", messages: Sequence[str], batch: Sequence[Mapping[str, Any]]
    ) -> str:
        """Describe the non-finite values, with the losses and the images of every rank."""
        if check.losses_are_finite:
            names = [
                name
                for name, parameter in _without_ddp(self.model).named_parameters()
                if parameter.grad is not None and not parameter.grad.norm().isfinite()
            ]
            num_others = len(names) - NUM_NAMED_PARAMETERS
            others = f" and {num_others} more" if num_others > 0 else ""
            culprit = f"the gradient of {', '.join(names[:NUM_NAMED_PARAMETERS])}{others}"
        else:
            culprit = "the loss"
        losses = [f"{name} {value:.4g}" for name, value in check.losses.items()]
        images = [_name_of(x, number) for number, x in enumerate(batch, start=1)]
        own = "; ".join([*messages, ", ".join(losses), f"images {', '.join(images)}"])
        lines = [f"  rank {rank}: {line}" for rank, line in enumerate(comm.all_gather(own))]
        head = f"{culprit} is infinite or NaN in iteration {self.iter}; the weights are unchanged"
        return "\n".join([head, *lines])

    def state_dict(self) -> dict[str, Any]:
        """Return the state, including the loss scale in float16."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a state, whatever the precision of the training that saved it."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


class _FiniteCheck(NamedTuple):
    """The losses of this rank, and whether the values of all ranks are finite."""

    losses: dict[str, float]
    losses_are_finite: bool
    gradient_is_finite: bool


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)


def _name_of(sample: Mapping[str, Any], number: int) -> str:
    """Return the id and the file of an image; its number in the batch if it has neither."""
    if "image_id" in sample or "file_name" in sample:
        return f"{sample.get('image_id')!r} ({sample.get('file_name')})"
    return f"number {number} of the batch"


def _without_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def _divergence_as_nan(model: nn.Module) -> Iterator[list[str]]:
    """Turn a FloatingPointError of a model into a loss of NaN.

    Detectron2's proposal generator raises this error. On one rank of several it would leave the
    others waiting for gradients; a loss of NaN reaches all of them.

    Yields:
        The messages of the errors, filled when one occurs.
    """
    inner = _without_ddp(model)
    forward = inner.forward
    messages: list[str] = []

    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except FloatingPointError as error:
            messages.append(" ".join(str(error).split()))
            touched = [p.sum() for p in inner.parameters() if p.requires_grad]
            return {"loss": torch.stack(touched).sum() * math.nan}

    inner.forward = guarded
    try:
        yield messages
    finally:
        del inner.forward
