"""Work of the processes in test_launch.py; each process saves its findings in a file."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from point_rend import load_config
from point_rend.checkpoint.checkpointer import SafeDetectionCheckpointer
from point_rend.engine.averaging import WeightAverage
from point_rend.engine.launch import distribute
from point_rend.engine.train_step import CheckedTrainer, NonFiniteError
from tests.tiny_datasets import HEIGHT, POINTREND, TINY_MODEL, WIDTH, scene

# No randomness: all proposals are used, and the points lie on a grid. No layer mixes the images of
# a batch.
DETERMINISTIC = [
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.POINT_HEAD.TRAIN_ON_REGULAR_GRID", "True"),
    *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.RESNETS.NORM", "FrozenBN"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"),
]
IMPLICIT = ["MODEL.ROI_MASK_HEAD.NAME", "ImplicitPointRendMaskHead"]
IMPLICIT += ["MODEL.POINT_HEAD.NAME", "ImplicitPointHead"]
IMPLICIT += ["MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", "784"]

Batch = list[dict[str, Any]]


def tiny_cfg(*opts: str) -> CfgNode:
    return load_config(POINTREND, [*TINY_MODEL, *opts])


def image(number: int, *, objects: int = 3, background: int = 2) -> dict[str, Any]:
    """Build a scene with its first objects; proposals lie near objects and in the background."""
    pixels, shapes = scene(number)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    boxes, masks = [], []
    for _, corners in shapes[:objects]:
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        boxes.append([x0, y0, x1, y1])
        masks.append((columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1))
    instances = Instances((HEIGHT, WIDTH))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4).float())
    instances.gt_classes = torch.arange(objects)
    instances.gt_masks = BitMasks(torch.from_numpy(np.reshape(masks, (-1, HEIGHT, WIDTH))).bool())
    beside = torch.tensor([[0.0, 0.0, 6.0, 6.0]]).repeat(background, 1)
    proposals = Instances((HEIGHT, WIDTH))
    proposals.proposal_boxes = Boxes(torch.cat([instances.gt_boxes.tensor + 0.5, beside]))
    proposals.objectness_logits = torch.zeros(objects + background)
    return {
        "image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
        "image_id": number,
        "file_name": f"{number}.jpg",
        "instances": instances,
        "proposals": proposals,
    }


def shares(case: str) -> tuple[Batch, Batch]:
    """Build the batches of two ranks."""
    second = {
        "equal": [image(3), image(4)],
        "unequal": [image(3, objects=1), image(4, objects=2, background=7)],
        "empty": [image(3, objects=0), image(4, objects=0)],
    }
    return [image(1), image(2)], second[case]


def gradients(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Return the gradient of the total loss for each parameter that has one."""
    model.zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    inner = getattr(model, "module", model)
    return {n: p.grad.clone() for n, p in inner.named_parameters() if p.grad is not None}


class Toy(nn.Module):
    """One weight, and an offset of the loss that differs between ranks."""

    def __init__(self, planted: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.planted = planted

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return {"loss_toy": self.weight * len(batch) + self.planted}


def end_of_training(model: nn.Module, batch: Batch) -> tuple[str, bool]:
    """Return the error of the first step, and whether all weights are unchanged."""
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = CheckedTrainer(distribute(model), [batch], optimizer)
    message = ""
    with EventStorage():
        try:
            trainer.run_step()
        except NonFiniteError as error:
            message = str(error)
    return message, all(map(torch.equal, before, model.parameters()))


class Rare(nn.Module):
    """Two weights, one of which only the images with an odd number use; a planted loss."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.rare = (nn.Parameter(torch.full((3,), x)) for x in (0.3, -0.2))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        parts = [
            (self.always * x["image"] + (self.rare if x["image_id"] % 2 else 0)).sin()
            for x in batch
        ]
        return {"loss_rare": torch.stack(parts).mean()}


def rare_batches(*, broken: int | None = None) -> list[Batch]:
    """Build batches of one image each; the value of one image may be broken."""
    generator = torch.Generator().manual_seed(4)
    images = [torch.randn(3, generator=generator) for _ in range(6)]
    if broken is not None:
        images[broken].fill_(float("nan"))
    numbers = [1, 2, 4, 6, 8, 10]
    return [
        [{"image": image, "image_id": number, "file_name": f"{number}.jpg"}]
        for number, image in zip(numbers, images, strict=True)
    ]


def accumulated(batches: list[Batch]) -> dict[str, Any]:
    """Take a step of three batches; rank 0 takes the first three, rank 1 the others."""
    model = distribute(Rare())
    exchanged: list[int] = []

    def count(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        exchanged.append(1)
        return default_hooks.allreduce_hook(None, bucket)

    model.register_comm_hook(None, count)
    own = batches[3 * comm.get_rank() :][:3]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = CheckedTrainer(model, own, optimizer, accumulation_steps=3)
    average = WeightAverage(model, 0.9)
    message = ""
    with EventStorage():
        try:
            trainer.run_step()
            average.update()
        except NonFiniteError as error:
            message = str(error)
    gradients = {name: x.grad for name, x in model.module.named_parameters()}
    weights = {name: x.detach() for name, x in model.module.named_parameters()}
    return {
        "grads": gradients,
        "weights": weights,
        "average": average.state_dict(),
        "count": len(exchanged),
        "message": message,
    }


def batch_normalized(images: Tensor) -> Tensor:
    """Normalize images with Detectron2's batch normalization across processes."""
    norm = get_norm("naiveSyncBN", images.shape[1])
    assert norm is not None
    return norm(images).detach()


def refusal_to_resume(folder: str) -> str:
    """Return the error of resuming in separate folders; only that of rank 0 has a checkpoint."""
    toy = Toy(0.0)
    checkpointer = SafeDetectionCheckpointer(toy, f"{folder}/disk{comm.get_rank()}")
    Path(checkpointer.save_dir).mkdir()
    if comm.is_main_process():
        checkpointer.save("model_0000000")
    try:
        checkpointer.resume_or_load("", resume=True)
    except ValueError as error:
        return str(error)
    return ""


def findings_of_rank(folder: str) -> None:
    """Save the findings of all cases; then rank 1 is killed while rank 0 waits for it."""
    rank = comm.get_rank()
    found: dict[str, Any] = {}
    torch.manual_seed(rank)  # so that equal initial weights are no coincidence
    model = distribute(build_model(tiny_cfg(*DETERMINISTIC)))
    found["state"] = {n: x.clone() for n, x in model.module.state_dict().items()}
    for case in ("equal", "unequal", "empty"):
        found[case] = gradients(model, shares(case)[rank])
    torch.manual_seed(rank)
    implicit = distribute(build_model(tiny_cfg(*DETERMINISTIC, *IMPLICIT)))
    found["implicit state"] = {n: x.clone() for n, x in implicit.module.state_dict().items()}

    found["loss"] = end_of_training(Toy(float("inf") if rank else 0.0), [image(10 + rank)])
    torch.manual_seed(0)
    proposing = build_model(tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", "3"))
    broken = image(20 + rank)
    broken["image"] = broken["image"] * (float("nan") if rank else 1.0)
    found["proposals"] = end_of_training(proposing, [broken])
    torch.manual_seed(3)
    found["normalized"] = batch_normalized(torch.randn(4, 5, 6, 7)[2 * rank :][:2])
    found["accumulated"] = accumulated(rare_batches())
    found["accumulated nan"] = accumulated(rare_batches(broken=4))
    found["resume"] = refusal_to_resume(folder)

    torch.save(found, Path(folder) / f"{rank}.pth")
    comm.synchronize()
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


def stumble() -> None:
    """Fail on rank 1 while rank 0 waits for it."""
    if comm.get_rank():
        raise RuntimeError("rank 1 stumbles")
    comm.synchronize()
