"""The whole way once, in minutes on a CPU: draw data, train PointRend, measure it, look at it.

    python tools/demo.py             # or: make demo

Every step is a command that one could type; it is printed before it runs. At the end there are
pictures of the input, the coarse 7×7 masks, PointRend's masks and the truth, side by side, and
report.html: figures, curves and single objects on one page.

What is there already is kept: an interrupted training is taken up at its last checkpoint, and a
finished one is only evaluated again. To start afresh delete the output directory.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model

from point_rend import SafeDetectionCheckpointer, load_config
from point_rend.evaluation.coco_results import average_precision, format_table
from point_rend.utils.files import check_output
from point_rend.visualization.drawing import color_of, match_colors, overlay_masks
from point_rend.visualization.layout import save_picture, side_by_side, stack

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "configs" / "Demo" / "pointrend_shapes.yaml"
IMAGE_SIDE = 192
NUM_TRAIN, NUM_VAL = 600, 60
NUM_PICTURES = 6
MAGNIFICATION = 3  # of the pictures
MIN_SCORE = 0.7  # of the instances shown
TITLES = ("input", "coarse 7x7", "PointRend", "ground truth")
COARSE = ("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", "False")
QUICK = ("SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1")


class Instances(NamedTuple):
    """What is shown of one image."""

    masks: np.ndarray  # (I, H, W) bool at the size of the picture
    boxes: np.ndarray  # (I, 4) x0, y0, x1, y1 in pixels of the picture


def parse_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, name: str
) -> tuple[Path, bool]:
    """Read the command line of a demo.

    Args:
        parser: without arguments yet.
        argv: the arguments; those of the process if None.
        name: of the folder in output/ where --output is not given; with --quick another.

    Returns:
        The folder of the results, absolute, and whether the run shall be quick.

    Raises:
        SystemExit: with code 2 if --output cannot be written.
    """
    parser.add_argument("--output", type=Path, help=f"directory (default output/{name})")
    parser.add_argument(
        "--quick", action="store_true", help="a few images and steps: only shows that it all runs"
    )
    args = parser.parse_args(argv)
    default = REPOSITORY / "output" / (f"{name}-quick" if args.quick else name)
    output = (args.output or default).resolve()
    try:
        check_output(output, folder=True)
    except ValueError as error:
        parser.error(str(error))
    return output, args.quick


def run_step(title: str, command: Sequence[str | Path]) -> None:
    """Print a command and run it in the repository, to which its paths are made relative.

    Args:
        title: what the step is for.
        command: program and arguments.

    Raises:
        SystemExit: it failed; the message names the step, the exit code is the command's.
    """
    words = [str(word).removeprefix(f"{REPOSITORY}{os.sep}") for word in command]
    print(f"\n=== {title}\n$ {shlex.join(words)}\n", flush=True)
    done = subprocess.run(words, cwd=REPOSITORY, check=False)
    if done.returncode:
        print(f"\nerror: this step failed: {title}", file=sys.stderr)
        raise SystemExit(done.returncode)


def load_model(weights: Path, num_classes: int, opts: Sequence[str] = ()) -> tuple[Any, CfgNode]:
    """Build the demo's model with trained weights, ready for inference."""
    cfg = load_config(str(CONFIG), ["MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes), *opts])
    model = build_model(cfg).eval()
    SafeDetectionCheckpointer(model).load(str(weights))
    return model, cfg


@torch.no_grad()
def predict(model: Any, cfg: CfgNode, image: np.ndarray) -> Instances:
    """Find instances; their masks are rendered at the size of the picture, not of the image."""
    height, width = (side * MAGNIFICATION for side in image.shape[:2])
    short_side, long_side = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    resize = ResizeShortestEdge([short_side, short_side], long_side).get_transform(image)
    pixels = torch.as_tensor(resize.apply_image(image).transpose(2, 0, 1).astype(np.float32))
    found = model([{"image": pixels, "height": height, "width": width}])[0]["instances"].to("cpu")
    found = found[found.scores >= MIN_SCORE]
    return Instances(found.pred_masks.numpy(), found.pred_boxes.tensor.numpy())


def truth_of(annotations: Sequence[dict[str, Any]], size: tuple[int, int]) -> Instances:
    """Render the annotated instances of an image at the size of its picture.

    Args:
        annotations: COCO annotations with polygons or compressed RLE.
        size: height and width of the image.
    """
    height, width = (side * MAGNIFICATION for side in size)
    masks = np.zeros((len(annotations), height, width), dtype=bool)
    boxes = np.zeros((len(annotations), 4))
    for i, annotation in enumerate(annotations):
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            mask = mask_util.decode(segmentation).astype(np.float32)
            large = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
            masks[i] = cv2.GaussianBlur(large, (0, 0), MAGNIFICATION / 2) > 0.5
        else:
            polygons = [[MAGNIFICATION * v for v in polygon] for polygon in segmentation]
            rles = mask_util.frPyObjects(polygons, height, width)
            masks[i] = mask_util.decode(mask_util.merge(rles))
        x, y, w, h = annotation["bbox"]
        boxes[i] = np.array([x, y, x + w, y + h]) * MAGNIFICATION
    return Instances(masks, boxes)


def compare(image: np.ndarray, coarse: Instances, fine: Instances, truth: Instances) -> list:
    """Make the panels of one image in the order of `TITLES`, each object in one color."""
    size = (image.shape[1] * MAGNIFICATION, image.shape[0] * MAGNIFICATION)
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    colors = [color_of(i) for i in range(len(truth.masks))]
    return [
        large,
        overlay_masks(large, coarse.masks, match_colors(coarse.boxes, truth.boxes)),
        overlay_masks(large, fine.masks, match_colors(fine.boxes, truth.boxes)),
        overlay_masks(large, truth.masks, colors),
    ]


def closeup(panels: Sequence[np.ndarray], box: np.ndarray, side: int = 260) -> list[np.ndarray]:
    """Cut a square around a box out of every panel, inside the panel, resized to `side` pixels."""
    height, width = panels[0].shape[:2]
    length = round(min(1.2 * max(box[2] - box[0], box[3] - box[1]), height, width))
    corner = (box[:2] + box[2:]) / 2 - length / 2
    x, y = np.clip(np.round(corner).astype(int), 0, (width - length, height - length))
    return [
        cv2.resize(
            panel[y : y + length, x : x + length], (side, side), interpolation=cv2.INTER_AREA
        )
        for panel in panels
    ]


def draw_pictures(json_file: Path, image_root: Path, weights: Path, folder: Path) -> list[Path]:
    """Write the comparison of the first validation images, and of one object of every class.

    Args:
        json_file: COCO annotations of the validation set.
        image_root: its images.
        weights: the trained model.
        folder: where the pictures go.

    Returns:
        The files written.
    """
    content = json.loads(json_file.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    largest: dict[int, dict[str, Any]] = {}
    for annotation in sorted(content["annotations"], key=lambda a: a["area"]):
        largest[annotation["category_id"]] = annotation

    models = [load_model(weights, len(names), opts) for opts in (COARSE, ())]
    shown = [image["id"] for image in content["images"][:NUM_PICTURES]]
    needed = {*shown, *(annotation["image_id"] for annotation in largest.values())}
    panels: dict[int, list[np.ndarray]] = {}
    for record in content["images"]:
        if record["id"] in needed:
            image = cv2.imread(str(image_root / record["file_name"]))
            truth = truth_of(by_image.get(record["id"], []), (record["height"], record["width"]))
            coarse, fine = (predict(model, cfg, image) for model, cfg in models)
            panels[record["id"]] = compare(image, coarse, fine, truth)

    rows = [side_by_side(panels[number], TITLES) for number in shown]
    files = [folder / f"image_{number:06d}.png" for number in shown]
    for file, row in zip(files, rows, strict=True):
        save_picture(file, row)
    closeups = []
    for category, annotation in sorted(largest.items()):
        x, y, w, h = annotation["bbox"]
        box = np.array([x, y, x + w, y + h]) * MAGNIFICATION
        cut = closeup(panels[annotation["image_id"]], box)
        closeups.append(side_by_side(cut, (names[category], *TITLES[1:])))
    pairs = [side_by_side(closeups[i : i + 2], gap=32) for i in range(0, len(closeups), 2)]
    files += [folder / "closeups.png", folder / "images.png"]
    save_picture(files[-2], stack(pairs))
    save_picture(files[-1], stack(rows))
    return files


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo.

    Raises:
        SystemExit: With code 2 if --output cannot be written, with that of a step that failed.
    """
    parser = argparse.ArgumentParser(description="Train, evaluate and look at a small PointRend.")
    output, quick = parse_arguments(parser, argv, "demo")
    num_train, num_val, opts = (8, 4, QUICK) if quick else (NUM_TRAIN, NUM_VAL, ())
    start = time.monotonic()

    data = output / "shapes"
    numbers = ("--train", num_train, "--val", num_val, "--size", IMAGE_SIDE)
    generator = (sys.executable, "-m", "point_rend.data.shapes", "--output", data, *numbers)
    run_step("Draw the data set", [str(word) for word in generator])
    truth = data / "annotations" / "instances_val.json"
    val = ("--register-coco", "shapes_val", truth, data / "val")
    train = ("--register-coco", "shapes_train", truth.with_name("instances_train.json"))

    train_net: list[str | Path] = [
        sys.executable,
        "train_net.py",
        "--config-file",
        CONFIG.relative_to(REPOSITORY),
    ]
    fine, coarse = output / "pointrend", output / "coarse"
    weights = fine / "model_final.pth"
    run_step(
        "Train PointRend and evaluate it",
        [*train_net, "--resume", *train, data / "train", *val, "OUTPUT_DIR", fine, *opts],
    )
    settings: list[str | Path] = ["MODEL.WEIGHTS", weights, *COARSE, *opts, "OUTPUT_DIR", coarse]
    run_step(
        "Evaluate the coarse masks of the same model",
        [*train_net, "--eval-only", *val, *settings],
    )

    print("\n=== Compare\n", flush=True)
    results = Path("inference") / "shapes_val" / "coco_instances_results.json"
    table = {
        "coarse 7×7 masks": average_precision(truth, coarse / results),
        "PointRend": average_precision(truth, fine / results),
    }
    print(f"\n{format_table(table)}")
    files = draw_pictures(truth, data / "val", weights, output / "pictures")
    page = output / "report.html"
    run_step(
        "Put it all on one page",
        [
            *(sys.executable, "tools/report.py", "--annotations", truth),
            *("--image-root", data / "val", "--output", page, "--run", f"PointRend={fine}"),
            *("--results", f"coarse 7×7={coarse / results}"),
            *("--results", f"PointRend={fine / results}"),
        ],
    )
    files.append(page)
    minutes = (time.monotonic() - start) / 60
    print(f"\nDone in {minutes:.1f} minutes. Look at:\n  " + "\n  ".join(map(str, files[::-1])))
    print(f"To start afresh: rm -r {shlex.quote(str(output))}")
