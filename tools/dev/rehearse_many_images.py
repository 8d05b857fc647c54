#!/usr/bin/env python
"""Rehearse a run on many images: equal results however it is shared out, throughput and memory.

    python tools/dev/rehearse_many_images.py --config-file output/demo/pointrend/config.yaml \
        --weights output/demo/pointrend/model_final.pth --output output/many

The built-in shapes are drawn, then segmented on the CPU by 1, 2 and 4 processes of one thread each,
by two processes that are killed three times (`kill -9`, one of them or all) and started again, and
on Ray, if it is installed. The shards of each run are merged, and the files are compared byte by
byte. The table has, for each run, the images per second between the first and the last image, their
ratio to those of one process, and the growth of the memory of all its processes per 1,000 images.
"""

import argparse
import filecmp
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from point_rend.cli import merge
from point_rend.data.shapes.coco import generate
from point_rend.utils.errors import FAILED, user_errors
from point_rend.utils.files import check_output, write_text

PARTS = ("1", "2", "4", "killed", "ray")
POLL_SECONDS = 0.2
SETTLED = 0.2  # of the images, after which the memory is measured


class Sample(NamedTuple):
    """Memory of all processes of a run when a number of images was finished."""

    images: int
    mebibytes: float


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description="Rehearse a run on many images.")
    parser.add_argument("--config-file", required=True, help="of the model")
    parser.add_argument("--weights", required=True, help="of the model")
    parser.add_argument("--output", type=Path, required=True, help="new or earlier folder")
    parser.add_argument("--images", type=int, default=2000, help="number (default 2000)")
    parser.add_argument("--size", type=int, default=192, help="their side in pixels (default 192)")
    parser.add_argument("--shard-size", type=int, default=20, help="images (default 20)")
    parser.add_argument("--shards", default="parquet", help="format (default parquet)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="runs: all")
    parser.add_argument("--kills", type=int, default=3, help="of the killed run (default 3)")
    return parser


def draw_images(folder: Path, number: int, size: int) -> Path:
    """Draw the images, unless they are there; return their folder."""
    images = folder / "train"
    if not images.is_dir() or len(os.listdir(images)) != number:
        images = Path(
            generate(folder, num_train=number, num_val=1, image_size=(size, size))[
                "train"
            ].image_root
        )
    return images


def command_of(args: argparse.Namespace, images: Path, output: Path, part: str) -> list[str]:
    """Return the command that a user would type for a run."""
    words = ["-m", "point_rend", "predict", "--config-file", args.config_file]
    words += ["--input", str(images), "--output", str(output), "--shards", args.shards]
    words += ["--shard-size", str(args.shard_size)]
    words += ["--engine", "ray"] if part == "ray" else []
    words += ["--opts", "MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu"]
    processes = {"1": 1, "ray": 1, "killed": 2}.get(part) or int(part)
    if processes == 1:
        return [sys.executable, *words]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [sys.executable, *launcher, *words]


def descendants(pid: int) -> list[int]:
    """Return the process ids of a process and all below it (Linux)."""
    found = [pid]
    for parent in found:
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        except OSError:
            continue
        found += map(int, children)
    return found


def memory_of(pids: Sequence[int]) -> float:
    """Return the resident memory of processes in MiB."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def finished_images(folder: Path) -> int:
    """Return the number of images in the shards of a folder."""
    from point_rend.batch_inference.shards import RUN_NAME, Run, finished_shards

    if not (folder / RUN_NAME).is_file():
        return 0
    run = Run.read(folder)
    return sum(len(run.block(number)) for number in finished_shards(folder, run))


def slope(samples: Sequence[Sample]) -> float:
    """Return the growth of the memory in MiB per 1,000 images, once it has settled."""
    start = SETTLED * samples[-1].images if samples else 0
    settled = [x for x in samples if x.images > start]
    if len({x.images for x in settled}) < 3:
        return float("nan")
    images, mebibytes = zip(*settled, strict=True)
    return 1000 * float(np.polyfit(images, mebibytes, 1)[0])


def watch(command: Sequence[str], output: Path, kill_at: Sequence[int] = ()) -> list[Sample]:
    """Run a command to its end; kill it at some numbers of images, and start it again each time.

    Returns:
        Samples of the memory, those of killed processes excepted.
    """
    left = list(kill_at)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    while True:
        samples: list[Sample] = []
        with open(f"{output}.log", "ab") as log:
            started = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        while started.poll() is None:
            time.sleep(POLL_SECONDS)
            images = finished_images(output)
            if images and (not samples or images > samples[-1].images):
                samples.append(Sample(images, memory_of(descendants(started.pid))))
            if left and images >= left[0]:
                left.pop(0)
                kill(started.pid, all_of_them=len(left) % 2 == 1)
                started.wait()
                end_group(started.pid)
                break
        else:
            if started.returncode:
                raise SystemExit(f"error: {' '.join(command)} has failed: see {output}.log")
            return samples


def kill(pid: int, *, all_of_them: bool) -> None:
    """Kill the last process that a launcher has started, or the launcher and all of them."""
    if all_of_them:
        os.killpg(pid, signal.SIGKILL)
        return
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(below[-1]) if below else pid, signal.SIGKILL)


def end_group(group: int) -> None:
    """Wait until no process of a group is left."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(POLL_SECONDS)
    raise SystemExit("error: processes have outlived the launcher that was killed")


def throughput(output: Path) -> float:
    """Return the images per second between the start of the work and the last shard."""
    from point_rend.batch_inference.shards import RUN_NAME, Run, shard_path

    run = Run.read(output)
    paths = [shard_path(output, number, run.shard_format) for number in range(run.shards)]
    end = max(path.stat().st_mtime for path in paths)
    return run.images / (end - (output / RUN_NAME).stat().st_mtime)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = build_parser().parse_args(argv)
    with user_errors():
        check_output(args.output, folder=True)
    images = draw_images(args.output / "images", args.images, args.size)
    parts = [part for part in PARTS if part in args.parts]
    if "ray" in parts and importlib.util.find_spec("ray") is None:
        print("Ray is not installed: this part is left out")
        parts.remove("ray")
    rows: dict[str, dict[str, float]] = {}
    merged: dict[str, Path] = {}
    print(f"{'run':<8}{'images/s':>10}{'ratio':>8}{'seconds':>9}{'MiB per 1,000':>15}  merged")
    for part in parts:
        output = args.output / part
        command = [*command_of(args, images, output, part)]
        command.insert(command.index("--shards"), "--overwrite")
        steps = [args.images * (i + 1) // (args.kills + 1) for i in range(args.kills)]
        began = time.monotonic()
        if part == "killed":
            finish = [word for word in command if word != "--overwrite"]
            remove_shards(output)
            samples = watch(finish, output, steps)
        else:
            samples = watch(command, output)
        row = {"seconds": time.monotonic() - began, "slope": slope(samples)}
        row["rate"] = throughput(output)
        if part == "killed":  # its time has the starts, its memory that of the last start
            row["rate"] = row["slope"] = float("nan")
        row["ratio"] = row["rate"] / rows["1"]["rate"] if "1" in rows else float("nan")
        rows[part] = row
        merged[part] = args.output / f"{part}.json"
        merge.main([str(output), "--output", str(merged[part]), "--overwrite"])
        first = merged[parts[0]]
        row["equal"] = filecmp.cmp(first, merged[part], shallow=False)
        verdict = "equal" if row["equal"] else f"DIFFERS from {first}"
        print(
            f"{part:<8}{row['rate']:>10.2f}{row['ratio']:>8.2f}{row['seconds']:>9.0f}"
            f"{row['slope']:>15.2f}  {merged[part].stat().st_size} bytes, {verdict}",
            flush=True,
        )
    write_text(args.output / "rehearsal.json", json.dumps(rows, indent=1) + "\n")
    if not all(row["equal"] for row in rows.values()):
        raise SystemExit(FAILED)


def remove_shards(folder: Path) -> None:
    """Remove the shards of an earlier rehearsal."""
    for path in folder.glob("*") if folder.is_dir() else ():
        path.unlink()


if __name__ == "__main__":
    main()
