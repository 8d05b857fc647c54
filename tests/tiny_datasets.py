"""Data sets of a few small images in the formats of COCO, LVIS and Cityscapes; a tiny model.

The objects are discs, boxes and triangles; each kind has its color.
"""

import contextlib
import gc
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from point_rend.utils.locks import unlock_folders

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = REPOSITORY / "configs" / "InstanceSegmentation"
POINTREND = str(CONFIGS / "pointrend_rcnn_R_50_FPN_1x_coco.yaml")
BASELINE = str(CONFIGS / "mask_rcnn_R_50_FPN_1x_coco.yaml")

KINDS = ("disc", "box", "triangle")
COLORS = ((40, 40, 220), (40, 220, 40), (220, 40, 40))
HEIGHT, WIDTH = 64, 96

# Options that make a published config small enough for seconds on a CPU.
TINY_MODEL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SEED", "1"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64]]"),
    *("MODEL.RPN.IN_FEATURES", "('p2', 'p3', 'p4')", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "('p2', 'p3')", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.ROI_MASK_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
    *("MODEL.POINT_HEAD.FC_DIM", "16", "TEST.DETECTIONS_PER_IMAGE", "5"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.STEPS", "()", "SOLVER.MAX_ITER", "2"),
    *("SOLVER.BASE_LR", "0.0005", "MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"),
]


def load_script(name: str) -> ModuleType:
    """Import a script by its path in the repository."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, REPOSITORY / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def process_state_restored() -> Iterator[None]:
    """Undo the effects of a run on the process: data sets, log handlers and locks of folders."""
    catalogs = [(catalog, dict(catalog)) for catalog in (DatasetCatalog, MetadataCatalog)]
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "point_rend")]
    settings = [(logger, logger.level, logger.propagate, [*logger.handlers]) for logger in loggers]
    setup_logger.cache_clear()
    gc.freeze()  # the collection below then only examines later objects
    try:
        yield
    finally:
        unlock_folders()
        for catalog, content in catalogs:
            catalog.data = content
        for logger, level, propagate, handlers in settings:
            for handler in {*logger.handlers} - {*handlers}:
                handler.close()
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        setup_logger.cache_clear()
        with warnings.catch_warnings():
            # A trainer that ends early does not close its metrics file.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        gc.unfreeze()


class CocoSet(NamedTuple):
    """A data set in COCO's or LVIS's format."""

    json_file: str
    image_root: str

    def read(self) -> dict[str, Any]:
        return json.loads(Path(self.json_file).read_text())

    def rewrite(self, content: Any) -> None:
        Path(self.json_file).write_text(json.dumps(content))


def outline(kind: int, x: int, y: int, side: int) -> np.ndarray:
    """Corners (M, 2) of a shape that fills the square at (x, y), clockwise."""
    if kind == 0:
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        corners = 0.5 + 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif kind == 1:
        corners = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    else:
        corners = np.array([[0.5, 0.0], [1.0, 1.0], [0.0, 1.0]])
    return np.round(corners * side + (x, y), 1)


def scene(number: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image (HEIGHT, WIDTH, 3) with one shape of each kind, and their kinds and outlines."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    shapes = []
    for kind, color in enumerate(COLORS):
        side = int(rng.integers(18, 26))
        x, y = kind * 32 + int(rng.integers(2, 5)), int(rng.integers(2, HEIGHT - 28))
        corners = outline(kind, x, y, side)
        cv2.fillPoly(image, [np.round(corners).astype(np.int32)], color)
        shapes.append((kind, corners))
    return image, shapes


def uncompressed(rle: dict[str, Any]) -> dict[str, Any]:
    """The same mask with its runs as a list."""
    pixels = mask_util.decode(rle).ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *edges, pixels.size]).tolist()
    return {"size": list(rle["size"]), "counts": [0, *runs] if pixels[0] else runs}


def annotation(identity: int, image_id: int, category: int, corners: np.ndarray) -> dict[str, Any]:
    """One COCO annotation; polygon, compressed and uncompressed RLE alternate."""
    polygon = corners.ravel().tolist()
    rle = mask_util.merge(mask_util.frPyObjects([polygon], HEIGHT, WIDTH))
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    masks = ([polygon], rle | {"counts": rle["counts"].decode()}, uncompressed(rle))
    return {
        "id": identity,
        "image_id": image_id,
        "category_id": category,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": float(mask_util.area(rle)),
        "iscrowd": 0,
        "segmentation": masks[identity % 3],
    }


def write_coco(
    folder: Path, *, images: int = 2, categories: Sequence[int] = (3, 7, 12), suffix: str = ".png"
) -> CocoSet:
    """Write a COCO set with the three kinds under category ids that are not contiguous."""
    root = folder / "images"
    root.mkdir(parents=True)
    records, annotations = [], []
    for number in range(images):
        image, shapes = scene(number)
        name = f"{number:03d}{suffix}"
        cv2.imwrite(str(root / name), image)
        records.append({"id": number + 1, "file_name": name, "height": HEIGHT, "width": WIDTH})
        annotations += [
            annotation(len(annotations) + kind + 1, number + 1, categories[kind], corners)
            for kind, corners in shapes
            if kind < len(categories)
        ]
    written = CocoSet(str(folder / "instances.json"), str(root))
    names = [{"id": identity, "name": KINDS[kind]} for kind, identity in enumerate(categories)]
    written.rewrite({"images": records, "annotations": annotations, "categories": names})
    return written


def write_lvis(folder: Path, *, images: int = 2) -> CocoSet:
    """Write an LVIS v1 set; its image root is the parent of the folder in the addresses."""
    split = folder / "val2017"
    split.mkdir(parents=True)
    frequency = ("r", "c", "f")
    records, annotations = [], []
    for number in range(images):
        image, shapes = scene(number)
        name = f"{number:012d}.jpg"
        cv2.imwrite(str(split / name), image)
        records.append(
            {
                "id": number + 1,
                "coco_url": f"http://images.cocodataset.org/val2017/{name}",
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": [4],
                "not_exhaustive_category_ids": [],
            }
        )
        for kind, corners in shapes:
            record = annotation(len(annotations) + 1, number + 1, kind + 1, corners)
            del record["iscrowd"]
            record["segmentation"] = [corners.ravel().tolist()]
            annotations.append(record)
    names = [
        {
            "id": identity,
            "name": f"name_{identity}",
            "synset": f"name.n.{identity:02d}",
            "synonyms": [f"name_{identity}"],
            "def": "a tiny shape",
            "frequency": frequency[identity % 3],
            "image_count": images,
            "instance_count": images,
        }
        for identity in range(1, 5)
    ]
    written = CocoSet(str(folder / "lvis_v1_val.json"), f"{folder}/")
    written.rewrite({"images": records, "annotations": annotations, "categories": names})
    return written


def write_cityscapes(root: Path, *, split: str = "val", images: int = 2) -> tuple[str, str]:
    """Write a Cityscapes split as published, with label images of cityscapesscripts.

    Returns:
        The folders of the images and of the ground truth.
    """
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    city = "tinytown"
    image_dir, gt_dir = root / "leftImg8bit" / split, root / "gtFine" / split
    for folder in (image_dir / city, gt_dir / city):
        folder.mkdir(parents=True)
    for number in range(images):
        image, shapes = scene(number)
        name = f"{city}_{number:06d}_000019"
        cv2.imwrite(str(image_dir / city / f"{name}_leftImg8bit.png"), image)
        objects = [
            {"label": "road", "polygon": [[0, 50], [WIDTH, 50], [WIDTH, HEIGHT], [0, HEIGHT]]}
        ]
        for label, (_, corners) in zip(("car", "person", "rider"), shapes, strict=True):
            objects.append({"label": label, "polygon": np.round(corners).astype(int).tolist()})
        polygons = gt_dir / city / f"{name}_gtFine_polygons.json"
        polygons.write_text(
            json.dumps({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects})
        )
        drawn = Annotation()
        drawn.fromJsonFile(str(polygons))
        instance_ids = np.array(createInstanceImage(drawn, "ids")).astype(np.uint16)
        label_ids = np.array(createLabelImage(drawn, "ids")).astype(np.uint8)
        for kind, image in (("instanceIds", instance_ids), ("labelIds", label_ids)):
            cv2.imwrite(str(gt_dir / city / f"{name}_gtFine_{kind}.png"), image)
    return str(image_dir), str(gt_dir)
