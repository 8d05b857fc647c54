"""A graph whose results are known, in files of all three kinds."""

import dataclasses
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from point_rend import get_config_file, load_config
from point_rend.config.dumping import dump_config
from point_rend.runtime.description import KEY, Description
from tests.tiny_datasets import KINDS

INSTANCE_CONFIG = get_config_file("InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml")
SEMANTIC_CONFIG = get_config_file(
    "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml"
)
SIDE = 8  # of the masks


class TwoBoxes(nn.Module):
    """Finds two instances in each image: its left half, and its bright upper quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("classes", torch.tensor([2, 0]))
        mask = torch.full((1, 1, SIDE, SIDE), 0.1)
        mask[..., : SIDE // 2] = 0.9  # the left half
        self.register_buffer("mask", mask)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        batch = images.shape[0]
        height, width = sizes[:, 0].float(), sizes[:, 1].float()
        zero = torch.zeros_like(height)
        left = torch.stack((zero, zero, width / 2, height), 1)
        upper = torch.stack((zero, zero, width, height / 4), 1)
        boxes = torch.stack((left, upper), 1).reshape(-1, 4)
        bright = images.amax((1, 2, 3)) / 255
        scores = torch.stack((torch.full_like(bright, 0.75), bright / 2), 1).reshape(-1)
        classes = self.classes.repeat(batch)
        image = torch.arange(batch)[:, None].expand(-1, 2).reshape(-1)
        return boxes, scores, classes, image, self.mask.expand(2 * batch, -1, -1, -1)


class Brightness(nn.Module):
    """Logits of four classes that are the blue, green and red values, and 128."""

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        constant = torch.full_like(images[:, :1], 128.0)
        logits = torch.cat((images, constant), 1) + 0 * sizes.sum().float()
        return logits, logits.argmax(1)


def description(task: str = "instances", *opts: str, **fields: object) -> Description:
    """Describe a planted graph, with the config of a small model."""
    semantic = task == "sem_seg"
    cfg = load_config(
        SEMANTIC_CONFIG if semantic else INSTANCE_CONFIG,
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "64"),
            f"MODEL.{'SEM_SEG_HEAD' if semantic else 'ROI_HEADS'}.NUM_CLASSES",
            str(len(KINDS) + semantic),
            *opts,
        ],
    )
    planted = Description(
        task=task,
        version="1.0",
        classes=("ground", *KINDS) if semantic else KINDS,
        image_format=cfg.INPUT.FORMAT,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        divisor=32,
        max_side=1344,
        max_batch=2,
        score_threshold=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        config=dump_config(cfg),
    )
    return dataclasses.replace(planted, **fields)


def write_planted(path: Path, described: Description | None = None) -> Path:
    """Write a planted graph in the format of the suffix."""
    described = described or description()
    graph = TwoBoxes() if described.task == "instances" else Brightness()
    example = torch.rand(2, 3, 64, 96) * 255, torch.tensor([[60, 96], [64, 90]])
    if path.suffix == ".ts":
        traced = torch.jit.trace(graph, example)
        torch.jit.save(traced, path, _extra_files={KEY: described.to_json()})
        return path
    batch, height, width = torch.export.Dim("batch"), torch.export.Dim("h"), torch.export.Dim("w")
    shapes = {0: batch, 2: 32 * height, 3: 32 * width}, {0: batch}
    program = torch.export.export(graph, example, dynamic_shapes=shapes)
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files={KEY: described.to_json()})
        return path
    names = ["boxes", "scores", "classes", "image", "masks"]
    if described.task == "sem_seg":
        names = ["logits", "labels"]
    torch.onnx.export(
        program,
        (),
        path,
        input_names=["images", "sizes"],
        output_names=names,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return redescribed(path, path, described)


def redescribed(path: Path, source: Path, described: Description | None) -> Path:
    """Write an ONNX file with another description."""
    model = onnx.load(source)
    del model.metadata_props[:]
    model.metadata_props.add(key="author", value="nobody")
    if described is not None:
        model.metadata_props.add(key=KEY, value=described.to_json())
    onnx.save(model, path)
    return path
