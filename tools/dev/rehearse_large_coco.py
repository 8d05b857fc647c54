#!/usr/bin/env python
"""Rehearse the start of a training on a COCO file of millions of annotations: time and memory.

    python tools/dev/rehearse_large_coco.py --output output/large

The file is drawn as large data sets are: annotations in no order of their images, before the list
of the categories; polygons of 3 to some hundred corners, a hundredth of them crowds with an RLE;
one in a thousand boxes is empty, as data sets of this size have some. The images are links to a few
real files, in folders of a thousand, so every check of an image opens a file. `pointrend train` is
then set up in a process of its own until the first batch has arrived. The table has the processor
time and the largest memory of its main process after each part; workers are processes of their own,
and their memory that nobody else uses is listed too.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from point_rend.utils.errors import user_errors
from point_rend.utils.files import atomic_file, write_text

SIZES = ((480, 640), (640, 480), (426, 640), (512, 512))  # height, width
PER_FOLDER = 1000
CROWD_SHARE = 0.01
EMPTY_SHARE = 0.001
CORNERS = (3, 20, 0.7, 400)  # fewest, median, spread of the logarithm, most
CHUNK = 1000  # annotations
BATCHES = 4  # after the first
CONFIG = "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco.yaml"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description="Rehearse a training on a large COCO file.")
    parser.add_argument("--output", type=Path, required=True, help="new or earlier folder")
    parser.add_argument("--images", type=int, default=200_000, help="number (default 200000)")
    parser.add_argument("--annotations", type=int, default=2_000_000, help="default 2000000")
    parser.add_argument("--classes", type=int, default=365, help="number (default 365)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing (default 0)")
    parser.add_argument("--workers", type=int, default=2, help="data workers (default 2)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the data set unless it is there, and measure."""
    args = build_parser().parse_args(argv)
    if args.measure is not None:
        measure(args)
        return
    with user_errors():
        json_file = args.output / "instances.json"
        if not json_file.exists():
            generate(args.output, args.images, args.annotations, args.classes, args.seed)
        print(f"{json_file}: {json_file.stat().st_size / 2**20:.0f} MiB", flush=True)
        command = [sys.executable, __file__, *(argv if argv is not None else sys.argv[1:])]
        report = args.output / "measured.json"
        subprocess.run([*command, "--measure", str(report)], check=True)
        print(table(json.loads(report.read_text())))


# Drawing


def generate(folder: Path, images: int, annotations: int, classes: int, seed: int = 0) -> Path:
    """Draw a data set.

    Args:
        folder: Gets `instances.json` and the links to the images, below `images`.
        images, annotations, classes: Numbers.
        seed: Of all random numbers.

    Returns:
        The file.
    """
    numbers = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pictures = []
    for index, (height, width) in enumerate(SIZES):
        pixels = numbers.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        pictures.append((folder / "pictures" / f"{index}.jpg").resolve())
        Image.fromarray(pixels).resize((width, height)).save(pictures[-1])
    sizes = numbers.integers(0, len(SIZES), images)
    names = [f"patch{i // PER_FOLDER}/{i:08d}.jpg" for i in range(images)]
    for name, size in zip(names, sizes, strict=True):
        link = folder / "images" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(pictures[size])
    with atomic_file(folder / "instances.json") as file:
        file.write(b'{"info": {"description": "drawn"}, "licenses": [], "images": ')
        write_list(
            file,
            (
                {
                    "license": 1,
                    "file_name": name,
                    "height": SIZES[size][0],
                    "width": SIZES[size][1],
                    "date_captured": "2026-01-01 00:00:00",
                    "id": index + 1,
                }
                for index, (name, size) in enumerate(zip(names, sizes.tolist(), strict=True))
            ),
        )
        file.write(b', "annotations": ')
        write_list(file, draw_annotations(numbers, sizes, annotations, classes))
        file.write(b', "categories": ')
        write_list(file, ({"id": i + 1, "name": f"class {i + 1}"} for i in range(classes)))
        file.write(b"}")
    return folder / "instances.json"


def write_list(file: BinaryIO, items: Iterator[dict[str, Any]]) -> None:
    """Write a list of JSON, one item at a time."""
    separator = b"["
    for item in items:
        file.write(separator + json.dumps(item).encode())
        separator = b", "
    file.write(b"]" if separator == b", " else b"[]")


def draw_annotations(
    numbers: np.random.Generator, sizes: np.ndarray, count: int, classes: int
) -> Iterator[dict[str, Any]]:
    """Yield annotations: star-shaped polygons around random centers of random images."""
    fewest, median, spread, most = CORNERS
    for first in range(0, count, CHUNK):
        chunk = min(CHUNK, count - first)
        images = numbers.integers(0, len(sizes), chunk)
        corners = np.exp(numbers.normal(np.log(median), spread, chunk)).astype(int)
        corners = corners.clip(fewest, most)
        # Some classes have most objects, as in all large data sets.
        category = (classes * numbers.random(chunk) ** 3).astype(int) + 1
        crowd = numbers.random(chunk) < CROWD_SHARE
        empty = numbers.random(chunk) < EMPTY_SHARE
        for index in range(chunk):
            height, width = SIZES[sizes[images[index]]]
            angles = np.sort(numbers.random(corners[index])) * 2 * np.pi
            radii = numbers.uniform(8, 100) * numbers.uniform(0.7, 1, corners[index])
            center = numbers.random(2) * (width, height)
            around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
            polygon = (center + around).clip(0, (width, height))
            low, high = polygon.min(axis=0), polygon.max(axis=0)
            x, y, w, h = (round(float(v), 2) for v in (*low, *(high - low)))
            mask: Any = [[round(v, 2) for v in polygon.ravel().tolist()]]
            if crowd[index]:
                runs = numbers.integers(1, 60, 40).tolist()
                mask = {"size": [height, width], "counts": [*runs, height * width - sum(runs)]}
            yield {
                "segmentation": mask,
                "area": round(w * h * 0.6, 4),
                "iscrowd": int(crowd[index]),
                "image_id": int(images[index]) + 1,
                "bbox": [x, y, 0.0 if empty[index] else w, h],
                "category_id": int(category[index]),
                "id": first + index + 1,
            }


# Measuring


def measure(args: argparse.Namespace) -> None:
    """Set a training up until its first batch, and write the time and memory after each part."""
    from point_rend.data.checks.annotations import leave_out_impossible_annotations
    from point_rend.engine.arguments import build_parser as build_run_parser
    from point_rend.engine.setup import begin_run, register_datasets, setup
    from point_rend.engine.trainer import Trainer

    parts = [usage("imports")]
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "DATASETS.TRAIN": "('large',)",
        "DATASETS.TEST": "()",
        "SOLVER.IMS_PER_BATCH": "2",
        "DATALOADER.NUM_WORKERS": str(args.workers),
        "OUTPUT_DIR": str(args.output / "training"),
        "SEED": "1",
    }
    large = ["large", str(args.output / "instances.json"), str(args.output / "images")]
    command = ["--config-file", CONFIG, "--register-coco", *large]
    command += [word for option in options.items() for word in option]
    run = setup(build_run_parser().parse_args([*command[:2], "--overwrite", *command[2:]]))
    parts.append(usage("registration and checks"))
    register_datasets(run.args)
    for name in run.datasets_to_clean:
        leave_out_impossible_annotations(name, masks=run.cfg.MODEL.MASK_ON)
    begin_run(run.args, run.cfg)
    loader = Trainer(run.cfg).data_loader
    parts.append(usage("model and loader"))
    batches = iter(loader)
    batch = next(batches)
    parts.append(usage("first batch"))
    for _ in range(BATCHES):
        batch = next(batches)
    own = [private_memory(worker.pid or 0) for worker in active_children()]
    report = {
        "parts": parts,
        "records": loader.state_dict()["records"],
        "objects": sum(len(record["instances"]) for record in batch),
        "workers": own,
    }
    write_text(args.measure, json.dumps(report))


def usage(name: str) -> dict[str, Any]:
    """Return the processor time and the largest memory of this process until now."""
    now = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "part": name,
        "user": now.ru_utime,
        "system": now.ru_stime,
        "mebibytes": now.ru_maxrss / 1024,
    }


def private_memory(process: int) -> float:
    """Return the memory that a process shares with no other one, in MiB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def table(report: dict[str, Any]) -> str:
    """Return what was measured as a table in Markdown."""
    rows = ["| until the end of | user s | system s | peak MiB |", "|---|---|---|---|"]
    for part in report["parts"]:
        rows.append(
            f"| {part['part']} | {part['user']:.1f} | {part['system']:.1f} "
            f"| {part['mebibytes']:.0f} |"
        )
    workers = ", ".join(f"{own:.0f}" for own in report["workers"])
    rows.append(
        f"\n{report['records']} images to train on; memory of each worker alone: {workers} MiB"
    )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
