"""`pointrend predict --shards … --engine ray`: the blocks of a run as a Ray Data pipeline.

This process reads the manifest and sends pieces of a few images each through the pipeline: actors
that decode them, then actors that each hold the model. The records come back, and this process
writes each shard once it is complete. So only this machine needs the folder of the shards, nothing
is written twice, and the shards are those of any other run: they are the checkpoint of this one.

A piece is a whole number of batches of a block, so that each batch is that of a single process.
Pieces that a lost machine or a dead actor had are sent again.
"""

import argparse
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from point_rend.batch_inference.claims import Claims
from point_rend.batch_inference.manifest import Manifest
from point_rend.batch_inference.ray_actors import (
    DecodingActor,
    ModelActor,
    Piece,
    content_of,
    row_of,
)
from point_rend.batch_inference.ray_cluster import ray_cluster
from point_rend.batch_inference.records import Record
from point_rend.batch_inference.run import Work, run_shards
from point_rend.batch_inference.shards import Run, finished_shards, write_shard
from point_rend.config.defaults import pixel_format
from point_rend.inference.predictor import Predictor
from point_rend.inference.run import Outcome, build_predictor, build_tiled
from point_rend.inference.settings import Settings
from point_rend.utils.errors import shorten
from point_rend.utils.pixel_format import PLAIN, PixelFormat
from point_rend.utils.program import program

PIECE_IMAGES = 8
WINDOW_PIECES = 10_000  # of one execution of the pipeline: its memory grows with them
TRIES = 3  # executions in a row that end without a record
DECODERS_PER_GPU = 8
# CPUs that an actor reserves: a little less than it uses, so that all of a machine find room.
MODEL_CPUS, DECODER_CPUS = 0.95, 0.001


def pieces_of(run: Run, blocks: Iterable[int], batch_size: int) -> Iterator[Piece]:
    """Divide blocks into pieces of whole batches."""
    length = batch_size * max(1, PIECE_IMAGES // batch_size)
    for number in blocks:
        block = run.block(number)
        for start in range(block.start, block.stop, length):
            yield Piece(number, start, min(start + length, block.stop))


class Job(NamedTuple):
    """The model, and the way in which it is run.

    Attributes:
        predictor: The model, on the CPU; the cluster gets a copy.
        tiles: Side of a tile and overlap; None for whole images.
        device: "cuda" for an actor with the model on each GPU, "cpu" for one on each CPU.
        batch_size: Largest number of images that the model sees at a time.
        threads: Of the model on a CPU; results depend on them in their last bits.
        pixel_format: Pixels that the model expects.
    """

    predictor: Predictor
    tiles: tuple[int, float] | None = None
    device: str = "cpu"
    batch_size: int = 1
    threads: int = 1
    pixel_format: PixelFormat = PLAIN


def run_on_ray(args: argparse.Namespace) -> Outcome:
    """Segment the images of a manifest on a Ray cluster; write the shards that are missing.

    Args:
        args: The parsed command line of `pointrend predict`.

    Raises:
        FileNotFoundError, OSError, ValueError: After an error that stops everything.
    """
    torch.set_num_threads(1)  # of each actor; a run that is continued keeps its number
    return run_shards(args, build_ray_work)


def build_ray_work(
    args: argparse.Namespace, settings: Settings, run: Run, manifest: Manifest, stack: ExitStack
) -> Work:
    """Prepare to segment the images on a Ray cluster: an `Engine` of `run_shards`.

    Raises:
        OSError, ValueError: As :func:`~point_rend.batch_inference.ray_cluster.ray_cluster`, or if
            the model cannot be loaded.
    """
    device = "cuda" if settings.cfg.MODEL.DEVICE.startswith("cuda") else "cpu"
    cfg = settings.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    threads = torch.get_num_threads()
    predictor = build_predictor(args, settings._replace(cfg=cfg), threads=threads)
    tiled = build_tiled(args, predictor)
    tiles = None if tiled is None else (tiled.tile, tiled.overlap)
    job = Job(predictor, tiles, device, args.batch_size, threads, pixel_format(cfg))
    ray = stack.enter_context(ray_cluster(args.ray_address))

    def work(_: Claims, bar: tqdm, rank: int, world_size: int) -> None:
        if world_size > 1:
            raise ValueError(
                f"--engine ray: process {rank} of {world_size} of a launcher; expected one process,"
                " which lets Ray start the others"
            )
        finished = finished_shards(args.output, run)
        bar.update(sum(len(run.block(number)) for number in finished))
        blocks = [number for number in range(run.shards) if number not in finished]
        for number, records in segment_blocks(ray, job, run, manifest, blocks, advance=bar.update):
            write_shard(args.output, number, run, records)

    return work


def segment_blocks(
    ray: Any,
    job: Job,
    run: Run,
    manifest: Manifest,
    blocks: Sequence[int],
    *,
    advance: Callable[[int], Any] = lambda _: None,
) -> Iterator[tuple[int, list[Record]]]:
    """Segment the images of some blocks on a Ray cluster.

    Args:
        ray: Of :func:`~point_rend.batch_inference.ray_cluster.ray_cluster`.
        job: The model.
        run: The run.
        manifest: Its images.
        blocks: Numbers of the blocks.
        advance: Is called with the number of images whose records have just arrived.

    Yields:
        Number and records of each block once, when it is complete.

    Raises:
        OSError: If the cluster loses actors again and again.
        ValueError: If it has no GPU, or the model fails.
    """
    model = ray.put(job.predictor)
    pieces = pieces_of(run, blocks, job.batch_size)
    collected: dict[int, dict[int, list[Record]]] = {}
    while window := set(islice(pieces, WINDOW_PIECES)):
        for piece, records in _segment(ray, model, job, manifest, window):
            of_block = collected.setdefault(piece.block, {})
            of_block[piece.start] = records
            advance(len(records))
            if sum(map(len, of_block.values())) == len(run.block(piece.block)):
                del collected[piece.block]
                yield piece.block, [x for start in sorted(of_block) for x in of_block[start]]


def _segment(
    ray: Any, model: Any, job: Job, manifest: Manifest, waiting: set[Piece]
) -> Iterator[tuple[Piece, list[Record]]]:
    """Yield each of some pieces once, with its records; send those again that get lost."""
    fruitless = 0
    while waiting:
        reason = ""
        fruitless += 1
        try:
            for piece, records in _execute(ray, model, job, manifest, waiting):
                if piece in waiting:
                    waiting.remove(piece)
                    fruitless = 0
                    yield piece, records
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", error)
            if isinstance(cause, ray.exceptions.UserCodeException) or not isinstance(
                cause, ray.exceptions.RayError
            ):
                raise  # an error in this package
            reason = shorten(str(cause).strip().partition("\n")[0], 200)
        if not waiting:
            return
        if fruitless == TRIES:
            raise OSError(
                f"Ray lost all work {TRIES} times in a row: {reason or 'no reason given'}"
            )
        number = sum(piece.stop - piece.start for piece in waiting)
        note = f"Ray lost some work ({reason}): {number} images are left to do"
        print(f"{program()}: {note}", file=sys.stderr, flush=True)


def _execute(
    ray: Any, model: Any, job: Job, manifest: Manifest, pieces: Iterable[Piece]
) -> Iterator[tuple[Piece, list[Record]]]:
    """Send pieces through one pipeline; yield those that arrive."""
    models, decoders = _numbers_of_actors(ray, job)
    on_gpu = job.device != "cpu"
    dataset = ray.data.from_arrow([row_of(x, manifest[x.start : x.stop]) for x in sorted(pieces)])
    arguments: list[Any] = [job.pixel_format]
    reserved: dict[str, float] = {"num_cpus": 1 if on_gpu else DECODER_CPUS}
    dataset = _through(dataset, DecodingActor, arguments, decoders, **reserved)
    arguments = [model, job.device, job.batch_size, job.tiles, job.threads]
    reserved = {"num_cpus": MODEL_CPUS * job.threads}
    if on_gpu:
        reserved = {"num_cpus": 0, "num_gpus": 1}
    dataset = _through(dataset, ModelActor, arguments, models, **reserved)
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in range(len(table)):
            piece, found = content_of(table, row)
            if isinstance(found, str):
                raise ValueError(found)
            yield piece, found


def _through(
    dataset: Any, actor: type, arguments: list[Any], number: int, **reserved: float
) -> Any:
    """Append a pool of actors to a pipeline, of which each gets one row at a time."""
    from ray.data import ActorPoolStrategy

    options: dict[str, Any] = {}
    if any(
        x.kind is x.VAR_KEYWORD for x in inspect.signature(dataset.map_batches).parameters.values()
    ):
        options["max_restarts"] = 0  # an actor that finds no room elsewhere would hold its rows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such options may vanish
        return dataset.map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=number),
            **reserved,
            **options,
        )


def _numbers_of_actors(ray: Any, job: Job) -> tuple[int, int]:
    """Return how many actors with the model a cluster has room for, and how many decode."""
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if job.device == "cpu":
        models = max(1, cpus // job.threads)
        return models, models
    if not gpus:
        raise ValueError(
            f"MODEL.DEVICE is {job.device}, but the Ray cluster has no GPU; to run on its CPUs "
            "pass: MODEL.DEVICE cpu"
        )
    return gpus, max(1, min(cpus, DECODERS_PER_GPU * gpus))
