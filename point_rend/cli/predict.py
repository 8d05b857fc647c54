"""`pointrend predict`: segment images or a video.

    pointrend predict --config-file output/my_run/config.yaml --input photographs '*.jpg' \
        --output output/predictions --opts MODEL.WEIGHTS output/my_run/model_final.pth

or with a file of `pointrend export`:

    pointrend predict --model model.onnx --input photographs --output output/predictions

The options are those of Detectron2's demo.py. Instance, semantic and panoptic models all work.
Without --output the results are shown in a window.

Huge images, such as satellite pictures, are segmented in tiles:

    pointrend predict --model model.onnx --input map.tif --output output/map --tile 1024 \
        --formats coco

The files of each image are written as soon as it is segmented. After an interruption, the same
command continues: `predictions.jsonl` in the output folder lists the images that are finished.
Other files that exist are only replaced with --overwrite.

With --shards, any number of processes share out the images of a folder, a pattern or a list:

    torchrun --nproc-per-node 2 -m point_rend predict --model FILE --input images.txt --shards jsonl
        --output output/shards
    pointrend merge output/shards --output instances.json

Each claims one block of images after another, and writes its records into one file. The same
command, with any number of processes, continues with the blocks that are missing. `--engine ray`
does the same on a Ray cluster, or on all CPUs or GPUs of this machine.

Files that cannot be read are named at the end; the exit code is then 1. It is 2 after an error that
stops everything, such as no input at all; 130 after Ctrl-C and 143 after SIGTERM, which leave
complete files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from point_rend.inference import options
from point_rend.utils import errors

FORMATS = ("pictures", "coco", "masks", "labels")
SHARD_FORMATS = ("parquet", "jsonl", "json")
SHARD_SIZE = 500
WORKERS = 1
ENGINES = ("processes", "ray")
ONLY_FOR_SHARDS = ("--shard-size", "--workers", "--uri-column", "--image-root")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = options.build_parser("Segment images or a video with a trained model.", exported=True)
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, folders (with all below), or patterns in quotes",
    )
    sources.add_argument("--video-input", metavar="FILE")
    sources.add_argument("--webcam", action="store_true", help="use the camera")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder, or a file for a single image or a video; by default a window",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        help="pictures (default): segments painted over the image; coco: one file instances.json; "
        "masks: one PNG per instance; labels: one PNG of class indices per image",
    )
    parser.add_argument(
        "--frames", action="store_true", help="write the pictures of a video one by one"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the results of an earlier run in --output, and other files of their names",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        help="images at a time (default 1); only those that the model pads to one size run "
        "together, so that the masks do not depend on it; with --tile, tiles at a time",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="segment larger images in square tiles of this side, and put objects across their "
        "borders together; each tile is resized as an image is, to INPUT.MIN_SIZE_TEST",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="SHARE",
        help="part of a tile that it has in common with the next one, from 0 to 0.9 (default 0.2)",
    )
    many = parser.add_argument_group("many images")
    many.add_argument(
        "--shards",
        choices=SHARD_FORMATS,
        help="write records (COCO's masks as RLE) into one file per block of images; --input is "
        "then one folder, pattern in quotes, or file that lists images: paths or URIs a line, a "
        "COCO file (.json) or a Parquet file (.parquet)",
    )
    many.add_argument(
        "--shard-size",
        type=int,
        metavar="N",
        help=f"images in a block (default {SHARD_SIZE}); a process that is killed loses its block",
    )
    many.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode images for each process that runs the model (default "
        f"{WORKERS}; 0: none)",
    )
    many.add_argument(
        "--uri-column",
        metavar="NAME",
        help="column of a Parquet file with the paths or URIs of the images (default uri)",
    )
    many.add_argument(
        "--image-root",
        metavar="DIR",
        help="folder to which names in a list of images are relative (default: that of the list)",
    )
    many.add_argument(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="processes (default): this one, or those of torchrun or srun; ray: a pipeline of Ray "
        "Data with the model on each GPU or CPU of a cluster, or of this machine; it writes "
        "shards, by default parquet",
    )
    many.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="running Ray cluster that this machine belongs to, or auto (default: RAY_ADDRESS, or "
        "else a Ray of this machine that ends with the command)",
    )
    return parser


def complete_options(args: argparse.Namespace) -> None:
    """Fill in the defaults that depend on --shards and --engine.

    Raises:
        ValueError: If options that need one of them are given without it.
    """
    if args.engine == "ray":
        args.shards = args.shards or SHARD_FORMATS[0]
        if args.workers is not None:
            raise ValueError("--workers is not for --engine ray, which starts its own")
    elif args.ray_address is not None:
        raise ValueError("--ray-address is for --engine ray")
    if args.shards is None:
        args.formats = args.formats or ["pictures"]
        for flag in ONLY_FOR_SHARDS:
            if getattr(args, flag.strip("-").replace("-", "_")) is not None:
                raise ValueError(f"{flag} is for --shards")
        return
    args.shard_size = SHARD_SIZE if args.shard_size is None else args.shard_size
    args.workers = WORKERS if args.workers is None else args.workers


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With one of the codes above.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    from point_rend.batch_inference.run import run_shards
    from point_rend.inference.run import run

    with errors.user_errors():
        complete_options(args)
        if args.engine == "ray":
            from point_rend.batch_inference.ray_pipeline import run_on_ray

            failures, exit_code = run_on_ray(args)
        else:
            failures, exit_code = run(args) if args.shards is None else run_shards(args)
    for failure in failures:
        print(f"{parser.prog}: {errors.shortened(failure, errors.LONGEST_LINE)}", file=sys.stderr)
    if exit_code or failures:
        raise SystemExit(exit_code or errors.FAILED)
