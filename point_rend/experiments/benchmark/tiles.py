"""Proof of tiles: planted objects across their borders, agreement with whole images, memory.

Each row of the table is an image that is segmented in tiles:

1. A large numbered image, whose predictor finds every object of a tile exactly. What the merging
   makes of them is compared with the planted objects.
2. A smaller numbered image, which the same predictor also sees as a whole.
3. With a checkpoint: a textured image, which its model sees in tiles and as a whole, at the same
   scale.

A second table is that of :mod:`point_rend.experiments.benchmark.labeled_tiles`.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import Instances

from point_rend.experiments.benchmark.instance_cases import POINTREND, instance_config
from point_rend.experiments.benchmark.labeled_tiles import format_labeled, label_images
from point_rend.experiments.benchmark.memory import peak_memory
from point_rend.experiments.benchmark.planted_image import (
    NumberPredictor,
    Placed,
    border_sites,
    paint_numbers,
    paint_textures,
    place_objects,
    write_tiff,
)
from point_rend.experiments.benchmark.report import describe_machine
from point_rend.experiments.benchmark.settings import Settings
from point_rend.inference.predictor import Predictor
from point_rend.rendering.box_masks import crops
from point_rend.rendering.mask_runs import MaskRuns, common_area
from point_rend.tiling.grid import TileGrid, Window, tiles_of
from point_rend.tiling.tiled import TiledPredictor
from point_rend.utils.files import write_text

SMALL_RADIUS, LARGE_RADIUS = 0.02, 0.25  # of planted objects, as shares of a tile
SAME = 0.5  # IoU beyond which an object is found
# Radii of objects in the built-in data, as shares of the shorter side of an image.
MODEL_RADII = (0.14, 0.28)
SCORE = 0.5  # lowest one of an instance
MODEL_TILE = 2  # times the shortest side at which the model sees images
HEADERS = (
    "image",
    "objects",
    "cut by a tile",
    "whole in none",
    "results",
    "found once",
    "smallest IoU",
    "mean IoU",
    "found in the whole image, too",
    "seconds",
    "peak MiB",
)


@dataclass(frozen=True)
class TiledResult:
    """Results for an image in tiles.

    Attributes:
        name: Title of the image and the predictor.
        objects: Number of planted objects.
        cut: Number of those that at least one tile sees in part.
        in_none: Number of those that no tile sees whole.
        results: Number of instances that were found.
        found_once: Number of objects that exactly one instance matches.
        ious: IoU of each object with its best instance of its class.
        whole_ious: The same for each instance that is found in the whole image, where it was.
        seconds: Time.
        peak_bytes: Peak memory of the run above that before it, if it can be measured.
    """

    name: str
    objects: int
    cut: int
    in_none: int
    results: int
    found_once: int
    ious: Sequence[float]
    whole_ious: Sequence[float] | None
    seconds: float
    peak_bytes: int | None


def check_tiles(names: Sequence[str]) -> None:
    """Refuse settings that do not apply to this benchmark.

    Raises:
        ValueError: If there are other cases.
    """
    if len(names) > 1:
        raise ValueError(f"the case tiles has a table of its own, got {' '.join(names)}")


def run_tiles(
    settings: Settings, checkpoint: str | None, folder: Path | None, stem: str
) -> list[TiledResult]:
    """Measure the images at the top, print the tables, and save them.

    Args:
        settings: The settings.
        checkpoint: A checkpoint of instances on the built-in data, for the third image.
        folder: Folder of the Markdown and the JSON file, if they are to be saved.
        stem: Name of the files, without suffix.

    Raises:
        FileNotFoundError, ValueError: If the checkpoint cannot be run.
    """
    sizes, model = settings.sizes, None
    if checkpoint is not None:
        model = Predictor.from_checkpoint(checkpoint, settings.opts, device=settings.device)
    results = [
        _numbered(sizes.tiled_image, settings, compare=False),
        _numbered(sizes.whole_image, settings, compare=True),
    ]
    if model is not None:
        results.append(_textured(sizes.model_image, settings, model))
    machine = describe_machine(settings.device)
    notes = (
        f"{machine['cpu']}, {machine['threads']} thread(s), torch {machine['torch']}; tiles of "
        f"{sizes.tile} pixels, overlap {sizes.overlap:g}; an object is found by an instance of its "
        f"class with IoU > {SAME:g}"
    )
    labeled = label_images(settings)
    text = f"{notes}\n\n{format_results(results)}\n\n{format_labeled(labeled)}"
    print(f"\n{text}")
    if folder:
        content = {
            "machine": machine,
            "settings": dataclasses.asdict(settings),
            "images": [dataclasses.asdict(result) for result in results],
            "label maps": [dataclasses.asdict(result) for result in labeled],
        }
        write_text(folder / f"{stem}.md", text + "\n")
        write_text(folder / f"{stem}.json", json.dumps(content, indent=2) + "\n")
    return results


def best_ious(
    objects: Sequence[tuple[int, MaskRuns]], found: Sequence[tuple[int, MaskRuns]]
) -> tuple[list[float], list[int]]:
    """Match objects with instances of their class.

    Args:
        objects: Classes and masks.
        found: Classes and masks.

    Returns:
        For each object, the largest IoU with an instance of its class, and the number of instances
        whose IoU exceeds `SAME`.
    """
    areas = [mask.area for _, mask in found]
    boxes = np.array([mask.box for _, mask in found]).reshape(-1, 4)
    classes = np.array([category for category, _ in found])
    ious, counts = [], []
    for category, mask in objects:
        box, area = mask.box, mask.area
        near = (boxes[:, :2] < box[2:]).all(axis=1) & (boxes[:, 2:] > box[:2]).all(axis=1)
        values = [0.0]
        for k in np.flatnonzero(near & (classes == category)).tolist():
            common = common_area(mask, found[k][1])
            values.append(common / (area + areas[k] - common))
        ious.append(max(values))
        counts.append(sum(value > SAME for value in values))
    return ious, counts


def format_results(results: Sequence[TiledResult]) -> str:
    """Lay out results as a Markdown table."""
    rows = [HEADERS, ("---",) * len(HEADERS)]
    for x in results:
        whole, again = "–", [iou for iou in x.whole_ious or () if iou > SAME]
        if x.whole_ious:
            of_these = f", IoU {min(again):.4f}, median {np.median(again):.4f}" if again else ""
            whole = f"{len(again)} of {len(x.whole_ious)}{of_these}"
        rows.append(
            (
                x.name,
                str(x.objects),
                str(x.cut),
                str(x.in_none),
                str(x.results),
                str(x.found_once),
                f"{min(x.ious, default=0):.4f}",
                f"{np.mean(x.ious or 0):.4f}",
                whole,
                f"{x.seconds:.1f}",
                "–" if x.peak_bytes is None else f"{x.peak_bytes / 2**20:.0f}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _numbered(size: tuple[int, int], settings: Settings, *, compare: bool) -> TiledResult:
    """Segment a numbered image with a predictor that is exact."""
    tile, overlap = settings.sizes.tile, settings.sizes.overlap
    rng = np.random.default_rng(settings.seed)
    grid = tiles_of(size, tile, overlap)
    radii = (SMALL_RADIUS * tile, LARGE_RADIUS * tile)
    placed = place_objects(rng, size, border_sites(rng, grid, radii))
    cfg = instance_config(POINTREND, 1, ())
    predictor = NumberPredictor(cfg, [x.score for x in placed])
    tiled = TiledPredictor(predictor, tile, overlap)
    image = paint_numbers(size, placed)
    name = f"{size[0]}×{size[1]}, exact predictor"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.tif")
        write_tiff(path, image)
        whole = None
        if compare:
            (output,) = predictor([image])
            whole = output["instances"]
        del image
        return _measured(name, lambda: tiled(path)["instances"], placed, grid, whole, settings)


def _textured(size: tuple[int, int], settings: Settings, predictor: Predictor) -> TiledResult:
    """Segment a textured image with a model, in tiles and as a whole."""
    side = predictor.cfg.INPUT.MIN_SIZE_TEST
    tile = MODEL_TILE * side
    rng = np.random.default_rng(settings.seed)
    grid = tiles_of(size, tile, settings.sizes.overlap)
    smallest, largest = MODEL_RADII
    sites = border_sites(rng, grid, (smallest * side, largest * side))
    placed = place_objects(rng, size, [x for x in sites if not x.is_split and not x.ring])
    image = paint_textures(rng, size, placed)

    def at_scale(length: int, share: float) -> Predictor:
        """Build a predictor that sees an image of this side as it is, with limits by its area."""
        cfg: CfgNode = predictor.cfg.clone()
        cfg.defrost()
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = length, length
        cfg.TEST.DETECTIONS_PER_IMAGE = round(cfg.TEST.DETECTIONS_PER_IMAGE * share)
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = SCORE
        rpn = cfg.MODEL.RPN
        rpn.PRE_NMS_TOPK_TEST = round(rpn.PRE_NMS_TOPK_TEST * share)
        rpn.POST_NMS_TOPK_TEST = round(rpn.POST_NMS_TOPK_TEST * share)
        cfg.freeze()
        return Predictor(cfg, metadata=predictor.metadata, paste_masks=False)

    whole = at_scale(max(size), size[0] * size[1] / tile**2)(image)["instances"]
    tiled = TiledPredictor(at_scale(tile, 1), tile, settings.sizes.overlap)
    name = f"{size[0]}×{size[1]}, {Path(predictor.cfg.MODEL.WEIGHTS).name}, tiles of {tile}"
    return _measured(name, lambda: tiled(image)["instances"], placed, grid, whole, settings)


def _measured(
    name: str,
    run: Callable[[], Instances],
    placed: Sequence[Placed],
    grid: TileGrid,
    whole: Instances | None,
    settings: Settings,
) -> TiledResult:
    found: list[Instances] = []
    start = time.perf_counter()
    peak = peak_memory(lambda: found.append(run()), settings.device)
    seconds = time.perf_counter() - start
    if not found:  # no memory is measured on this system
        found.append(run())
        seconds = time.perf_counter() - start
    (result,) = found
    objects = [(x.category, MaskRuns.of(x.mask)) for x in placed]
    ours = _classes_and_masks(result)
    ious, counts = best_ious(objects, ours)
    seen = [_views(mask, grid) for _, mask in objects]
    return TiledResult(
        name=name,
        objects=len(objects),
        cut=sum(is_cut for is_cut, _ in seen),
        in_none=sum(not is_whole for _, is_whole in seen),
        results=len(ours),
        found_once=sum(count == 1 for count in counts),
        ious=ious,
        whole_ious=None if whole is None else best_ious(_classes_and_masks(whole), ours)[0],
        seconds=seconds,
        peak_bytes=peak,
    )


def _classes_and_masks(found: Instances) -> list[tuple[int, MaskRuns]]:
    found = found.to("cpu")
    masks: Any = found.pred_masks
    runs = map(MaskRuns.of, crops(masks))
    return list(zip(found.pred_classes.tolist(), runs, strict=True))


def _views(mask: MaskRuns, grid: TileGrid) -> tuple[bool, bool]:
    """Return whether a tile sees a part of a mask only, and whether one sees all of it."""
    areas = {mask.clipped(*window).area for window in grid.windows() if _meet(mask, window)}
    parts = areas - {0}
    return min(parts) < mask.area, mask.area in parts


def _meet(mask: MaskRuns, window: Window) -> bool:
    top, left, bottom, right = mask.box
    inside = top < window.bottom and bottom > window.top
    return inside and left < window.right and right > window.left
