"""The training step: any precision and number of batches, no update from non-finite values."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    return CheckedTrainer(
        model,
        data_loader,
        optimizer,
        precision=precision,
        accumulation_steps=cfg.SOLVER.get("ACCUMULATION_STEPS", 1),
    )


class CheckedTrainer(SimpleTrainer):
    """Detectron2's training step, on any device, in any precision, with checks for finite values.

    Losses and gradients are checked before the optimizer uses them, on all ranks together, so that
    all ranks stop in the same step. The weights stay unchanged, and so do the floating-point
    buffers, such as the running statistics of batch normalization. The check costs one norm over
    all gradients and the one synchronization with the device that logging needs anyway.

    In float16 the loss is scaled. A gradient that overflows is not an error as long as the scale
    can shrink: the step is skipped and the scale halved.

    With several batches for a step the gradient is the mean of those of the batches, which is the
    gradient of one large batch where each loss is a mean over equally many items. Everything else
    happens once a step: the exchange between processes, the check, the clipping, the update. Batch
    normalization sees each batch by itself and updates its running statistics with each. The
    logged losses are means over the batches; what a model logs itself is that of the last one.

    Args:
        model: Maps a batch to losses by name; on one device, possibly wrapped in
            :class:`DistributedDataParallel`.
        data_loader: Yields batches.
        optimizer: Optimizer of the model's parameters.
        precision: Data type of autocast; float32 disables it.
        accumulation_steps: Number of batches for a step, 1 or more.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        precision: torch.dtype = torch.float32,
        accumulation_steps: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.precision = precision
        self.accumulation_steps = accumulation_steps
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
        _copy(self._buffers(), self._saved_buffers)
        self.optimizer.zero_grad()
        data_time = 0.0
        parts = []
        for number in range(1, self.accumulation_steps + 1):
            progress.note(progress.COMPUTING)
            start = time.perf_counter()
            batch = self._next_batch()
            data_time += time.perf_counter() - start
            with self._exchange_of_gradients(enabled=number == self.accumulation_steps):
                parts.append(self._add_gradients(batch))
        self.after_backward()

        check = self._check_finite(parts)
        if not check.losses_are_finite or not (check.gradient_is_finite or self._can_scale_down()):
            self._restore_buffers()
            raise NonFiniteError(self._report(check, parts))
        # The values are on the host already, so logging needs no further synchronization.
        means = {name: torch.tensor(value) for name, value in _means(check.losses).items()}
        self._write_metrics(means, data_time)

        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _next_batch(self) -> Any:
        """Take a batch; without one, the step is not taken."""
        try:
            return next(self._data_loader_iter)
        except BaseException:
            self._restore_buffers()
            raise

    def _exchange_of_gradients(self, *, enabled: bool) -> AbstractContextManager[None]:
        """Return a context in which gradients are averaged over the processes, or are not."""
        if enabled or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _add_gradients(self, batch: Any) -> "_Part":
        """Compute the losses of a batch, and add its share to the gradients."""
        inputs = batch if self.draws_inputs else to_device(batch, self.device)
        with (
            torch.autocast(
                self.device.type, self.precision, enabled=self.precision != torch.float32
            ),
            _divergence_as_nan(self.model) as messages,
        ):
            losses = self.model(inputs)
        self._backward(sum(losses.values()))
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        detached = {name: loss.detach().float() for name, loss in losses.items()}
        # The 2-norm is fast everywhere. It overflows from 1e19 on, which counts as infinite, too.
        return _Part(batch, detached, messages, get_total_norm(gradients))

    def _backward(self, total: Any) -> None:
        """Add the gradient of the share that a batch has in the step."""
        if self.accumulation_steps > 1:
            total = total / self.accumulation_steps
        self.grad_scaler.scale(total).backward()

    def _restore_buffers(self) -> None:
        """Give the floating-point buffers the values from before the step."""
        _copy(self._saved_buffers, self._buffers())

    def _buffers(self) -> list[Tensor]:
        """Return the current floating-point buffers; hooks such as PreciseBN may replace them."""
        return [getattr(module, name) for module, name in self._buffer_names]

    def _check_finite(self, parts: Sequence["_Part"]) -> "_FiniteCheck":
        """Check all values on all ranks; the only place that waits for the device."""
        own = torch.stack([loss for part in parts for loss in part.losses.values()])
        norms = torch.stack([part.norm.to(own) for part in parts])
        is_bad = torch.stack([~own.isfinite().all(), ~norms[-1].isfinite()]).float()
        if comm.get_world_size() > 1:
            dist.all_reduce(is_bad, dist.ReduceOp.MAX)
        *values, loss_is_bad, gradient_is_bad = torch.cat([own, norms, is_bad]).tolist()
        on_host = iter(values)
        return _FiniteCheck(
            losses=[{name: next(on_host) for name in part.losses} for part in parts],
            norms=list(on_host),
            losses_are_finite=not loss_is_bad,
            gradient_is_finite=not gradient_is_bad,
        )

    def _can_scale_down(self) -> bool:
        """Return whether an overflow may be due to the loss scale alone."""
        return self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() > 1

    def _report(self, check: "_FiniteCheck", parts: Sequence["_Part"]) -> str:
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
        own = _describe(check, parts)
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


class _Part(NamedTuple):
    """A batch of a step.

    Attributes:
        batch: The images, as they came from the loader.
        losses: Its losses, on the device.
        messages: Errors of the model that became losses of NaN.
        norm: Norm of the gradients with its share, on the device; that of the last batch includes
            the gradients of the other ranks.
    """

    batch: Sequence[Mapping[str, Any]]
    losses: dict[str, Tensor]
    messages: Sequence[str]
    norm: Tensor


class _FiniteCheck(NamedTuple):
    """Losses and norms of this rank by batch, and whether the values of all ranks are finite."""

    losses: list[dict[str, float]]
    norms: list[float]
    losses_are_finite: bool
    gradient_is_finite: bool


def _means(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of losses over batches; a loss that a batch lacks counts as 0."""
    means = dict(losses[0])
    for of_batch in losses[1:]:
        means = {x: means.get(x, 0.0) + of_batch.get(x, 0.0) for x in {**means, **of_batch}}
    return {name: value / len(losses) for name, value in means.items()}


def _describe(check: _FiniteCheck, parts: Sequence[_Part]) -> str:
    """Describe the first batch of this rank with a value that is not finite."""
    bad = [
        number
        for number, (losses, norm) in enumerate(zip(check.losses, check.norms, strict=True))
        if not all(map(math.isfinite, [norm] if check.losses_are_finite else losses.values()))
    ]
    several = len(parts) > 1
    if several and not bad:
        return f"finite in all {len(parts)} batches"
    number = bad[0] if bad else 0
    losses = [f"{name} {value:.4g}" for name, value in check.losses[number].items()]
    images = [_name_of(x, place) for place, x in enumerate(parts[number].batch, start=1)]
    which = [f"batch {number + 1} of {len(parts)}"] * several
    texts = [*which, *parts[number].messages, ", ".join(losses), f"images {', '.join(images)}"]
    return "; ".join(texts)


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
