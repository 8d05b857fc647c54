"""A graph whose results are known, in files of all three kinds."""

import atexit
import dataclasses
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import onnx
import torch
from torch import Tensor

from point_rend import get_config_file, load_config
from point_rend.config.dumping import dump_config
from point_rend.export.graph import DynamicShapes, Graph
from point_rend.export.writers import write_onnx, write_torch_export, write_torchscript
from point_rend.runtime.description import KEY, Description
from tests.tiny_datasets import KINDS

INSTANCE_CONFIG = get_config_file("InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml")
SEMANTIC_CONFIG = get_config_file(
    "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes.yaml"
)
SIDE = 8  # of the masks


class Planted(Graph):
    """A graph from images that are padded to multiples of 32."""

    input_names = ("images", "sizes")

    def example(self) -> tuple[Tensor, ...]:
        return torch.rand(2, 3, 64, 96) * 255, torch.tensor([[60, 96], [64, 90]])

    def dynamic_shapes(self) -> DynamicShapes:
        batch, rows, columns = map(torch.export.Dim, ("batch", "rows", "columns"))
        return {0: batch, 2: 32 * rows, 3: 32 * columns}, {0: batch}


class TwoBoxes(Planted):
    """Finds two instances in each image: its left half, and its bright upper quarter."""

    task = "instances"
    output_names = ("boxes", "scores", "classes", "image", "masks")

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


class Brightness(Planted):
    """Logits of four classes that are the blue, green and red values, and 128."""

    task = "sem_seg"
    output_names = ("logits", "labels")

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


WRITERS = {".onnx": write_onnx, ".pt2": write_torch_export, ".ts": write_torchscript}


def write_planted(path: Path, described: Description | None = None) -> Path:
    """Write a planted graph in the format of the suffix."""
    described = described or description()
    graph = TwoBoxes() if described.task == "instances" else Brightness()
    WRITERS[path.suffix](graph, path, described)
    return path


@cache
def planted(name: str = "planted.onnx") -> Path:
    """Return a planted graph, which is written once in a process: planted.* or labels.*."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder)
    return write_planted(folder / name, description("sem_seg") if "labels" in name else None)


def redescribed(path: Path, source: Path, described: Description | None) -> Path:
    """Write an ONNX file with another description."""
    model = onnx.load(source)
    del model.metadata_props[:]
    model.metadata_props.add(key="author", value="nobody")
    if described is not None:
        model.metadata_props.add(key=KEY, value=described.to_json())
    onnx.save(model, path)
    return path
