"""The training step: mixed precision on any device, and nothing updated that is not finite."""

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

NAMED_PARAMETERS = 3  # of those whose gradient is not finite


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is infinite or NaN; the step that found it has changed no weight."""


def build_step(
    cfg: CfgNode, model: nn.Module, data_loader: Iterable[Any], optimizer: torch.optim.Optimizer
) -> "CheckedTrainer":
    """Build the training step with the precision of ``SOLVER.AMP``."""
    amp = cfg.SOLVER.AMP
    precision = getattr(torch, amp.DTYPE) if amp.ENABLED else torch.float32
    return CheckedTrainer(model, data_loader, optimizer, precision=precision)


class CheckedTrainer(SimpleTrainer):
    """Detectron2's step on any device and in any precision, which ends at what is not finite.

    Losses and gradients are looked at before the optimizer uses them, on all ranks together, so
    that all end in the same step: the weights stay as they were, and so do the floating-point
    buffers, in which a batch normalization keeps its averages. The look costs one norm over all
    gradients, and of the host it asks no more than logging does: one synchronization.

    In float16 the loss is scaled, and a gradient that overflows is no error as long as a smaller
    scale is left: the step is skipped and the scale halved.

    Args:
        model: maps a batch to losses by name; on one device, and possibly in a
            :class:`DistributedDataParallel`.
        data_loader: yields batches.
        optimizer: of the model's parameters.
        precision: the type in which autocast computes; float32 switches it off.
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
        self._parameters = [x for x in model.parameters() if x.requires_grad]
        self._buffer_names = [
            (module, name)
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        self._kept_buffers = [x.clone() for x in self._buffers()]

    def run_step(self) -> None:
        """Take one step.

        Raises:
            NonFiniteError: if a loss or a gradient of any rank is not finite; on all ranks.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        _copy(self._buffers(), self._kept_buffers)
        with (
            torch.autocast(
                self.device.type, self.precision, enabled=self.precision != torch.float32
            ),
            _divergence_as_nan(self.model) as complaints,
        ):
            losses = self.model(batch)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()

        findings = self._look_at(losses)
        if not findings.losses_are_finite or not (
            findings.gradient_is_finite or self._can_scale_down()
        ):
            _copy(self._kept_buffers, self._buffers())
            raise NonFiniteError(self._report(findings, complaints, batch))
        # On the host they cost the writing no further synchronization.
        on_host = {name: torch.tensor(value) for name, value in findings.losses.items()}
        self._write_metrics(on_host, data_time)

        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _buffers(self) -> list[Tensor]:
        """Return the floating-point buffers, which hooks such as PreciseBN may have replaced."""
        return [getattr(module, name) for module, name in self._buffer_names]

    def _look_at(self, losses: Mapping[str, Tensor]) -> "_Findings":
        """Find out what is finite on every rank; the only place that waits for the device."""
        own = torch.stack([loss.detach().float() for loss in losses.values()])
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        # The norm by squares is the one that is fast everywhere. It is infinite from 1e19 on, too.
        norm = get_total_norm(gradients).to(own)
        is_bad = torch.stack([~own.isfinite().all(), ~norm.isfinite()]).float()
        if comm.get_world_size() > 1:
            dist.all_reduce(is_bad, dist.ReduceOp.MAX)
        *values, loss_is_bad, gradient_is_bad = torch.cat([own, is_bad]).tolist()
        return _Findings(
            losses=dict(zip(losses, values, strict=True)),
            losses_are_finite=not loss_is_bad,
            gradient_is_finite=not gradient_is_bad,
        )

    def _can_scale_down(self) -> bool:
        """Tell whether an overflow may be due to the scale of the loss alone."""
        return self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() > 1

    def _report(
        self, findings: "_Findings", complaints: Sequence[str], batch: Sequence[Mapping[str, Any]]
    ) -> str:
        """Say what is not finite, with the losses and the images of every rank."""
        if findings.losses_are_finite:
            names = [
                name
                for name, parameter in _without_ddp(self.model).named_parameters()
                if parameter.grad is not None and not parameter.grad.norm().isfinite()
            ]
            more = f" and {len(names) - NAMED_PARAMETERS} more" * (len(names) > NAMED_PARAMETERS)
            what = f"the gradient of {', '.join(names[:NAMED_PARAMETERS])}{more}"
        else:
            what = "the loss"
        losses = [f"{name} {value:.4g}" for name, value in findings.losses.items()]
        images = [f"{x.get('image_id')!r} ({x.get('file_name')})" for x in batch]
        own = "; ".join([*complaints, ", ".join(losses), f"images {', '.join(images)}"])
        lines = [f"  rank {rank}: {line}" for rank, line in enumerate(comm.all_gather(own))]
        head = (
            f"{what} is infinite or NaN in iteration {self.iter}; no weight has been changed by it"
        )
        return "\n".join([head, *lines])

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with that of the loss scale in float16."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state over, whatever the precision of the training that it is from."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


class _Findings(NamedTuple):
    """The losses of this rank, and what holds for all ranks."""

    losses: dict[str, float]
    losses_are_finite: bool
    gradient_is_finite: bool


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)


def _without_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def _divergence_as_nan(model: nn.Module) -> Iterator[list[str]]:
    """Let a model that breaks off at values that are not finite end with a loss of NaN instead.

    Detectron2's proposal generator raises FloatingPointError. On one rank of several that would
    leave the others waiting for its gradients; a loss of NaN reaches all of them.

    Yields:
        What the model said when it broke off, once it has.
    """
    inner = _without_ddp(model)
    forward = inner.forward
    complaints: list[str] = []

    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except FloatingPointError as error:
            complaints.append(" ".join(str(error).split()))
            touched = [p.sum() for p in inner.parameters() if p.requires_grad]
            return {"loss": torch.stack(touched).sum() * math.nan}

    inner.forward = guarded
    try:
        yield complaints
    finally:
        del inner.forward
